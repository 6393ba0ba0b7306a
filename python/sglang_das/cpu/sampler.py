"""Sampling with per-request noise, decided row by row.

SGLang's seeded sampler lets the whole batch decide whether the noise's columns are token ids or sorted ranks, and
compiles on first use. Here each row decides for itself, and the winner is found natively:

- greedy: the argmax of the raw logits;
- filters inactive: columns are token ids, as the engine's `multinomial_with_seed` has them;
- top-k or top-p with a seed of the request's own: columns are ranks, as the engine's filtered path has them;
- min-p, or no seed of the request's own: columns are token ids, over the tokens the filters leave.

Wherever a batch is of one kind, that equals the engine's draw for the same seeds.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.layers.sampler import Sampler, _SamplingMaskCapture
from sglang.srt.runtime_context import get_parallel
from sglang.srt.sampling.sampling_params import TOP_K_ALL

from sglang_das._native import filter_columns, race_columns, rank_columns

from .seeds import draws_by_token, share_nonce


class SeededSampler(Sampler):  # type: ignore[misc]
    """SGLang's sampler with the draw replaced. Rows may be any: one per request, or several for verification."""

    def __init__(self) -> None:
        """Made by SGLang once per model runner, on all tensor-parallel ranks alike."""
        super().__init__()
        share_nonce(get_parallel().tp_group.cpu_group)
        self._argmax: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Sampler.forward`."""
        self._argmax = None
        return super().forward(*args, **kwargs)

    def _preprocess_logits(self, logits: torch.Tensor, sampling_info: Any) -> torch.Tensor:
        logits = super()._preprocess_logits(logits, sampling_info)
        # What follows overwrites the logits, so greedy rows of a mixed batch are decided here. A second call in one
        # forward is for the logits of log-probabilities.
        if sampling_info.is_any_greedy and not sampling_info.is_all_greedy and self._argmax is None:
            self._argmax = torch.argmax(logits, dim=-1)
        return logits

    def _sample_from_probs(
        self, probs: torch.Tensor, sampling_info: Any, positions: torch.Tensor, simple_sampling_case: bool
    ) -> tuple[torch.Tensor, Any]:
        tokens = draw(probs, self._argmax, sampling_info, positions)
        rows = sampling_info.sampling_mask_batch_indices
        if rows is None:
            return tokens, None
        weights = _left_by_filters(probs, sampling_info, rows.numpy())
        chosen = torch.gather(weights, 1, tokens[rows].long().view(-1, 1)).squeeze(1)
        return tokens, _SamplingMaskCapture(weights, None, chosen, rows)


def draw(probs: torch.Tensor, argmax: torch.Tensor | None, info: Any, positions: torch.Tensor) -> torch.Tensor:
    """A token for every row, int32 `[rows]`.

    Args:
        probs: float32 `[rows, vocabulary]`, softmax of logits / temperature, before filters.
        argmax: int64 `[rows]`, the argmax of the raw logits; only greedy rows are read. Without it they take that of
            `probs`.
        info: `SamplingBatchInfo` of as many rows, with seeds.
        positions: integer `[rows]`, the position of the token before the one to draw.

    Raises:
        ValueError: `info` has no seeds.
    """
    if info.sampling_seed is None:
        raise ValueError("sampling_info has no sampling_seed; make it with SamplingBatchInfo.from_schedule_batch")
    top_k, top_p, min_p = info.top_ks.numpy(), info.top_ps.numpy(), info.min_ps.numpy()
    seeds, where = info.sampling_seed.numpy(), positions.long().numpy()
    greedy = top_k <= 1
    filtered = ~greedy & ((top_k != TOP_K_ALL) | (top_p != 1.0) | (min_p > 0.0))
    table, threads = probs.numpy(), torch.get_num_threads()
    tokens = np.empty(len(table), dtype=np.int32)
    if greedy.any():
        tokens[greedy] = (probs.argmax(dim=-1) if argmax is None else argmax).numpy()[greedy]
    if len(rows := np.flatnonzero(~greedy & ~filtered)):
        found = race_columns(table, rows, seeds[rows], where[rows], threads)
        tokens[rows] = _winners(*found, seeds[rows], where[rows])
    if len(rows := np.flatnonzero(filtered)):
        by_rank = ~draws_by_token(info.min_ps).numpy()[rows]
        limits = top_k[rows].astype(np.int64), top_p[rows], min_p[rows]
        found = filter_columns(table, rows, *limits, by_rank, threads)
        tokens[rows] = _winners(*found, seeds[rows], where[rows])
    return torch.from_numpy(tokens)


def _winners(
    offsets: NDArray[np.int64],
    columns: NDArray[np.uint32],
    tokens: NDArray[np.uint32],
    probabilities: NDArray[np.float32],
    seeds: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> NDArray[np.uint32]:
    """The token of each row's winner among its contenders, by the engine's formula."""
    if len(tokens) == len(seeds):
        return tokens
    # torch's own float32 logarithm: the engine's, to the last bit.
    logs = torch.log(torch.from_numpy(probabilities)).double().numpy()
    return tokens[rank_columns(offsets, columns, logs, seeds, positions)]


def _left_by_filters(probs: torch.Tensor, info: Any, rows: NDArray[np.int64]) -> torch.Tensor:
    """The given rows of `probs`, float32 `[len(rows), vocabulary]`, zero where their filters take tokens away."""
    limits = info.top_ks.numpy()[rows].astype(np.int64), info.top_ps.numpy()[rows], info.min_ps.numpy()[rows]
    by_rank = np.zeros(len(rows), dtype=np.bool_)
    offsets, _, tokens, probabilities = filter_columns(probs.numpy(), rows, *limits, by_rank, torch.get_num_threads())
    weights = np.zeros((len(rows), probs.shape[1]), dtype=np.float32)
    weights[np.repeat(np.arange(len(rows)), np.diff(offsets)), tokens] = probabilities
    return torch.from_numpy(weights)


def softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """`torch.softmax` over the last dimension, without a second matrix of rows x vocabulary."""
    return torch.softmax(logits, dim=-1, out=logits)
