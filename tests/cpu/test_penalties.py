"""Penalties at drafted nodes have the bits of the engine's penalizers fed with the node's path, token by token."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

VOCABULARY = 12
EOS = 1


def request_with(output, *, frequency=0.0, presence=0.0, repetition=1.0, least=0, stops=()):
    return SimpleNamespace(
        output_ids=array("q", output),
        eos_token_ids={EOS},
        tokenizer=SimpleNamespace(eos_token_id=EOS, additional_stop_token_ids=None),
        sampling_params=SimpleNamespace(
            frequency_penalty=frequency,
            presence_penalty=presence,
            repetition_penalty=repetition,
            min_new_tokens=least,
            stop_token_ids=set(stops),
        ),
    )


def plain(request, path, logits):
    """The engine's own penalties of one row, as its speculative decoding orders them."""
    import torch
    from sglang.srt.sampling import penaltylib
    from sglang_das.cpu import penalties

    class Batch(SimpleNamespace):
        pass

    batch = Batch(reqs=[request], device="cpu")
    kinds = [
        penaltylib.BatchedRepetitionPenalizer,
        penaltylib.BatchedMinNewTokensPenalizer,
        penaltylib.BatchedPresencePenalizer,
        penaltylib.BatchedFrequencyPenalizer,
    ]
    orchestrator = penaltylib.BatchedPenalizerOrchestrator(VOCABULARY, batch, dict.fromkeys(kinds))
    penalties.order(SimpleNamespace(penalizer_orchestrator=orchestrator))
    for token in [*request.output_ids, *path]:
        orchestrator.cumulate_output_tokens(torch.tensor([token]))
    row = logits.clone()[None]
    orchestrator.apply(row)
    return row[0]


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """The engine compiles its repetition penalty, which takes half a minute."""
    from sglang.srt.sampling.penaltylib import repetition_penalty

    scale = repetition_penalty.apply_scaling_penalties
    monkeypatch.setattr(
        repetition_penalty, "apply_scaling_penalties", getattr(scale, "_torchdynamo_orig_callable", scale)
    )


tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=30)
requests = st.builds(
    request_with,
    tokens,
    frequency=st.sampled_from([0.0, 0.7, -0.3]),
    presence=st.sampled_from([0.0, 0.4, -1.1]),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    least=st.integers(0, 35),
    stops=st.sets(st.integers(0, VOCABULARY), max_size=2).map(lambda stops: stops - {VOCABULARY}),
)


@st.composite
def drafts_of(draw, count):
    """Random draft trees, parents before children."""
    from sglang_das.engine.drafts import Drafts

    width = draw(st.integers(1, 6))
    sizes = np.array([draw(st.integers(0, width - 1)) for _ in range(count)], np.int32)
    parents = np.full((count, width - 1), -1, np.int32)
    values = np.zeros((count, width - 1), np.int32)
    for i, size in enumerate(sizes):
        for node in range(size):
            parents[i, node] = draw(st.integers(-1, node - 1))
            values[i, node] = draw(st.integers(0, VOCABULARY - 1))
    return Drafts(values, parents, np.zeros((count, width - 1), np.float32), sizes)


def path_to(drafts, i, node):
    path = []
    while node > 0:
        path.append(int(drafts.tokens[i, node - 1]))
        node = int(drafts.parents[i, node - 1]) + 1
    return path[::-1]


@given(st.lists(requests, min_size=1, max_size=3).flatmap(lambda rs: st.tuples(st.just(rs), drafts_of(len(rs)))))
def test_penalties_at_every_node(batch):
    import torch
    from sglang_das.engine.drafts import DraftTree
    from sglang_das.engine.penalties import at_nodes

    wanted, drafts = batch
    used = DraftTree(drafts).used()
    rows = np.cumsum(used.ravel()).reshape(used.shape) - 1
    logits = torch.randn(int(used.sum()), VOCABULARY, generator=torch.Generator().manual_seed(0)) * 5
    expected = logits.clone()
    for i, request in enumerate(wanted):
        for node in range(drafts.sizes[i] + 1):
            expected[rows[i, node]] = plain(request, path_to(drafts, i, node), logits[rows[i, node]])
    found = at_nodes(wanted, drafts, rows)
    if found is not None:
        found.apply(logits)
    assert torch.equal(logits, expected)


def test_nobody_who_asks_for_none_pays():
    from sglang_das.engine.penalties import at_roots

    assert at_roots([request_with([1, 2, 3]), request_with([1, 2, 3], least=3)]) is None


def test_rows_of_others_are_left_alone():
    import torch
    from sglang_das.engine.penalties import at_roots

    logits = torch.arange(3.0 * VOCABULARY).view(3, VOCABULARY)
    untouched = logits.clone()
    at_roots([request_with([5]), request_with([5], frequency=0.5), request_with([5])]).apply(logits)
    assert torch.equal(logits[[0, 2]], untouched[[0, 2]])
    assert logits[1, 5] == untouched[1, 5] - 0.5


def test_the_output_may_grow_and_begin_again():
    """As it does over steps, and where a request loses its output when it is retracted."""
    import torch
    from sglang_das.engine.penalties import at_roots

    request = request_with([], frequency=0.5)
    for output in ([3], [3, 3, 4], [4]):
        request.output_ids = array("q", output)
        logits = torch.zeros(1, VOCABULARY)
        at_roots([request]).apply(logits)
        assert logits[0, [3, 4]].tolist() == [-0.5 * output.count(3), -0.5 * output.count(4)]
