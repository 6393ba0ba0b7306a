"""The noise the drafter draws with is the sampler's, for the row that decides a node.

The target here is a table: the next token depends on the last one alone, and no token has more than eight followers, so
a history that has seen every token knows every distribution exactly. Then a coupled draft must come true.
"""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sglang_das.engine import coupling
from sglang_das.engine.config import DasConfig
from sglang_das.engine.coupling import Coupling, Noise
from sglang_das.engine.drafting import Drafter
from sglang_das.engine.drafts import DraftTree
from sglang_das.engine.known import CELLS, Known
from sglang_das.engine.matching import match
from sglang_das.engine.metrics import Counters

VOCABULARY = 40
ALL = 1 << 30


def followers():
    """Probabilities `[VOCABULARY, VOCABULARY]` of the next token after each: eight followers, in 255ths as kept."""
    generator = np.random.default_rng(0)
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for row in table:
        parts = np.diff([0, *np.sort(generator.choice(np.arange(1, 255), CELLS - 1, replace=False)), 255])
        row[generator.choice(VOCABULARY, CELLS, replace=False)] = parts / 255
    return torch.from_numpy(table)


TABLE = followers()


def request(number, *, seed=None, prompt_tokens=16, top_k=ALL, top_p=1.0, min_p=0.0):
    sampling = SimpleNamespace(
        max_new_tokens=10_000,
        custom_params=None,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        repetition_penalty=1.0,
        min_new_tokens=0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        sampling_seed=seed,
    )
    return SimpleNamespace(
        rid=str(number),
        origin_input_ids_unpadded=array("q", range(prompt_tokens)),
        output_ids=array("q"),
        grammar=None,
        custom_logit_processor=None,
        finished=lambda: False,
        multimodal_inputs=None,
        sampling_params=sampling,
    )


def sample(request, tokens, positions):
    """The sampler's tokens after each of `tokens`, and what it tells of them."""
    from sglang_das.cpu.sampler import Likeliest, draw
    from sglang_das.cpu.seeds import seed_of

    rows, sampling = len(tokens), request.sampling_params
    info = SimpleNamespace(
        top_ks=torch.full((rows,), sampling.top_k, dtype=torch.int32),
        top_ps=torch.full((rows,), sampling.top_p),
        min_ps=torch.full((rows,), -0.0 if sampling.sampling_seed is None else sampling.min_p),
        sampling_seed=torch.full((rows,), seed_of(request)),
    )
    told = Likeliest.none(rows, CELLS)
    drawn = draw(TABLE[tokens].clone(), None, info, torch.as_tensor(positions), told)
    return drawn.numpy().astype(np.int64), Known(told.ids, told.probabilities)


def decode(drafter, request, length):
    """Let the target emit `length` tokens with the drafter's help; returns how many drafts were made, and kept."""
    drafted = kept = 0
    committed = len(request.origin_input_ids_unpadded)
    first, known = sample(request, [request.origin_input_ids_unpadded[-1]], [committed - 1])
    drafter.learn_first([request], known)
    request.output_ids.extend(first.tolist())
    while len(request.output_ids) < length:
        drafts, rollouts = drafter.propose([request])
        tree, roots = DraftTree(drafts), np.array(request.output_ids[-1:])
        positions = committed + len(request.output_ids) - 1 + tree.depth[0]
        sampled, known = sample(request, np.concatenate([roots, drafts.tokens[0]]), positions)
        matched = match(tree, sampled[None])
        drafter.learn(rollouts, tree, roots, matched, Known(known.ids[None], known.probabilities[None]))
        request.output_ids.extend(sampled[matched.path[0, : matched.accept_lens[0]]].tolist())
        drafted += int(drafts.sizes[0])
        kept += int(matched.accept_lens[0]) - 1
    return drafted, kept


def share_kept(noise_of, *, coupled=True, **sampling):
    config = DasConfig(arm="unlimited", shape="chain", coupled=coupled)
    drafter = Drafter(config, max_width=4, counters=Counters(), noise_of=noise_of)
    for number in range(3):
        decode(drafter, request(number, **{"seed": number, **sampling}), 400)
    drafted, kept = decode(drafter, request(9, **{"seed": 99, **sampling}), 600)
    assert drafted > 300
    return kept / drafted


KNOWN = [{}, {"seed": -(2**40) - 3}, {"seed": None}, {"seed": None, "top_k": 5}, {"min_p": 0.1}, {"top_k": 1}]


@pytest.mark.parametrize("sampling", KNOWN, ids=str)
def test_coupled_drafts_come_true(sampling):
    assert share_kept(coupling.of_rowwise_sampler, **sampling) > 0.95


def test_drafts_with_other_noise_or_none_seldom_do():
    def of_another_seed(request):
        return Noise(Coupling.SEEDED, request.sampling_params.sampling_seed + 1)

    assert share_kept(of_another_seed) < 0.5
    assert share_kept(coupling.of_rowwise_sampler, coupled=False) < 0.5


def test_noise_is_known_where_its_columns_are_token_ids():
    def code(**sampling):
        return coupling.of_rowwise_sampler(request(0, **sampling)).coupling

    assert code(seed=3) == code(seed=None, top_k=5) == code(seed=3, top_k=5, min_p=0.1) == Coupling.SEEDED
    assert code(seed=3, top_k=5) == code(seed=3, top_p=0.9) == Coupling.BLIND
    assert code(seed=3, top_k=1) == Coupling.GREEDY


def test_the_engines_own_sampler_has_seeds_in_deterministic_mode_alone():
    deterministic, other = coupling.of_deterministic_engine, coupling.unknown
    assert deterministic(request(0, seed=3)) == (Coupling.SEEDED, 3)
    assert deterministic(request(0)) == (Coupling.SEEDED, 42)
    assert deterministic(request(0, top_k=1)).coupling == other(request(0, top_k=1)).coupling == Coupling.GREEDY
    assert other(request(0, seed=3)).coupling == Coupling.BLIND


def test_noise_keyed_by_rank_is_not_drafted_with():
    def first_draft(**options):
        drafter = Drafter(
            DasConfig(arm="unlimited"), max_width=4, counters=Counters(), noise_of=coupling.of_rowwise_sampler
        )
        decode(drafter, request(0, seed=0), 300)
        again = request(1, seed=1)
        again.output_ids.append(7)
        return drafter.propose([again], **options)[0].tokens.tolist()

    assert first_draft() == first_draft()
    assert first_draft(noise_by_rank=True) != first_draft()
