"""The distributions that rows were sampled from, read from what the sampler leaves behind.

The CPU engine's sampler tells the likeliest tokens of every row it draws from. Other samplers leave, in the place of
the logits, probabilities after temperature and before filters (`Sampler.forward`, `sglang/srt/layers/sampler.py`), or
the logits where all rows are greedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sglang_das.engine.known import CELLS, Known


def prepare(sampler: Any) -> None:
    """Ask a sampler that can tell its rows' likeliest tokens to do so."""
    if hasattr(sampler, "likeliest"):
        sampler.cells = CELLS


@dataclass(frozen=True)
class Distributions:
    """What a call of the sampler left; valid until its next one."""

    sampler: Any
    values: torch.Tensor
    """The sampler's float32 `[rows, vocabulary]`, which it overwrote."""
    info: Any
    """The rows' sampling parameters (`SamplingBatchInfo`)."""
    rows: NDArray[np.int64]
    """Where the rows belong, as flat indices of `shape`."""
    shape: tuple[int, ...]

    def read(self) -> Known:
        """The likeliest tokens on the host, `[*shape, CELLS]`; nothing is known where there was no row."""
        told = getattr(self.sampler, "likeliest", None)
        found = Known(told.ids, told.probabilities) if told is not None else likeliest(self.values, self.info)
        known = Known.none(int(np.prod(self.shape)))
        known.put(self.rows, found)
        return Known(known.ids.reshape(*self.shape, CELLS), known.probabilities.reshape(*self.shape, CELLS))


def likeliest(values: torch.Tensor, info: Any) -> Known:
    """The likeliest tokens of each row after its filters, computed on the device.

    Args:
        values: float32 `[rows, vocabulary]` as the sampler left them.
        info: the rows' sampling parameters.
    """
    if info.is_all_greedy:
        top, ids = values.topk(min(CELLS, values.shape[1]))
        top = (top - values.logsumexp(-1, keepdim=True)).exp()
    elif info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling:
        top, ids = _left_by_filters(values, info)
    else:
        top, ids = values.topk(min(CELLS, values.shape[1]))
    top, ids = top.clamp(max=1.0).cpu(), torch.where(top > 0, ids, -1).cpu()
    known = Known.none(len(values))
    known.ids[:, : ids.shape[1]], known.probabilities[:, : top.shape[1]] = ids.numpy(), top.numpy()
    return known


def _left_by_filters(probabilities: torch.Tensor, info: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the engine's filters leave (`top_k_top_p_min_p_sampling_from_probs_torch`), as shares of it.

    Greedy rows, which the engine filters down to one token, keep their softmax.
    """
    ordered, ids = probabilities.sort(dim=-1, descending=True)
    drop = torch.arange(ordered.shape[1], device=ordered.device) >= info.top_ks[:, None]
    drop |= ordered.cumsum(-1) - ordered > info.top_ps[:, None]
    drop |= ordered < ordered[:, :1] * info.min_ps[:, None]
    kept = ordered.masked_fill(drop & (info.top_ks > 1)[:, None], 0.0)
    return (kept / kept.sum(-1, keepdim=True))[:, :CELLS], ids[:, :CELLS]
