"""The drafter over a whole life of requests, against stand-ins of the engine's request objects."""

from array import array
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from sglang_das.engine.config import DasConfig
from sglang_das.engine.drafting import Drafter, reason_not_to_draft
from sglang_das.engine.drafts import DraftTree
from sglang_das.engine.known import Known
from sglang_das.engine.matching import match
from sglang_das.engine.metrics import Counters

PROMPT = list(range(100, 112))
TEXT = [int(token) for token in np.random.default_rng(0).integers(0, 90, 60)]


class FINISH_MATCHED_TOKEN:
    pass


class FINISH_ABORT:
    pass


class Request(SimpleNamespace):
    """The attributes of the engine's `Req` that the drafter reads."""

    def __init__(self, rid, prompt=PROMPT, max_new_tokens=200, **sampling):
        super().__init__(
            rid=rid,
            origin_input_ids_unpadded=array("q", prompt),
            output_ids=array("q"),
            grammar=None,
            multimodal_inputs=None,
            custom_logit_processor=None,
            customized_info=None,
            finished_reason=None,
            sampling_params=SimpleNamespace(
                **{
                    "max_new_tokens": max_new_tokens,
                    "custom_params": None,
                    "frequency_penalty": 0.0,
                    "presence_penalty": 0.0,
                    "repetition_penalty": 1.0,
                    "min_new_tokens": 0,
                    "temperature": 1.0,
                    "top_k": 1 << 30,
                    "top_p": 1.0,
                    "min_p": 0.0,
                    "sampling_seed": None,
                    **sampling,
                }
            ),
        )

    def finished(self):
        return self.finished_reason is not None

    @property
    def output_ids_through_stop(self):
        return self.output_ids


def make(**settings):
    counters = Counters()
    return Drafter(DasConfig(arm="unlimited", **settings), max_width=9, counters=counters), counters


def decode(drafter, request, text, start=1):
    """Let a request emit `text` as sample and match would, its first token from the prefill. Returns steps taken."""
    request.output_ids.extend(text[:start])
    steps = 0
    while len(request.output_ids) < len(text):
        drafts, rollouts = drafter.propose([request])
        position, node = len(request.output_ids), -1
        kept = 0
        for j in range(drafts.sizes[0]):
            if (
                drafts.parents[0, j] == node
                and position + kept < len(text) - 1
                and drafts.tokens[0, j] == text[position + kept]
            ):
                node, kept = j, kept + 1
        emitted = text[position : position + kept + 1]
        drafter.observe(drafts, rollouts, np.array([len(emitted)], np.int32))
        request.output_ids.extend(emitted)
        steps += 1
    return steps


def finish(drafter, request, reason):
    request.finished_reason = reason()
    drafter.finish(request.rid)


def test_a_rollout_is_drafted_from_its_predecessor():
    drafter, counters = make()
    first = Request("a")
    assert decode(drafter, first, TEXT) > 0.8 * len(TEXT)
    finish(drafter, first, FINISH_MATCHED_TOKEN)
    assert decode(drafter, Request("b"), TEXT) < len(TEXT) / 4
    assert counters.accepted > len(TEXT) / 2
    assert counters.rollouts == 2


def test_a_running_sibling_is_drafted_from_too():
    drafter, _ = make()
    decode(drafter, Request("a"), TEXT)
    assert decode(drafter, Request("b"), TEXT) < len(TEXT) / 4


def test_other_problems_do_not_mix_unless_they_share():
    for shared in (False, True):
        drafter, _ = make(shared=shared)
        decode(drafter, Request("a"), TEXT)
        steps = decode(drafter, Request("b", prompt=PROMPT[::-1]), TEXT)
        assert (steps < len(TEXT) / 2) == shared


def test_drafts_stop_before_the_budget_of_the_request():
    drafter, _ = make()
    decode(drafter, Request("a"), TEXT)
    short = Request("b", max_new_tokens=4)
    short.output_ids.extend(TEXT[:2])
    drafts, _ = drafter.propose([short])
    assert drafts.sizes.tolist() == [1]
    short.output_ids.extend(TEXT[2:3])
    drafts, _ = drafter.propose([short])
    assert drafts.sizes.tolist() == [0]


def test_an_aborted_rollout_is_continued_when_it_is_resubmitted():
    drafter, _ = make()
    aborted = Request("a")
    decode(drafter, aborted, TEXT[:20])
    finish(drafter, aborted, FINISH_ABORT)
    drafter.weights_updated()
    rest = Request("b", prompt=[*PROMPT, *TEXT[:20]])
    decode(drafter, rest, TEXT[20:])
    finish(drafter, rest, FINISH_MATCHED_TOKEN)
    assert drafter.describe()["problems"] == 1
    assert drafter.describe()["history"]["tokens"] == len(TEXT)
    assert decode(drafter, Request("c"), TEXT) < len(TEXT) / 4


def test_an_abandoned_rollout_is_given_up_in_the_end():
    drafter, _ = make()
    decode(drafter, aborted := Request("a"), TEXT[:20])
    finish(drafter, aborted, FINISH_ABORT)
    for version in range(4):
        decode(drafter, other := Request(f"b{version}"), TEXT)
        finish(drafter, other, FINISH_MATCHED_TOKEN)
        drafter.weights_updated()
    assert drafter.describe()["history"]["running"] == 0


def test_the_window_bounds_the_history():
    drafter, _ = make(window=2)
    for version in range(6):
        decode(drafter, request := Request(f"r{version}"), TEXT)
        finish(drafter, request, FINISH_MATCHED_TOKEN)
        drafter.weights_updated()
    assert drafter.describe()["history"]["tokens"] <= 3 * len(TEXT)


def emit(drafter, rid):
    decode(drafter, request := Request(rid), TEXT)
    finish(drafter, request, FINISH_MATCHED_TOKEN)


def test_a_version_that_emitted_nothing_is_none():
    drafter, _ = make()
    drafter.weights_updated()
    drafter.cache_flushed()
    assert drafter.describe()["policy_version"] == 0


def test_the_signals_of_one_update_count_once():
    drafter, _ = make()
    for version in range(3):
        emit(drafter, f"r{version}")
        drafter.cache_flushed()  # before the update
        drafter.weights_updated()
        drafter.weights_updated()  # a second part of it
        drafter.cache_flushed()
        assert drafter.describe()["policy_version"] == version + 1


def test_an_update_counts_while_rollouts_go_on():
    drafter, _ = make()
    request = Request("a")
    for version in range(3):
        decode(drafter, request, [*request.output_ids, *TEXT], start=0)
        drafter.weights_updated()
        assert drafter.describe()["policy_version"] == version + 1


def test_a_flush_counts_only_until_the_first_update_is_announced():
    drafter, _ = make()
    emit(drafter, "a")
    drafter.cache_flushed()
    assert drafter.describe()["policy_version"] == 1
    emit(drafter, "b")
    drafter.weights_updated()
    assert drafter.describe()["policy_version"] == 2
    emit(drafter, "c")
    drafter.cache_flushed()
    assert drafter.describe()["policy_version"] == 2


def test_requests_that_are_nobodys_rollout_are_left_alone():
    drafter, counters = make()
    for request in (
        Request("HEALTH_CHECK_1"),
        Request("short", prompt=[1, 2, 3]),
        Request("score", max_new_tokens=1),
    ):
        request.output_ids.extend(TEXT[:1])
        drafts, rollouts = drafter.propose([request])
        assert drafts.width == 1
        assert rollouts == [None]
    assert counters.rollouts == 0


def test_multi_modal_requests_are_told_why_they_are_left_alone():
    drafter, counters = make()
    request = Request("image")
    request.multimodal_inputs = object()
    assert decode(drafter, request, TEXT) == len(TEXT) - 1
    assert counters.rollouts == 0
    assert request.customized_info["das"] == [{"proposed": 0, "accepted": 0, "not_drafted": "multi-modal input"}]


def test_a_batch_may_mix_both_kinds():
    drafter, _ = make(shape="chain")
    decode(drafter, Request("a"), TEXT)
    mixed = [Request("HEALTH_CHECK_1"), Request("b"), Request("c", prompt=[1, 2])]
    for request in mixed:
        request.output_ids.extend(TEXT[:3])
    drafts, rollouts = drafter.propose(mixed)
    assert [rollout is not None for rollout in rollouts] == [False, True, False]
    assert drafts.sizes[0] == drafts.sizes[2] == 0
    assert drafts.tokens[1, : drafts.sizes[1]].tolist() == TEXT[3 : 3 + drafts.sizes[1]]


def test_a_request_that_ends_unannounced_is_swept():
    drafter, _ = make()
    decode(drafter, gone := Request("a"), TEXT[:10])
    gone.finished_reason = FINISH_ABORT()
    decode(drafter, Request("b", prompt=PROMPT[::-1], max_new_tokens=2000), list(range(500)))
    assert drafter.describe()["live_rollouts"] == 1


def test_a_request_id_may_be_used_again():
    drafter, counters = make()
    decode(drafter, Request("same"), TEXT)
    decode(drafter, Request("same"), TEXT)
    assert counters.rollouts == 2
    assert drafter.describe()["live_rollouts"] == 1


class NoWayBack:
    """A grammar whose matcher cannot roll back."""

    from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject

    rollback = BaseGrammarObject.rollback


def test_what_a_draft_cannot_reproduce_is_not_drafted_for_but_learnt():
    drafter, _ = make()
    request = Request("a")
    request.grammar = NoWayBack()
    assert reason_not_to_draft(request) is not None
    assert decode(drafter, request, [*TEXT, *TEXT]) == 2 * len(TEXT) - 1
    finish(drafter, request, FINISH_MATCHED_TOKEN)
    assert request.customized_info["das"][0]["not_drafted"] == reason_not_to_draft(request)
    assert decode(drafter, Request("b"), TEXT) < len(TEXT) / 4


@pytest.mark.parametrize(
    "sampling",
    [{"frequency_penalty": 0.1}, {"presence_penalty": 0.1}, {"repetition_penalty": 1.1}, {"min_new_tokens": 3}],
)
def test_what_a_draft_can_reproduce_is_drafted_for(sampling):
    drafter, _ = make()
    decode(drafter, Request("a", **sampling), TEXT)
    assert decode(drafter, Request("b", **sampling), TEXT) < len(TEXT) / 4


def distribution_after(token):
    """A distribution of two tokens that tells what it follows: cells of `Known`."""
    return [token + 100, token + 200], [0.5, 0.25]


def emit_with_distributions(drafter, request, text):
    """Let a request emit `text`, telling the drafter of every node what the target knew there. Returns all drafts."""
    first = Known.none(1)
    first.ids[0, :2], first.probabilities[0, :2] = distribution_after(-1)
    drafter.learn_first([request], first)
    request.output_ids.append(text[0])
    drafted = []
    while len(request.output_ids) < len(text):
        drafts, rollouts = drafter.propose([request])
        tree, roots = DraftTree(drafts), np.array(request.output_ids[-1:])
        tokens = np.concatenate([roots, drafts.tokens[0]])
        position = len(request.output_ids)
        sampled = np.array([[text[min(position + d, len(text) - 1)] for d in tree.depth[0]]])
        known = Known.none(1, drafts.width)
        for node, token in enumerate(tokens.tolist()):
            known.ids[0, node, :2], known.probabilities[0, node, :2] = distribution_after(token)
        matched = match(tree, sampled)
        drafter.learn(rollouts, tree, roots, matched, known)
        request.output_ids.extend(text[position : position + matched.accept_lens[0]])
        drafted.append(drafts)
    return drafted


@pytest.mark.parametrize("ended", [FINISH_MATCHED_TOKEN, FINISH_ABORT])
def test_distributions_are_learnt_beside_their_tokens(ended):
    drafter, _ = make()
    text = list(range(40))
    for rid in "ab":  # the second is drafted for, so that a step emits several
        emit_with_distributions(drafter, request := Request(rid), text)
        finish(drafter, request, ended)
    tree = drafter.history.tree(0)
    for token, following in pairwise(text):
        found, ids, probabilities = tree.latest([token])
        assert found == following
        assert ids.tolist() == distribution_after(token)[0]
        assert probabilities == pytest.approx(distribution_after(token)[1], abs=0.01)


def test_the_prefills_distribution_is_learnt():
    drafter, _ = make()
    emit_with_distributions(drafter, request := Request("a"), [*PROMPT[:2], PROMPT[-1]])
    _, (rollout,) = drafter.propose([request])
    # The prompt's last token has been seen once before: at the prompt's end, where the prefill drew what followed.
    found, ids, _ = rollout.sequence.latest(1)[0]
    assert (found, ids.tolist()) == (PROMPT[0], distribution_after(-1)[0])


def test_distributions_that_others_would_not_draw_from_are_not_learnt():
    drafter, _ = make()
    request = Request("a")
    request.grammar = NoWayBack()
    emit_with_distributions(drafter, request, [5, 6, 7, 8, 5])
    finish(drafter, request, FINISH_MATCHED_TOKEN)
    _, ids, _ = drafter.history.tree(0).latest([6])
    assert ids.tolist() == []


def test_figures_of_a_request_are_its_own():
    drafter, counters = make()
    decode(drafter, Request("a"), TEXT)
    decode(drafter, request := Request("b"), TEXT)
    finish(drafter, request, FINISH_MATCHED_TOKEN)
    figures = request.customized_info["das"][0]
    assert figures["accepted"] <= counters.accepted
    assert figures["verify_steps"] + figures["accepted"] == len(TEXT) - 1
    assert 1 < figures["mean_width"] <= 9
    assert figures["length_class"] in ("short", "medium", "long")
    assert figures["not_drafted"] is None
