"""Chains or trees: which form of draft the attention backend can verify.

A chain is plain causal attention over the new rows, which every backend does. A tree needs a mask, and its accepted
branch is moved together in the key-value pool, which paged backends get wrong where a page holds several tokens (the
engine says so of its own NGRAM, `sglang/srt/arg_groups/speculative_hook.py`). The engine's `speculative_eagle_topk`
carries the choice from the server's arguments to backends and worker: 1 for chains, `TREE_TOPK` for trees.
"""

from __future__ import annotations

from typing import Any

from sglang_das.engine.config import ConfigError

TREE_TOPK = 2
"""Anything above 1 makes backends read the mask; how far a tree branches is the mask's business."""

# Backends that verify trees of irregular shape by a mask, and whether they do so at any page size.
_READS_MASK = {"flashinfer": True, "triton": False, "fa3": False, "torch_native": False, "intel_amx": False}


def choose_shape(server_args: Any, wanted: str) -> tuple[str, str]:
    """`chain` or `tree`, and why.

    Args:
        server_args: resolved as far as device, attention backend and page size.
        wanted: the setting `shape`: `auto`, `chain` or `tree`.

    Raises:
        ConfigError: trees are asked for where they cannot be verified.
    """
    if wanted == "chain":
        return "chain", "as asked for"
    obstacle = _obstacle(server_args)
    if obstacle is None:
        return "tree", "as asked for" if wanted == "tree" else f"{server_args.attention_backend} verifies them"
    if wanted == "tree":
        raise ConfigError(f"shape=tree: {obstacle}; leave the shape at auto, or change the attention backend")
    return "chain", obstacle


def _obstacle(server_args: Any) -> str | None:
    """Why trees cannot be verified, or None."""
    backend = getattr(server_args, "attention_backend", None)
    others = {getattr(server_args, f"{side}_attention_backend", None) for side in ("prefill", "decode")}
    if others - {None, backend}:
        return "prefill and decode have attention backends of their own"
    if backend not in _READS_MASK:
        return f"attention backend {backend} verifies chains only"
    page_size = getattr(server_args, "page_size", None) or 1
    if page_size > 1 and not _READS_MASK[backend]:
        return f"attention backend {backend} verifies chains only with pages of {page_size} tokens"
    return None


def verify_steps(width: int, topk: int) -> int:
    """The engine's `speculative_num_steps` for a width: it reserves room for this many times `topk` tokens."""
    return max(width - 1 if topk == 1 else width // topk, 1)
