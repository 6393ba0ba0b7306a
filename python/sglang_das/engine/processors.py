"""Custom logit processors at drafted nodes: each is shown its request as it would be there.

A processor sees rows of logits, their custom parameters and, through `"__req__"`, their requests. At a drafted node it
is shown a request whose output goes on with the path to that node. That gives what plain decoding gives if the
processor looks at a row's logits, parameters and tokens alone: the engine's own do, and a class of the user's says so
with `follows_drafts = True`. Requests with any other are decoded without drafts.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_das.engine.drafts import DraftTree

_ENGINES_OWN = "sglang.srt.sampling.custom_logit_processor"


def reason_not_to_follow(request: Any) -> str | None:
    """Why a request's processor is not called along drafts, or None."""
    serialized = request.custom_logit_processor
    if not serialized:
        return None
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    kind = type(CustomLogitProcessor.from_str(serialized))
    own = kind.__call__.__module__ == _ENGINES_OWN
    return None if own or getattr(kind, "follows_drafts", False) else "custom logit processor"


class RequestAt:
    """A request as it will be once a path of drafted tokens is emitted."""

    def __init__(self, request: Any, path: list[int]) -> None:
        """Its output so far goes on with `path`."""
        self._request = request
        self.output_ids = request.output_ids + array("q", path)

    def __getattr__(self, name: str) -> Any:
        """Everything but the output is the request's."""
        return getattr(self._request, name)


def params_of_rows(
    params: list[dict[str, Any] | None], tree: DraftTree, rows: NDArray[np.int64]
) -> list[dict[str, Any] | None]:
    """Custom parameters of rows, from those of requests.

    Args:
        params: of each request, as the engine hands them to processors.
        tree: the step's draft tree, `[n, width]`.
        rows: root and node of each row as flat indices of `[n, width]`.
    """
    width = tree.depth.shape[1]
    return [_at_node(params[row // width], tree, row // width, row % width) for row in rows.tolist()]


def _at_node(params: dict[str, Any] | None, tree: DraftTree, owner: int, node: int) -> dict[str, Any] | None:
    if node == 0 or params is None or "__req__" not in params:
        return params
    path = []
    while node > 0:
        path.append(int(tree.drafts.tokens[owner, node - 1]))
        node = int(tree.drafts.parents[owner, node - 1]) + 1
    return {**params, "__req__": RequestAt(params["__req__"], path[::-1])}
