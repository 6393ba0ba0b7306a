"""The distributions drawn from are read alike from the CPU engine's sampler and from what others leave behind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sglang_das.engine.known import CELLS


def sampling(rows, *, greedy=False):
    """Parameters of rows of all kinds, as `SamplingBatchInfo` holds them."""
    info = SimpleNamespace(
        top_ks=torch.full((rows,), 1 << 30, dtype=torch.int32),
        top_ps=torch.ones(rows),
        min_ps=torch.zeros(rows),
        sampling_seed=torch.arange(rows),
        is_all_greedy=greedy,
    )
    if greedy:
        info.top_ks[:] = 1
    else:
        info.top_ks[::5], info.top_ks[1::5], info.top_ps[2::5], info.min_ps[3::5] = 1, 5, 0.7, 0.2
    info.need_top_k_sampling, info.need_top_p_sampling, info.need_min_p_sampling = [not greedy] * 3
    return info


@pytest.mark.parametrize("vocabulary", [5, 300])
def test_both_ways_to_read_agree(vocabulary):
    from sglang_das.cpu.sampler import Likeliest, draw, likeliest_of_logits
    from sglang_das.engine.distributions import likeliest

    logits = torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(1)) * 2
    probabilities = torch.softmax(logits, -1)
    info = sampling(20)
    told = Likeliest.none(20, CELLS)
    draw(probabilities.clone(), None, info, torch.arange(20), told)
    read = likeliest(probabilities, info)
    assert np.array_equal(read.ids, told.ids)
    np.testing.assert_allclose(read.probabilities, told.probabilities, rtol=1e-4)

    told, read = likeliest_of_logits(logits, CELLS), likeliest(logits, sampling(20, greedy=True))
    assert np.array_equal(read.ids, told.ids)
    np.testing.assert_allclose(read.probabilities, told.probabilities, rtol=1e-4)


def test_a_sum_above_one_by_rounding_is_no_probability_above_one():
    from sglang_das.engine.distributions import likeliest

    logits = torch.full((1, 300), -50.0)
    logits[0, 7] = 1e3
    known = likeliest(logits, sampling(1, greedy=True))
    assert known.ids[0, 0] == 7
    assert known.probabilities.max() == 1.0
