"""Requests find their problem: same prompt, resubmitted rollout, or something new."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sglang_das.engine.problems import Problems, Suspended

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(lambda values: np.array(values, np.int64))


def ids(*values):
    return np.array(values, np.int64)


@given(st.lists(tokens, min_size=1, max_size=12))
def test_a_problem_is_its_prompt(prompts):
    problems = Problems()
    keys = {}
    for prompt in prompts:
        admission = problems.admit(prompt)
        assert not len(admission.continued)
        assert admission.resumes is None
        assert keys.setdefault(tuple(prompt), admission.problem.key) == admission.problem.key
    assert len(set(keys.values())) == len(keys) == len(problems)


def test_a_prompt_that_extends_another_is_a_problem_of_its_own():
    problems = Problems()
    short = problems.admit(ids(1, 2, 3)).problem
    assert problems.admit(ids(1, 2, 3, 4)).problem.key != short.key


def test_a_resubmitted_rollout_goes_on_in_its_sequence():
    problems = Problems()
    problem = problems.admit(ids(1, 2, 3)).problem
    suspended = Suspended(ids(7, 8), "sequence", version=0)
    problem.suspended.append(suspended)
    admission = problems.admit(ids(1, 2, 3, 7, 8))
    assert admission.problem is problem
    assert admission.continued.tolist() == [7, 8]
    assert admission.resumes is suspended


def test_a_client_that_saw_less_of_the_rollout_starts_from_what_it_saw():
    problems = Problems()
    problem = problems.admit(ids(1, 2, 3)).problem
    problem.suspended.append(Suspended(ids(7, 8, 9), "sequence", version=0))
    admission = problems.admit(ids(1, 2, 3, 7, 8))
    assert admission.problem is problem
    assert admission.continued.tolist() == [7, 8]
    assert admission.resumes is None


def test_the_longest_prompt_that_fits_wins():
    problems = Problems()
    short, long = problems.admit(ids(1, 2)).problem, problems.admit(ids(1, 2, 7)).problem
    short.suspended.append(Suspended(ids(7, 8), "short", version=0))
    long.suspended.append(Suspended(ids(8), "long", version=0))
    assert problems.admit(ids(1, 2, 7, 8)).problem is long


def test_a_named_problem_does_not_depend_on_the_prompt():
    problems = Problems()
    first = problems.admit(ids(1, 2, 3), "p").problem
    assert problems.admit(ids(4, 5), "p").problem is first
    assert problems.admit(ids(4, 5), "q").problem is not first


def test_suspended_rollouts_are_given_up():
    problems = Problems()
    problem = problems.admit(ids(1, 2, 3)).problem
    problem.suspended += [Suspended(ids(7), "old", version=0), Suspended(ids(8), "new", version=2)]
    assert problems.expire(version=1) == ["old"]
    assert [rollout.sequence for rollout in problem.suspended] == ["new"]


def test_forgotten_problems_are_new_again():
    problems = Problems()
    key = problems.admit(ids(1, 2, 3)).problem.key
    problems.forget([key])
    assert len(problems) == 0
    assert problems.admit(ids(1, 2, 3)).problem.key != key
