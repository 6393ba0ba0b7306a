"""Grammars along drafts: what a grammar allows at every drafted node, and drafts without the nodes it forbids.

A request's matcher is walked over its draft tree, forward by accepting a node's token and back by rolling it back, so
that it stands in the end where it stood before. The engine advances it over the emitted tokens afterwards
(`BatchResultProcessor._accept_grammar_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NodeMasks:
    """What grammars allow at the roots and drafted nodes of those requests that have one and are drafted for."""

    mask: torch.Tensor
    """The masks, in the form of the grammar backend: a row each."""
    owners: NDArray[np.int64]
    """Their requests, `[m]`."""
    nodes: NDArray[np.int64]
    """Their columns in the draft tree, `[m]`."""
    sources: NDArray[np.int64]
    """Their rows in `mask`, `[m]`."""

    def put(self, mask: torch.Tensor, rows: NDArray[np.int64]) -> None:
        """Write them into the mask of a step.

        Args:
            mask: as the backend makes it, with a row a node.
            rows: which row of `mask` a node has, `[n, width]`.
        """
        mask[rows[self.owners, self.nodes]] = self.mask[self.sources].to(mask.device)


def constrain(drafts: Drafts, requests: Sequence[Any], vocabulary: int) -> tuple[Drafts, NodeMasks | None]:
    """Drop what grammars forbid.

    A node that would complete its grammar is dropped too: the request ends there, and its token can still be the sample
    behind the node before.

    Args:
        drafts: of the step.
        requests: the engine's `Req`s, in the batch's order.
        vocabulary: size of the logits' rows.

    Returns:
        The drafts that are left, and what is allowed behind each.
    """
    walked = [
        i for i, request in enumerate(requests) if drafts.sizes[i] and request.grammar and not _is_over(request.grammar)
    ]
    if not walked:
        return drafts, None
    sizes = drafts.sizes[walked]
    starts = np.cumsum(sizes + 1) - sizes - 1
    mask = requests[walked[0]].grammar.allocate_vocab_mask(
        vocab_size=vocabulary, batch_size=int((sizes + 1).sum()), device="cpu"
    )
    kept = np.arange(drafts.width - 1) < drafts.sizes[:, None]
    sources = np.zeros((len(requests), drafts.width), np.int64)
    for i, start, size in zip(walked, starts.tolist(), sizes.tolist(), strict=True):
        part = mask[start : start + size + 1]
        walk = _walk(requests[i].grammar, drafts.tokens[i, :size].tolist(), drafts.parents[i, :size].tolist(), part)
        allowed = [0, *sorted(walk)]
        kept[i] = False
        kept[i, np.array(allowed[1:], np.int64) - 1] = True
        sources[i, : len(allowed)] = start + np.array(allowed)
    left = drafts.keep(kept)
    mine = np.zeros(len(requests), bool)
    mine[walked] = True
    owners, nodes = np.nonzero(mine[:, None] & (np.arange(drafts.width) <= left.sizes[:, None]))
    return left, NodeMasks(mask, owners, nodes, sources[owners, nodes])


def _is_over(grammar: Any) -> bool:
    """Whether the engine samples without this grammar (`SamplingBatchInfo.update_regex_vocab_mask`)."""
    return bool(grammar.finished or grammar.is_terminated())


def _walk(grammar: Any, tokens: list[int], parents: list[int], mask: torch.Tensor) -> Iterator[int]:
    """Fill the mask's row of every node that the grammar allows, the root (row 0) included; yields those drafted."""
    children: list[list[int]] = [[] for _ in range(len(tokens) + 1)]
    for column, parent in enumerate(parents):
        children[parent + 1].append(column + 1)

    def below(node: int) -> Iterator[int]:
        grammar.fill_vocab_mask(mask, node)
        for child in children[node]:
            token = tokens[child - 1]
            if not _allows(mask[node], token):
                continue
            try:
                grammar.accept_token(token)
            except ValueError:  # refused in spite of the mask: the matcher has not moved
                continue
            try:
                if not grammar.is_terminated():
                    yield child
                    yield from below(child)
            finally:
                grammar.rollback(1)

    return below(0)


def _allows(row: torch.Tensor, token: int) -> bool:
    """Whether a token's bit is set in a row of 32-bit words."""
    return token // 32 < len(row) and bool((int(row[token // 32]) >> (token % 32)) & 1)


def reason_not_to_follow(request: Any) -> str | None:
    """Why a request's grammar is not walked over drafts, or None."""
    grammar = request.grammar
    while grammar is not None:  # and what it wraps
        if type(grammar).rollback.__module__.endswith(".base_grammar_backend"):  # which raises
            return "grammar without rollback"
        if hasattr(grammar, "ll_matcher"):  # can roll back, but has not been compared with plain decoding
            return "llguidance grammar"
        grammar = getattr(grammar, "grammar", None)
    if request.grammar and _bits(request.grammar) != "torch.int32":
        return "grammar with unknown masks"
    return None


def _bits(grammar: Any) -> str:
    return str(grammar.allocate_vocab_mask(vocab_size=32, batch_size=1, device="cpu").dtype)


class LateEnd:
    """A grammar that ends a token late, as it does in plain decoding for requests with `ignore_eos`.

    There the engine asks whether a grammar has come to its end before it shows it the token just sampled, so that one
    token, of any kind, follows the end token; under speculation it asks afterwards
    (`BatchResultProcessor.process_batch_result_decode`), after a prefill before, as in plain decoding.
    """

    def __init__(self, grammar: Any) -> None:
        """Wrap a grammar that has not come to its end, or just has."""
        self.grammar = grammar
        self._beyond = 0

    def __getattr__(self, name: str) -> Any:
        """Everything else is the grammar's."""
        return getattr(self.grammar, name)

    @property
    def finished(self) -> bool:
        """Whether the request has ended."""
        return bool(self.grammar.finished)

    @finished.setter
    def finished(self, finished: bool) -> None:
        self.grammar.finished = finished

    def accept_token(self, token: int) -> None:
        """Advance by a token."""
        if self.grammar.is_terminated():
            self._beyond += 1
        else:
            self.grammar.accept_token(token)

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        beyond = min(count, self._beyond)
        self._beyond -= beyond
        if count > beyond:
            self.grammar.rollback(count - beyond)

    def is_terminated(self) -> bool:
        """Whether a token was accepted behind the end."""
        return self._beyond > 0

    def fill_vocab_mask(self, mask: torch.Tensor, row: int) -> None:
        """Write what is allowed next into a row that allows everything; behind the end that is everything."""
        if not self.grammar.is_terminated():
            self.grammar.fill_vocab_mask(mask, row)

    def fill_vocab_mask_batched(self, entries: Sequence[Any], mask: torch.Tensor) -> None:
        """Write what each of several grammars allows."""
        for entry in entries:
            entry.grammar.fill_vocab_mask(mask, entry.row)


def end_as_plain(requests: Sequence[Any], *, speculating: bool) -> None:
    """Let the grammars of requests with `ignore_eos` end where they end in plain decoding.

    Args:
        requests: the engine's `Req`s of a step.
        speculating: whether the engine processes the step's result as that of speculation, not of a prefill. A request
            can be prefilled again, after a retraction, right behind its end token.
    """
    for request in requests:
        grammar = request.grammar
        if grammar is None or not request.sampling_params.ignore_eos:
            continue
        if isinstance(grammar, LateEnd) and not speculating:
            request.grammar = grammar.grammar
        elif speculating and not isinstance(grammar, LateEnd):
            request.grammar = LateEnd(grammar)
