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

    def _preprocess_logits(self, logits: torch.Tensor, sampling_info: Any) -> torch.Tensor:
        logits = super()._preprocess_logits(logits, sampling_info)
        # What follows overwrites the logits, so greedy rows of a mixed batch are decided here.
        if sampling_info.is_any_greedy and not sampling_info.is_all_greedy and self._argmax is None:
            self._argmax = torch.argmax(logits, dim=-1)
        return logits

    def _sample_from_probs(
        self, probs: torch.Tensor, sampling_info: Any, positions: torch.Tensor, simple_sampling_case: bool
    ) -> tuple[torch.Tensor, Any]:
        argmax, self._argmax = self._argmax, None
        tokens, kept = draw(probs, argmax, sampling_info, positions)
        capture = None
        if (rows := sampling_info.sampling_mask_batch_indices) is not None:
            weights = torch.zeros_like(probs).index_put_(kept, probs[kept]) if kept is not None else probs
            weights = weights.index_select(0, rows)
            chosen = tokens.index_select(0, rows).long().view(-1, 1)
            capture = _SamplingMaskCapture(weights, None, torch.gather(weights, 1, chosen).squeeze(1), rows)
        return tokens, capture


def draw(
    probs: torch.Tensor, argmax: torch.Tensor | None, info: Any, positions: torch.Tensor
) -> tuple[torch.Tensor, Any]:
    """A token for every row.

    Args:
        probs: float32 `[rows, vocabulary]`, softmax of logits / temperature, before filters.
        argmax: int64 `[rows]`, the argmax of the raw logits, where some row is greedy.
        info: `SamplingBatchInfo` of as many rows, with seeds.
        positions: integer `[rows]`, the position of the token before the one to draw.

    Returns:
        int32 `[rows]` tokens.
    """
    top_k = info.top_ks.numpy()
    greedy = top_k <= 1
    active = (top_k != TOP_K_ALL) | (info.top_ps.numpy() != 1.0) | (info.min_ps.numpy() > 0.0)
    seeds, where = info.sampling_seed.numpy(), positions.long().numpy()
    tokens = np.empty(len(probs), dtype=np.int32)
    threads = torch.get_num_threads()
    table = probs.numpy()
    if greedy.any():
        tokens[greedy] = (probs.argmax(dim=-1) if argmax is None else argmax).numpy()[greedy]
    if len(rows := np.flatnonzero(~greedy & ~active)):
        found = race_columns(table, rows, seeds[rows], where[rows], threads)
        tokens[rows] = _winners(found, seeds[rows], where[rows])
    if len(rows := np.flatnonzero(~greedy & active)):
        by_token = draws_by_token(info.min_ps).numpy()[rows]
        found = filter_columns(
            table,
            rows,
            top_k[rows].astype(np.int64),
            info.top_ps.numpy()[rows],
            info.min_ps.numpy()[rows],
            ~by_token,
            threads,
        )
        tokens[rows] = _winners(found, seeds[rows], where[rows])
    return torch.from_numpy(tokens), None


def _winners(found: Any, seeds: Any, positions: Any) -> Any:
    """The token of each row's winner among its contenders, by the engine's formula."""
    offsets, columns, tokens, probabilities = found
    if len(tokens) == len(seeds):
        return tokens
    # torch's own float32 logarithm: the engine's, to the last bit.
    logs = torch.log(torch.from_numpy(probabilities)).double().numpy()
    return tokens[rank_columns(offsets, columns, logs, seeds, positions)]
