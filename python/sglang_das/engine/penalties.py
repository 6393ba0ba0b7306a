"""Penalties at every node of a draft tree: those plain decoding would apply once the tokens on its path were emitted.

The engine keeps penalties as dense matrices of requests x vocabulary and feeds them one token a step, which under
speculation is too few, and forgets them when a request is retracted (`sglang/srt/sampling/penaltylib`). Here they
follow from a request's own output and the drafted path alone, so that no batch operation can disturb them, and touch
only the logits of tokens that were emitted or drafted. The arithmetic is the engine's to the last bit: single-precision
sums, one token after the other, first frequency, then presence, then repetition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts
from sglang_das.engine.ends import end_tokens


@dataclass(frozen=True)
class Penalties:
    """Penalties of single rows of logits; takes the place of the engine's `BatchedPenalizerOrchestrator` there."""

    rows: NDArray[np.int64]
    """Penalised cells of the logits, `[m]`: their rows, no cell twice."""
    tokens: NDArray[np.int64]
    """Their columns, `[m]`."""
    frequency: NDArray[np.float32]
    """What is subtracted first, `[m]`."""
    presence: NDArray[np.float32]
    """What is subtracted then, `[m]`."""
    repetition: NDArray[np.float32]
    """What scales the rest away from being likely, `[m]`."""
    early: NDArray[np.int64]
    """Cells that would end a request before its `min_new_tokens`, `[2, e]`: rows and columns."""

    is_required = True

    def apply(self, logits: torch.Tensor) -> None:
        """Penalise float32 logits `[rows, vocabulary]` in place."""

        def there(values: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(values).to(logits.device, non_blocking=True)

        if len(self.rows):
            cells = there(self.rows), there(self.tokens)
            values = logits[cells] - there(self.frequency) - there(self.presence)
            scale = there(self.repetition)
            logits[cells] = torch.where(values < 0, values * scale, values / scale)
        if self.early.size:
            rows, tokens = there(self.early[:, self.early[1] < logits.shape[1]])
            logits[rows, tokens] = -torch.inf


def at_roots(requests: Sequence[Any]) -> Penalties | None:
    """Penalties of a row per request, whose next token follows its output; None where nobody asks for any."""
    return at_nodes(requests, Drafts.none(len(requests)), np.arange(len(requests))[:, None])


def at_nodes(requests: Sequence[Any], drafts: Drafts, rows: NDArray[np.int64]) -> Penalties | None:
    """Penalties of the roots and drafted nodes of a step; None where nobody asks for any.

    Args:
        requests: the engine's `Req`s, in the batch's order, with what they had emitted before the step.
        drafts: of the step.
        rows: which row of the logits a node has, `[n, width]`; only used nodes are read.
    """
    counted, early = [], []
    for i, request in enumerate(requests):
        sampling = request.sampling_params
        penalised = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
        if not penalised and not sampling.min_new_tokens > len(request.output_ids):
            continue
        size = int(drafts.sizes[i])
        path = _paths(drafts.parents[i, :size])
        where = rows[i, : size + 1]
        if penalised:
            counted.append(_count(request, path, drafts.tokens[i, :size], where))
        early.append(_too_early(request, path, where))
    if not early:
        return None
    nothing = (*[np.empty(0, np.int64)] * 2, *[np.empty(0, np.float32)] * 3)
    cells = [np.concatenate(field) for field in zip(nothing, *counted, strict=True)]
    return Penalties(cells[0], cells[1], cells[2], cells[3], cells[4], np.concatenate(early, axis=1))


def _paths(parents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """`[size + 1, size]`: whether a drafted node is on the path to a node, itself included; row 0 is the root."""
    path = np.zeros((len(parents) + 1, len(parents)), bool)
    for node, parent in enumerate(parents.tolist()):
        path[node + 1] = path[parent + 1]
        path[node + 1, node] = True
    return path


def _count(
    request: Any, path: NDArray[np.bool_], drafted: NDArray[np.int32], rows: NDArray[np.int64]
) -> tuple[NDArray[Any], ...]:
    """Cells of a request's nodes for every token emitted or on the path, and their penalties: fields of `Penalties`."""
    emitted = _emitted(request)
    tokens, places = np.unique([*emitted, *drafted.tolist()], return_inverse=True)
    counts = np.zeros((len(path), len(tokens)), np.int64)
    counts[:, places[: len(emitted)]] = list(emitted.values())
    nodes, steps = np.nonzero(path)
    np.add.at(counts, (nodes, places[len(emitted) + steps]), 1)
    nodes, columns = np.nonzero(counts)
    times = counts[nodes, columns]
    sampling = request.sampling_params
    # As the engine adds them up: a product would round differently.
    sums = np.add.accumulate(np.full(times.max(initial=0), sampling.frequency_penalty, np.float32), dtype=np.float32)
    presence, repetition = (
        np.full(len(nodes), value, np.float32) for value in (sampling.presence_penalty, sampling.repetition_penalty)
    )
    return rows[nodes], tokens[columns].astype(np.int64), sums[times - 1], presence, repetition


def _emitted(request: Any) -> Counter[int]:
    """How often each token is in the request's output; kept on the request."""
    known: tuple[Counter[int], int] | None = getattr(request, "das_emitted", None)
    counts, length = known if known is not None and known[1] <= len(request.output_ids) else (Counter(), 0)
    counts.update(request.output_ids[length:])
    request.das_emitted = counts, len(request.output_ids)
    return counts


def _too_early(request: Any, path: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cells of the tokens that end a request, at nodes where it is too short to end, `[2, e]`."""
    short = rows[len(request.output_ids) + path.sum(axis=1) < request.sampling_params.min_new_tokens]
    ends = np.array(sorted(end_tokens(request)), np.int64)
    return np.stack([np.repeat(short, len(ends)), np.tile(ends, len(short))])
