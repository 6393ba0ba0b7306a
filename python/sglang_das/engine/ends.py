"""Where a request ends inside the tokens of one verify step.

Plain decoding looks for an end after every token. The engine looks once after all tokens of a step and decides which of
several ends counts by their kind, not by their place (`Req.update_finish_state`, `managers/schedule_batch.py`), so a
stop token followed by a stop string, or two stop strings, could end a rollout later than plain decoding would. A step
is therefore cut behind the first end; what lies beyond is neither emitted nor counted nor learnt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.matching import Match


def cut_at_ends(matched: Match, requests: Sequence[Any], sampled: NDArray[np.int64]) -> Match:
    """The same match without what follows a request's end.

    Args:
        matched: of the step, n requests.
        requests: the engine's `Req`s, in the batch's order, with what they had emitted before the step.
        sampled: the target's sample at every node, `[n, width]`.
    """
    accept_lens = matched.accept_lens.copy()
    for row in np.flatnonzero(accept_lens > 1).tolist():
        path = matched.path[row, : accept_lens[row]]
        accept_lens[row] = _until_end(requests[row], sampled[row, path].tolist())
    if np.array_equal(accept_lens, matched.accept_lens):
        return matched
    beyond = np.arange(matched.path.shape[1]) >= accept_lens[:, None]
    return Match(np.where(beyond, np.int32(-1), matched.path), accept_lens)


def _until_end(request: Any, tokens: list[int]) -> int:
    """How many of the tokens plain decoding would emit: those up to the request's first end, or all."""
    stops = _stop_tokens(request)
    length = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
    sampling = request.sampling_params
    if sampling.stop_strs or sampling.stop_regex_strs:
        length = next((count for count in range(1, length) if _stops(request, tokens[:count])), length)
    return length


def _stop_tokens(request: Any) -> frozenset[int]:
    """Tokens that end this request (`Req._check_token_based_finish`)."""
    return frozenset() if request.sampling_params.ignore_eos else end_tokens(request)


def end_tokens(request: Any) -> frozenset[int]:
    """Tokens that end a request unless it ignores them; kept on the request."""
    known: frozenset[int] | None = getattr(request, "das_end_tokens", None)
    if known is None:
        tokenizer = request.tokenizer
        known = request.das_end_tokens = (
            frozenset(request.sampling_params.stop_token_ids or ())
            | frozenset(request.eos_token_ids or ())
            | frozenset(() if tokenizer is None or tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))
            | frozenset(() if tokenizer is None else tokenizer.additional_stop_token_ids or ())
        )
    return known


def _stops(request: Any, tokens: list[int]) -> bool:
    """Whether a stop string or pattern is found once `tokens` are emitted (`Req._check_str_based_finish`)."""
    sampling = request.sampling_params
    window = 1 + max(sampling.stop_str_max_len, sampling.stop_regex_max_len)
    text = request.tokenizer.decode([*request.output_ids[-window:], *tokens][-window:])
    return any(stop in text for stop in sampling.stop_strs) or any(
        _found(pattern, text) for pattern in sampling.stop_regex_strs
    )


def _found(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except (re.error, RecursionError):
        return False  # the engine ends such a request with an error of its own
