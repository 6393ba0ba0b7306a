"""SGLang's own n-gram corpus behind our worker: a comparison, no part of the product.

Drafted and verified at one width, as SGLang's worker does (`sglang/srt/speculative/ngram_worker.py`), but exactly: by
sample and match. Unlike there the corpus outlives a flush of the caches, so that it has the same history as ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sglang.srt.speculative.cpp_ngram.ngram_corpus import NgramCorpus

from sglang_das.engine.config import DasConfig
from sglang_das.engine.drafting import Drafter, Rollout, reason_not_to_draft
from sglang_das.engine.drafts import Drafts
from sglang_das.engine.metrics import Counters

# The server's defaults (`arg_groups/fields/spec.py`), but for a capacity that does not fill this machine's memory.
_DEPTH, _BREADTH, _CAPACITY = 18, 10, 2_000_000


class NgramDrafter(Drafter):
    """Drafts what the corpus says, for every request, at the maximum width; learns nothing else."""

    def __init__(self, config: DasConfig, max_width: int, counters: Counters) -> None:
        """Start with an empty corpus."""
        super().__init__(config, max_width, counters)
        self._corpus = NgramCorpus(
            max_trie_depth=_DEPTH, max_bfs_breadth=_BREADTH, draft_token_num=max_width, capacity=_CAPACITY
        )

    def propose(
        self, requests: list[Any], *, noise_by_rank: bool = False, waiting: int | None = None
    ) -> tuple[Drafts, list[Rollout | None]]:
        """Insert what the requests have emitted, and draft for each."""
        del noise_by_rank, waiting
        tails = [_tail(request) for request in requests]
        self._corpus.batch_put(tails)
        self._corpus.synchronize()
        lengths = [len(request.origin_input_ids_unpadded) + len(request.output_ids) for request in requests]
        tokens, mask = self._corpus.batch_get([request.rid for request in requests], tails, lengths)
        n = len(requests)
        tokens, mask = tokens.reshape(n, -1), mask.reshape(n, tokens.size // n, -1).astype(bool)
        sizes = np.array([0 if reason_not_to_draft(request) else tokens.shape[1] - 1 for request in requests], np.int32)
        drafts = Drafts(
            tokens[:, 1:].astype(np.int32), _parents(mask), np.zeros((n, tokens.shape[1] - 1), np.float32), sizes
        )
        return drafts, [None] * n

    def observe(
        self,
        drafts: Drafts,
        rollouts: list[Rollout | None],
        accept_lens: NDArray[np.int32],
        accepted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count what became of the drafts."""
        del rollouts, accepted
        self._counters.drafted += int(drafts.sizes.sum())
        self._counters.accepted += int(accept_lens.sum()) - len(accept_lens)

    def finish(self, rid: str) -> None:
        """Forget where the request stood."""
        self._corpus.erase_match_state([rid])


def _tail(request: Any) -> list[int]:
    """The last tokens of a request: as many as the corpus tells apart."""
    output = request.output_ids[-_DEPTH:].tolist()
    return [*request.origin_input_ids_unpadded[-_DEPTH:].tolist(), *output][-_DEPTH:]


def _parents(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Each drafted node's parent, `[n, width - 1]`, from which nodes are ancestors of which, `[n, width, width]`."""
    width = mask.shape[1]
    above = mask & np.tri(width, k=-1, dtype=bool)
    nearest = np.where(above, np.arange(width), -1).max(axis=2)[:, 1:]
    parents: NDArray[np.int32] = np.maximum(nearest - 1, -1).astype(np.int32)
    return parents
