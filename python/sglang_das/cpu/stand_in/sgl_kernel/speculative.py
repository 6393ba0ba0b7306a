"""Slots and trees of speculative decoding. All outputs are written in place, as the real kernels do.

Names follow SGLang, `retrive` included. `n` is the number of tree nodes a request verifies, its root among them.
"""

from typing import Any, NoReturn

import numpy as np
import torch


def _spans(
    req_pool_indices: torch.Tensor, start_offset: torch.Tensor, end_offset: torch.Tensor
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Table rows and columns of the spans `start..end`, one request after the other."""
    start = start_offset.numpy().astype(np.int64)
    lengths = np.maximum(end_offset.numpy() - start, 0)
    first = np.cumsum(lengths) - lengths
    columns = np.arange(lengths.sum()) + np.repeat(start - first, lengths)
    return np.repeat(req_pool_indices.numpy(), lengths), columns


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes flat slots into each request's row of the table, from `start_offset` to `end_offset`."""
    rows, columns = _spans(req_pool_indices, start_offset, end_offset)
    req_to_token.numpy()[rows, columns] = out_cache_loc.numpy()[: len(rows)]


def assign_extend_cache_locs_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Reads each request's slots from `start_offset` to `end_offset` into the front of flat `out_cache_loc`."""
    rows, columns = _spans(req_pool_indices, start_offset, end_offset)
    out_cache_loc.numpy()[: len(rows)] = req_to_token.numpy()[rows, columns]


def assign_draft_cache_locs_contiguous_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
    topk: int,
    num_steps: int,
) -> None:
    """Reads `topk * num_steps` slots of each request, from column `seq_lens` on, into the flat `out_cache_loc`."""
    assign_extend_cache_locs_cpu(
        req_pool_indices, req_to_token, seq_lens, seq_lens + topk * num_steps, out_cache_loc, pool_len
    )


def verify_tree_greedy_cpu(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Walks each request's draft tree along the target's own choices.

    Args:
        predicts: int32 `[requests * n]`, out: the target's token at each accepted node.
        accept_index: int32 `[requests, width]`, preset to -1, out: the accepted nodes, root first.
        accept_token_num: int32 `[requests]`, out: accepted drafts, the root not counted.
        candidates: `[requests, n]`, the token of each node.
        retrive_index: `[requests, n]`, the node's row in the batch.
        retrive_next_token, retrive_next_sibling: `[requests, n]`, first child and next sibling, -1 for none.
        target_predict: `[requests, n]`, the target's choice after each node.
    """
    tokens, rows = candidates.numpy(), retrive_index.numpy()
    child, sibling = retrive_next_token.numpy(), retrive_next_sibling.numpy()
    target = target_predict.reshape(-1).numpy()
    predicted, accepted, drafts = predicts.numpy(), accept_index.numpy(), accept_token_num.numpy()
    active = np.arange(len(tokens))  # requests still walking
    node = np.zeros(len(tokens), dtype=np.int64)
    last = rows[:, 0].astype(np.int64)
    accepted[:, 0] = last
    drafts[:] = 0
    for depth in range(1, accepted.shape[1]):
        step = child[active, node[active]].astype(np.int64)
        while True:
            wrong = (step >= 0) & (tokens[active, step] != target[last[active]])
            if not wrong.any():
                break
            step[wrong] = sibling[active[wrong], step[wrong]]
        active, step = active[step >= 0], step[step >= 0]
        if not len(active):
            break
        predicted[last[active]] = target[last[active]]
        node[active] = step
        last[active] = rows[active, step]
        accepted[active, depth] = last[active]
        drafts[active] += 1
    predicted[last] = target[last]


def fill_accept_out_cache_loc_cpu(
    accept_index: torch.Tensor, out_cache_loc: torch.Tensor, accept_out_cache_loc: torch.Tensor
) -> None:
    """Packs the slots of accepted nodes, in row order, into the front of `accept_out_cache_loc`."""
    index = accept_index.numpy().reshape(-1)
    kept = index[index >= 0]
    accept_out_cache_loc.numpy()[: len(kept)] = out_cache_loc.numpy()[kept]


def fill_bonus_tokens_cpu(
    accept_tokens: torch.Tensor, accept_lens: torch.Tensor, bonus_tokens: torch.Tensor, accept_stride: int
) -> None:
    """`bonus_tokens[i]` = the last accepted token of request i, `accept_stride` tokens being kept for each."""
    lens = accept_lens.numpy()
    bonus_tokens.numpy()[: len(lens)] = accept_tokens.numpy()[np.arange(len(lens)) * accept_stride + lens - 1]


def reconstruct_indices_from_tree_mask(
    tree_mask: torch.Tensor,
    verified_seq_len: torch.Tensor,
    positions: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Links and positions of draft trees from who-sees-whom.

    Args:
        tree_mask: bool `[batch_size * n * n]`, entry (b, i, j): node j is i or an ancestor of i, which come first.
        verified_seq_len: `[batch_size]`, the position of each root.
        positions: `[batch_size * n]`, out: root position plus depth.
        retrive_index, retrive_next_token, retrive_next_sibling: `[batch_size, n]`, out: see `verify_tree_greedy_cpu`.
    """
    n = draft_token_num
    node = np.arange(n)
    ancestors = tree_mask.numpy()[: batch_size * n * n].reshape(batch_size, n, n) & (node[None, :] < node[:, None])
    parent = np.where(ancestors, node, -1).max(axis=2)
    later = node[:, None] > node[None, :]  # [k, i]: k comes after i
    siblings = (parent[:, :, None] == parent[:, None, :]) & later & (parent[:, None, :] >= 0)

    def lowest(candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = np.where(candidates, node[:, None], n).min(axis=1)
        return np.where(found < n, found, -1)

    shape = (batch_size, n)
    positions.numpy()[: batch_size * n] = (ancestors.sum(axis=2) + verified_seq_len.numpy()[:batch_size, None]).reshape(
        -1
    )
    retrive_index.numpy().reshape(-1, n)[:batch_size] = np.arange(batch_size * n).reshape(shape)
    retrive_next_token.numpy().reshape(-1, n)[:batch_size] = lowest(ancestors)
    retrive_next_sibling.numpy().reshape(-1, n)[:batch_size] = lowest(siblings)


def _unsupported(name: str, need: str) -> NoReturn:
    raise NotImplementedError(
        f"sgl_kernel.{name} is needed by {need}, which sglang-das's stand-in for SGLang's CPU kernels lacks. "
        "Use the NGRAM or DAS speculative algorithm, or none, or install SGLang's CPU build of sgl_kernel."
    )


def build_tree_kernel_efficient_cpu(*args: object, **kwargs: object) -> NoReturn:
    """Not supported: EAGLE builds its draft trees with it."""
    _unsupported("build_tree_kernel_efficient_cpu", "EAGLE's draft trees")


def rotate_input_ids_cpu(*args: object, **kwargs: object) -> NoReturn:
    """Not supported: multi-layer EAGLE shifts its inputs with it."""
    _unsupported("rotate_input_ids_cpu", "multi-layer EAGLE")
