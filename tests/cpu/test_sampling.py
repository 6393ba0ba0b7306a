"""Seeded sampling draws what the engine's own seeded sampler would have drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

VOCABULARY = 49152
ALL = 1 << 30


def gumbel(seeds, positions, columns):
    """The engine's noise, `[rows, columns]` (`multinomial_with_seed`, `sglang/srt/layers/sampler.py`)."""
    from sglang_das._native import murmur_hash32

    uniform = torch.from_numpy(murmur_hash32(seeds, positions, columns).astype(np.float64) / (2**32 - 1))
    return -torch.log(-torch.log(uniform).clamp(min=torch.finfo(torch.float64).min, max=-(2.0**-32)))


def murmur(seed, position, column):
    """MurmurHash3 of four words, written out from its definition."""
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, position, column]
    h = 0
    for k in words:
        k = k * 0xCC9E2D51 & 0xFFFFFFFF
        k = (k << 15 | k >> 17) & 0xFFFFFFFF
        h ^= k * 0x1B873593 & 0xFFFFFFFF
        h = (h << 13 | h >> 19) & 0xFFFFFFFF
        h = h * 5 + 0xE6546B64 & 0xFFFFFFFF
    h ^= 16
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def test_the_hash_is_murmur3():
    from sglang_das._native import murmur_hash32

    seeds = np.array([0, 1, -1, 2**40 + 7, -(2**60)], np.int64)
    positions = np.array([0, 5, 17, 1023, 99], np.int64)
    columns = np.array([0, 1, 49151, 151935], np.int64)
    expected = [[murmur(int(s), int(p), int(c)) for c in columns] for s, p in zip(seeds, positions, strict=True)]
    assert murmur_hash32(seeds, positions, columns).tolist() == expected


def batch(rows, *, top_k=ALL, top_p=1.0, min_p=0.0, seed=0):
    """Sampling parameters of `rows` rows, as `SamplingBatchInfo` holds them."""
    generator = np.random.default_rng(seed)
    return SimpleNamespace(
        top_ks=torch.full((rows,), top_k, dtype=torch.int32),
        top_ps=torch.full((rows,), top_p),
        min_ps=torch.full((rows,), min_p),
        sampling_seed=torch.from_numpy(generator.integers(-(2**62), 2**62, rows)),
    ), torch.from_numpy(generator.integers(0, 4096, rows))


def probabilities(rows, sharpness, seed=0):
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * sharpness
    return torch.softmax(logits, -1)


def draw(probs, info, positions):
    from sglang_das.cpu.sampler import draw as native

    return native(probs.clone(), None, info, positions).long()


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 2.0, 8.0, 30.0])
def test_unfiltered_rows_equal_the_engines_formula(sharpness):
    rows = 96
    probs = probabilities(rows, sharpness)
    info, positions = batch(rows, seed=int(10 * sharpness))
    noise = gumbel(info.sampling_seed.numpy(), positions.numpy(), np.arange(VOCABULARY))
    expected = (torch.log(probs).double() + noise).argmax(-1)
    assert torch.equal(draw(probs, info, positions), expected)


def test_hard_rows_equal_the_engines_formula():
    probs = torch.zeros(5, VOCABULARY)
    probs[0, 7] = 1.0
    probs[1, 100:200] = 0.01
    probs[2] = 1 / VOCABULARY
    probs[3, :2] = torch.tensor([1.0, 1e-38])
    probs[4, -1], probs[4, 0] = 0.5, 0.5
    for seed in range(20):
        info, positions = batch(5, seed=seed)
        noise = gumbel(info.sampling_seed.numpy(), positions.numpy(), np.arange(VOCABULARY))
        assert torch.equal(draw(probs, info, positions), (torch.log(probs).double() + noise).argmax(-1))


@pytest.mark.parametrize("filters", [{"top_k": 20}, {"top_p": 0.7}, {"top_k": 50, "top_p": 0.9}])
def test_filtered_rows_with_a_seed_of_their_own_draw_by_rank(filters):
    rows = 24
    probs = probabilities(rows, 2.0)
    info, positions = batch(rows, **filters)
    ordered, tokens = probs.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(VOCABULARY)
    kept = ordered.clone()
    kept[(ranks >= info.top_ks[:, None]) | (ordered.cumsum(-1) - ordered > info.top_ps[:, None])] = 0
    noise = gumbel(info.sampling_seed.numpy(), positions.numpy(), np.arange(VOCABULARY))
    winner = (torch.log(kept.double()) + noise).argmax(-1, keepdim=True)
    assert torch.equal(draw(probs, info, positions), tokens.gather(1, winner)[:, 0])


@pytest.mark.parametrize("filters", [{"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 50, "min_p": 0.05}])
def test_filtered_rows_stay_within_their_filters(filters):
    rows = 64
    probs = probabilities(rows, 2.0)
    info, positions = batch(rows, **filters)
    chosen = draw(probs, info, positions)
    picked = probs.gather(1, chosen[:, None])[:, 0]
    if "top_k" in filters:
        assert (picked >= probs.topk(filters["top_k"]).values[:, -1]).all()
    if "min_p" in filters:
        assert (picked >= filters["min_p"] * probs.max(-1).values).all()
    if "top_p" in filters:
        above = torch.where(probs > picked[:, None], probs, 0).sum(-1)
        assert (above <= filters["top_p"] + 1e-5).all()


def test_a_row_draws_the_same_in_any_batch():
    probs = probabilities(40, 2.0)
    info, positions = batch(40)
    info.top_ks[::3], info.top_ps[1::3] = 1, 0.8
    together = draw(probs, info, positions)
    for row in range(40):
        alone = SimpleNamespace(**{name: value[row : row + 1] for name, value in vars(info).items()})
        assert draw(probs[row : row + 1], alone, positions[row : row + 1]) == together[row]


def test_requests_without_a_seed_get_one_that_stays():
    from sglang_das.cpu.seeds import seed_of

    def request(seed):
        return SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed))

    first, second = request(None), request(None)
    assert seed_of(first) == seed_of(first)
    assert seed_of(first) != seed_of(second)
    assert seed_of(request(-5)) == -5


def test_seeds_beyond_64_bits_and_the_mark_of_unseeded_requests():
    from sglang_das.cpu.seeds import draws_by_token, give_seeds

    def request(seed):
        return SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed))

    info = SimpleNamespace(sampling_seed=None, min_ps=torch.tensor([0.0, 0.0, 0.2]), device="cpu")
    give_seeds(info, [request(2**64 - 1), request(None), request(7)])
    assert info.sampling_seed[0] == -1
    assert info.sampling_seed[2] == 7
    assert draws_by_token(info.min_ps).tolist() == [False, True, True]
    assert (info.min_ps <= torch.tensor([0.0, 0.0, 0.2])).all()  # the mark filters nothing


def test_filtered_rows_without_a_seed_of_their_own_draw_by_token():
    rows = 64
    probs = probabilities(rows, 2.0)
    info, positions = batch(rows, top_k=20)
    info.min_ps.fill_(-0.0)
    left = torch.zeros_like(probs).scatter_(1, probs.topk(20).indices, probs.topk(20).values)
    noise = gumbel(info.sampling_seed.numpy(), positions.numpy(), np.arange(VOCABULARY))
    assert torch.equal(draw(probs, info, positions), (torch.log(left).double() + noise).argmax(-1))


def test_the_engines_own_function_agrees():
    """`multinomial_with_seed` itself, uncompiled: its formula is the same and compiling it takes half a minute."""
    from sglang.srt.layers.sampler import multinomial_with_seed

    engine = multinomial_with_seed._torchdynamo_orig_callable
    for seed in range(40):
        probs = probabilities(32, [0.5, 2.0, 8.0][seed % 3], seed=seed)
        info, positions = batch(32, seed=seed)
        expected = engine(torch.log(probs), info.sampling_seed, positions)[:, 0]
        assert torch.equal(draw(probs, info, positions), expected)


def test_softmax_in_place_has_the_bits_of_softmax():
    from sglang_das.cpu.sampler import softmax_in_place

    logits = torch.randn(9, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 5
    wanted = torch.softmax(logits, -1)
    assert torch.equal(softmax_in_place(logits), wanted)
    alone = torch.randn(9, VOCABULARY, generator=torch.Generator().manual_seed(0))[4:5] * 5
    assert torch.equal(softmax_in_place(alone.clone()), wanted[4:5])


def expected_likeliest(probs, info, cells):
    """By a full sort: the filters, then the shares of what is left."""
    ordered, tokens = probs.double().sort(dim=-1, descending=True, stable=True)
    greedy = info.top_ks[:, None] <= 1
    drop = torch.arange(VOCABULARY) >= info.top_ks[:, None]
    drop |= ordered.cumsum(-1) - ordered > info.top_ps[:, None]
    drop |= ordered < ordered[:, :1] * info.min_ps[:, None]
    kept = torch.where(drop & ~greedy, 0, ordered)
    shares = kept / kept.sum(-1, keepdim=True)
    return torch.where(kept > 0, tokens, -1)[:, :cells].numpy(), shares[:, :cells].numpy()


def test_the_likeliest_tokens_are_those_of_the_distribution_drawn_from():
    from sglang_das.cpu.sampler import Likeliest
    from sglang_das.cpu.sampler import draw as native

    rows = 40
    probs = probabilities(rows, 2.0)
    info, positions = batch(rows)
    info.top_ks[::5], info.top_ks[1::5], info.top_ps[2::5], info.min_ps[3::5] = 1, 5, 0.8, 0.1
    likeliest = Likeliest.none(rows, 8)
    tokens = native(probs.clone(), None, info, positions, likeliest)
    assert torch.equal(tokens, native(probs.clone(), None, info, positions)), "asking changes nothing"
    ids, shares = expected_likeliest(probs, info, 8)
    assert np.array_equal(likeliest.ids, ids)
    np.testing.assert_allclose(likeliest.probabilities, shares, rtol=1e-4)


def test_the_likeliest_tokens_of_logits_are_those_of_their_softmax():
    from sglang_das.cpu.sampler import likeliest_of_logits

    logits = torch.randn(9, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    logits[0, 5:] = -torch.inf
    before = logits.clone()
    likeliest = likeliest_of_logits(logits, 8)
    assert torch.equal(logits, before)
    info, _ = batch(9, top_k=1)
    ids, shares = expected_likeliest(torch.softmax(logits, -1), info, 8)
    assert np.array_equal(likeliest.ids, ids)
    np.testing.assert_allclose(likeliest.probabilities, shares, rtol=1e-4)


def test_rows_without_seeds_are_refused():
    info, positions = batch(1)
    info.sampling_seed = None
    with pytest.raises(ValueError, match="sampling_seed"):
        draw(probabilities(1, 1.0), info, positions)
