"""Sampling with per-request noise, decided row by row.

SGLang's seeded sampler lets the whole batch decide whether the noise's columns are token ids or sorted ranks, and
compiles on first use. Here each row decides for itself, and the winner is found natively:

- greedy: the argmax of the raw logits;
- filters inactive: columns are token ids, as the engine's `multinomial_with_seed` has them;
- top-k or top-p with a seed of the request's own: columns are ranks, as the engine's filtered path has them;
- min-p, or no seed of the request's own: columns are token ids, over the tokens the filters leave.

Wherever a batch is of one kind, that equals the engine's draw for the same seeds.

While a row is at hand, its likeliest tokens can be taken from it too (`Likeliest`): what a drafter may learn from.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.layers.sampler import Sampler, _SamplingMaskCapture
from sglang.srt.runtime_context import get_parallel
from sglang.srt.sampling.sampling_params import TOP_K_ALL

from sglang_das._native import filter_columns, highest_columns, race_columns, rank_columns

from .seeds import draws_by_token, share_nonce


@dataclass(frozen=True)
class Likeliest:
    """The likeliest tokens of each row's distribution: the one its token was drawn from, after temperature and filters.

    Of greedy rows it is the softmax of the logits, without a temperature.
    """

    ids: NDArray[np.int32]
    """Token ids, `[rows, cells]`, likeliest first; -1 where a row has no more tokens."""
    probabilities: NDArray[np.float32]
    """Their probabilities, `[rows, cells]`; 0 in unused cells."""

    @classmethod
    def none(cls, rows: int, cells: int) -> "Likeliest":
        """Nothing known of any row."""
        return cls(np.full((rows, cells), -1, np.int32), np.zeros((rows, cells), np.float32))

    def put(self, rows: NDArray[np.int64], top: tuple[NDArray[np.int32], NDArray[np.float32]]) -> None:
        """What is known of some rows."""
        self.ids[rows], self.probabilities[rows] = top


class SeededSampler(Sampler):  # type: ignore[misc]
    """SGLang's sampler with the draw replaced. Rows may be any: one per request, or several for verification."""

    def __init__(self) -> None:
        """Made by SGLang once per model runner, on all tensor-parallel ranks alike."""
        super().__init__()
        share_nonce(get_parallel().tp_group.cpu_group)
        self._argmax: torch.Tensor | None = None
        self.cells = 0
        """How many of each row's likeliest tokens to tell."""
        self.likeliest = Likeliest.none(0, 0)
        """Those of the rows of the last call."""

    def forward(self, logits_output: Any, sampling_info: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As `Sampler.forward`."""
        self._argmax = None
        self.likeliest = Likeliest.none(len(logits_output.next_token_logits), self.cells)
        tokens = super().forward(logits_output, sampling_info, *args, **kwargs)
        if self.cells and sampling_info.is_all_greedy:  # nothing was drawn, and the logits are still logits
            self.likeliest = likeliest_of_logits(logits_output.next_token_logits, self.cells)
        return tokens

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
        tokens = draw(probs, self._argmax, sampling_info, positions, self.likeliest)
        rows = sampling_info.sampling_mask_batch_indices
        if rows is None:
            return tokens, None
        weights = _left_by_filters(probs, sampling_info, rows.numpy())
        chosen = torch.gather(weights, 1, tokens[rows].long().view(-1, 1)).squeeze(1)
        return tokens, _SamplingMaskCapture(weights, None, chosen, rows)


def draw(
    probs: torch.Tensor,
    argmax: torch.Tensor | None,
    info: Any,
    positions: torch.Tensor,
    likeliest: Likeliest | None = None,
) -> torch.Tensor:
    """A token for every row, int32 `[rows]`.

    Args:
        probs: float32 `[rows, vocabulary]`, softmax of logits / temperature, before filters.
        argmax: int64 `[rows]`, the argmax of the raw logits; only greedy rows are read. Without it they take that of
            `probs`.
        info: `SamplingBatchInfo` of as many rows, with seeds.
        positions: integer `[rows]`, the position of the token before the one to draw.
        likeliest: of as many rows; is filled in.

    Raises:
        ValueError: `info` has no seeds.
    """
    if likeliest is None:
        likeliest = Likeliest.none(len(probs), 0)
    if info.sampling_seed is None:
        raise ValueError("sampling_info has no sampling_seed; make it with SamplingBatchInfo.from_schedule_batch")
    top_k, top_p, min_p = info.top_ks.numpy(), info.top_ps.numpy(), info.min_ps.numpy()
    seeds, where = info.sampling_seed.numpy(), positions.long().numpy()
    greedy = top_k <= 1
    filtered = ~greedy & ((top_k != TOP_K_ALL) | (top_p != 1.0) | (min_p > 0.0))
    table, threads, cells = probs.numpy(), torch.get_num_threads(), likeliest.ids.shape[1]
    tokens = np.empty(len(table), dtype=np.int32)
    if len(rows := np.flatnonzero(greedy)):
        tokens[rows] = (probs.argmax(dim=-1) if argmax is None else argmax).numpy()[rows]
        likeliest.put(rows, highest_columns(table, rows, cells, 0.0, threads))
    if len(rows := np.flatnonzero(~greedy & ~filtered)):
        found, top = race_columns(table, rows, seeds[rows], where[rows], cells, threads)
        likeliest.put(rows, top)
        tokens[rows] = _winners(*found, seeds[rows], where[rows])
    if len(rows := np.flatnonzero(filtered)):
        by_rank = ~draws_by_token(info.min_ps).numpy()[rows]
        limits = top_k[rows].astype(np.int64), top_p[rows], min_p[rows]
        found, top = filter_columns(table, rows, *limits, by_rank, cells, threads)
        likeliest.put(rows, top)
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
    threads = torch.get_num_threads()
    (offsets, _, tokens, probabilities), _ = filter_columns(probs.numpy(), rows, *limits, by_rank, 0, threads)
    weights = np.zeros((len(rows), probs.shape[1]), dtype=np.float32)
    weights[np.repeat(np.arange(len(rows)), np.diff(offsets)), tokens] = probabilities
    return torch.from_numpy(weights)


def likeliest_of_logits(logits: torch.Tensor, cells: int) -> Likeliest:
    """The likeliest tokens of the softmax of float32 logits `[rows, vocabulary]`, which stay as they are."""
    rows = np.arange(len(logits))
    ids, values = highest_columns(logits.numpy(), rows, cells, -np.inf, torch.get_num_threads())
    mass = torch.logsumexp(logits, dim=-1, keepdim=True).numpy()
    return Likeliest(ids, np.where(ids < 0, np.float32(0), np.exp(np.minimum(values - mass, 0))))


def softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """`torch.softmax` over the last dimension, without a second matrix of rows x vocabulary."""
    return torch.softmax(logits, dim=-1, out=logits)
