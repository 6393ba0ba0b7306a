"""Moves within the key-value pool."""

import torch
from sglang_das._native import copy_rows


def copy_all_layer_kv_cache_cpu(
    data_ptrs: torch.Tensor, strides: torch.Tensor, tgt_loc: torch.Tensor, src_loc: torch.Tensor
) -> None:
    """Copies slot `src_loc[j]` to `tgt_loc[j]` in every buffer, reading all sources before writing.

    Args:
        data_ptrs: uint64 `[buffers]`, addresses of the layers' key and value buffers.
        strides: int64 `[buffers]`, bytes per slot.
        tgt_loc, src_loc: `[moves]`, slots.
    """
    copy_rows(
        data_ptrs.view(torch.int64).numpy().view("uint64"),
        strides.view(torch.int64).numpy().view("uint64"),
        tgt_loc.long().numpy(),
        src_loc.long().numpy(),
    )
