"""What a layer does to each row between its matrix products, in one native pass each.

With few rows SGLang's torch versions spend a third of a step on the overhead of small operations. These compute in
float32 and round once, as SGLang's GPU kernels do. Each returns None where it does not apply.
"""

from typing import Any

import torch

from sglang_das._native import rms_norm, rotate, silu_and_mul

from .linear import NAMES


def _rows(x: torch.Tensor) -> torch.Tensor | None:
    """`x` as a matrix with adjoining columns, if it is one of a supported type."""
    if x.dtype not in NAMES or not x.is_cpu or (torch.is_grad_enabled() and x.requires_grad):
        return None
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def normalise(layer: Any, x: torch.Tensor, residual: torch.Tensor | None) -> Any:
    """RMS norm of `x`, or of `x + residual` together with that sum, for a plain `RMSNorm` layer."""
    rows = _rows(x)
    added = None if residual is None else _rows(residual)
    if (
        rows is None
        or (residual is not None and (added is None or residual.shape != x.shape or residual.dtype != x.dtype))
        or layer.weight.dtype != x.dtype
        or layer.variance_size_override is not None
        or layer.override_orig_dtype is not None
        or layer.cast_x_before_out_mul
        or layer.fp32_residual
        or rows.shape[1] != layer.hidden_size
    ):
        return None
    y = torch.empty(rows.shape, dtype=x.dtype)
    total = y if added is None else torch.empty(rows.shape, dtype=x.dtype)
    rms_norm(
        rows.data_ptr(),
        rows.stride(0),
        0 if added is None else added.data_ptr(),
        0 if added is None else added.stride(0),
        layer.weight.data_ptr(),
        y.data_ptr(),
        total.data_ptr(),
        rows.shape[0],
        rows.shape[1],
        layer.variance_epsilon,
        NAMES[x.dtype],
        torch.get_num_threads(),
    )
    return y.view(x.shape) if added is None else (y.view(x.shape), total.view(x.shape))


def gate(x: torch.Tensor) -> torch.Tensor | None:
    """silu of the first half of each row times the second."""
    rows = _rows(x)
    if rows is None:
        return None
    width = rows.shape[1] // 2
    y = torch.empty((rows.shape[0], width), dtype=x.dtype)
    silu_and_mul(
        rows.data_ptr(),
        rows.stride(0),
        y.data_ptr(),
        rows.shape[0],
        width,
        NAMES[x.dtype],
        torch.get_num_threads(),
    )
    return y.view(*x.shape[:-1], width)


def embed_positions(
    layer: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Rotary embedding, in place, for a plain `RotaryEmbedding` layer."""
    table = layer.cos_sin_cache
    if (
        positions.dim() != 1
        or query.dim() != 2
        or key.dim() != 2
        or query.dtype not in NAMES
        or not query.dtype == key.dtype == table.dtype
        or query.stride(1) != 1
        or key.stride(1) != 1
        or not table.is_contiguous()
        or table.shape[1] != layer.rotary_dim
        or not query.is_cpu
        or (torch.is_grad_enabled() and query.requires_grad)
    ):
        return None
    positions = positions.to(torch.int64).contiguous()
    rotate(
        positions.data_ptr(),
        table.data_ptr(),
        table.shape[0],
        layer.rotary_dim,
        layer.is_neox_style,
        query.data_ptr(),
        query.stride(0),
        query.shape[1] // layer.head_size,
        key.data_ptr(),
        key.stride(0),
        key.shape[1] // layer.head_size,
        query.shape[0],
        layer.head_size,
        NAMES[query.dtype],
        torch.get_num_threads(),
    )
    return query, key
