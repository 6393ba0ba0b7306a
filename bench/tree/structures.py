"""What is compared, behind one interface. Each is imported only by the process that measures it."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .data import LIVE_TOKENS, Tokens

DRAFT = 16
"""Nodes of a draft."""


class Structure(Protocol):
    """A store of rollouts that drafts for live requests, which are known by number."""

    def store(self, number: int, problem: int, tokens: Tokens) -> None:
        """Takes in a whole finished rollout."""

    def open(self, number: int, problem: int, tokens: Tokens) -> None:
        """Opens a live request that has said `tokens`."""

    def append(self, number: int, tokens: Tokens) -> None:
        """Adds what a live request has accepted."""

    def draft(self, number: int) -> object:
        """Drafts for one live request."""

    def close(self, number: int) -> None:
        """Ends a live request."""

    def step(self, count: int, tokens: Tokens) -> object:
        """An engine step for the first `count` live requests: appends `tokens` [count, n], drafts, packs the drafts."""

    def memory_usage(self) -> int | None:
        """Bytes by the structure's own account, if it keeps one."""


def make(name: str, tokens: int) -> Structure:
    """The structure, with room for so many tokens."""
    match name:
        case "das":
            return Das()
        case "das-history":
            return DasHistory()
        case "das-counts":
            return DasHistory(learns=False)
        case "das-known":
            return DasKnown()
        case "arctic":
            return Arctic()
        case "arctic-cache":
            return ArcticCache()
        case "ngram":
            return Ngram(tokens)
    raise ValueError(f"no structure is called {name!r}")


class Das:
    """One `SuffixTree` for everything."""

    def __init__(self) -> None:
        import sglang_das

        self._step = sglang_das.step
        self._tree = sglang_das.SuffixTree()
        self._live: list[sglang_das.Sequence] = []

    def _sequence(self, problem: int) -> Any:
        return self._tree.sequence()

    def _known(self, tokens: Tokens) -> tuple[Any, Any]:
        """Ids and probabilities of what the target knew of each of them, both [tokens, k], or nothing."""
        return None, None

    def store(self, number: int, problem: int, tokens: Tokens) -> None:
        sequence = self._sequence(problem)
        sequence.append(tokens, *self._known(tokens))
        sequence.close()

    def open(self, number: int, problem: int, tokens: Tokens) -> None:
        self._live.append(self._sequence(problem))
        self.append(number, tokens)

    def append(self, number: int, tokens: Tokens) -> None:
        self._live[number].append(tokens, *self._known(tokens))

    def draft(self, number: int) -> object:
        return self._live[number].draft(DRAFT)

    def close(self, number: int) -> None:
        self._live[number].close()

    def step(self, count: int, tokens: Tokens) -> object:
        offsets = np.arange(0, tokens.size + 1, tokens.shape[1], dtype=np.int32)
        widths, floors = np.full(count, DRAFT, dtype=np.int32), np.zeros(count, dtype=np.float32)
        live, (ids, shares) = self._live[:count], self._known(tokens)
        return self._step(live, tokens.ravel(), offsets, widths, floors, DRAFT, ids=ids, probabilities=shares)

    def memory_usage(self) -> int | None:
        return self._tree.memory_usage()


class DasHistory(Das):
    """`RolloutHistory`: a tree for each problem, as in the engine; or drafting from counts alone, as the peers do."""

    def __init__(self, window: int = 16, learns: bool = True) -> None:
        super().__init__()
        import sglang_das

        self.history = sglang_das.RolloutHistory(window=window, max_bytes=1 << 40, soft=learns, shared=learns)

    def _sequence(self, problem: int) -> Any:
        return self.history.rollout(problem)

    def memory_usage(self) -> int | None:
        return self.history.memory_usage()


class DasKnown(DasHistory):
    """The same, given a distribution of eight entries, the most it keeps, with every token."""

    OTHERS = np.arange(8, dtype=np.int32)
    SHARES = np.array([128, 48, 24, 16, 12, 8, 6, 4], dtype=np.uint8)

    def _known(self, tokens: Tokens) -> tuple[Any, Any]:
        ids = tokens.ravel()[:, None] + self.OTHERS
        return ids, np.tile(self.SHARES, (len(ids), 1))


class Arctic:
    """ArcticInference's cache: one tree of all responses, and one of each live request. Stored rollouts go straight to
    the first, which spares it the second.
    """

    DEPTH = 64

    def __init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._cache = SuffixDecodingCache(max_tree_depth=self.DEPTH)
        self._tree = self._cache._global_tree
        self._texts: list[Tokens] = []
        self._lengths: list[int] = []

    def store(self, number: int, problem: int, tokens: Tokens) -> None:
        self._tree.extend_ndarray(-1 - number, tokens)

    def open(self, number: int, problem: int, tokens: Tokens) -> None:
        self._texts.append(np.zeros(16 * LIVE_TOKENS, dtype=np.int32))
        self._lengths.append(0)
        self._cache.start_request(number, tokens[:0])
        self.append(number, tokens)

    def append(self, number: int, tokens: Tokens) -> None:
        self._cache.add_active_response(number, tokens)
        length = self._lengths[number]
        self._texts[number][length : length + len(tokens)] = tokens
        self._lengths[number] = length + len(tokens)

    def draft(self, number: int) -> Any:
        length = self._lengths[number]
        context = self._texts[number][max(0, length - self.DEPTH) : length]
        return self._cache.speculate(number, context, max_spec_tokens=DRAFT, use_tree_spec=True)

    def close(self, number: int) -> None:
        self._cache.stop_request(number)

    def step(self, count: int, tokens: Tokens) -> object:
        drafts = np.zeros((count, DRAFT), dtype=np.int32)
        parents = np.full((count, DRAFT), -1, dtype=np.int32)
        sizes = np.zeros(count, dtype=np.int32)
        for number in range(count):
            self.append(number, tokens[number])
            draft = self.draft(number)
            sizes[number] = size = len(draft.token_ids)
            drafts[number, :size], parents[number, :size] = draft.token_ids, draft.parents
        return drafts, parents, sizes

    def memory_usage(self) -> int | None:
        return None

    def remove(self, number: int) -> None:
        """Takes a stored rollout out."""
        self._tree.remove(-1 - number)


class ArcticCache(Arctic):
    """The same, storing as an engine does: each rollout by its request, in both trees."""

    def store(self, number: int, problem: int, tokens: Tokens) -> None:
        request = -1 - number
        self._cache.start_request(request, tokens[:0])
        self._cache.add_active_response(request, tokens)
        self._cache.stop_request(request)


class Ngram:
    """SGLang's n-gram corpus, called as its worker calls it: the last tokens of each live request are inserted anew in
    every step. Its pool of nodes is allocated at the start, up to the server's default.
    """

    DEPTH = 18
    CAPACITY = 10_000_000

    def __init__(self, tokens: int) -> None:
        from sglang.srt.speculative.cpp_ngram.ngram_corpus import NgramCorpus

        capacity = min(self.CAPACITY, self.DEPTH * (tokens + 1000))
        self._corpus = NgramCorpus(max_trie_depth=self.DEPTH, draft_token_num=DRAFT, capacity=capacity)
        self._tails: list[list[int]] = []
        self._lengths: list[int] = []

    def store(self, number: int, problem: int, tokens: Tokens) -> None:
        self._corpus.batch_put([tokens.tolist()])
        self._corpus.synchronize()

    def open(self, number: int, problem: int, tokens: Tokens) -> None:
        self._tails.append([])
        self._lengths.append(0)
        self.append(number, tokens)

    def _note(self, number: int, tokens: Tokens) -> None:
        self._tails[number] = (self._tails[number] + tokens.tolist())[-self.DEPTH :]
        self._lengths[number] += len(tokens)

    def _get(self, numbers: Sequence[int]) -> object:
        names = [str(number) for number in numbers]
        tails = [self._tails[number] for number in numbers]
        return self._corpus.batch_get(names, tails, [self._lengths[number] for number in numbers])

    def append(self, number: int, tokens: Tokens) -> None:
        self._note(number, tokens)
        self._corpus.batch_put([self._tails[number]])
        self._corpus.synchronize()

    def draft(self, number: int) -> object:
        return self._get([number])

    def close(self, number: int) -> None:
        self._corpus.erase_match_state([str(number)])

    def step(self, count: int, tokens: Tokens) -> object:
        for number in range(count):
            self._note(number, tokens[number])
        self._corpus.batch_put(self._tails[:count])
        self._corpus.synchronize()
        return self._get(range(count))

    def memory_usage(self) -> int | None:
        return None
