"""A history that is full gives up what is oldest, also where every rollout was cut off and might be resubmitted."""

from .test_drafting import PROMPT, TEXT, Request, decode, make

BUDGET = 1 << 20


class FINISH_LENGTH:
    pass


def roll_out(drafter, number):
    """A rollout of a prompt of its own that ends at its budget of tokens."""
    request = Request(str(number), prompt=[*PROMPT, number % 90, number // 90])
    decode(drafter, request, [(token + number) % 90 for token in TEXT])
    request.finished_reason = FINISH_LENGTH()
    drafter.finish(request.rid)
    return request


def test_rollouts_cut_off_do_not_keep_a_full_history_from_shrinking():
    drafter, _ = make(history_bytes=BUDGET)
    sizes, problems = [], []
    for number in range(700):
        roll_out(drafter, number)
        sizes.append(drafter.history.memory_usage())
        problems.append(len(drafter.problems))
    stats = drafter.history.stats()
    assert stats["evicted_problems"] > 100
    assert max(sizes) < 1.5 * BUDGET
    assert max(problems) < 3 * stats["problems"], "problems that left the history are forgotten"


def test_the_latest_of_them_can_still_be_continued():
    drafter, _ = make(history_bytes=BUDGET)
    for number in range(300):
        last = roll_out(drafter, number)
    known = len(drafter.problems)
    again = Request("again", prompt=[*last.origin_input_ids_unpadded, *last.output_ids])
    again.output_ids.append(1)
    drafter.propose([again])
    assert len(drafter.problems) == known, "it goes on as the same problem"
