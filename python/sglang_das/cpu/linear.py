"""Matrix products whose rows have the same bits in any batch.

torch's are not: they change kernels, and with them the order of summation, with the number of rows and threads. The
native ones sum every output element in one fixed order. They read the weights in place, so weight updates just work.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch

from sglang_das._native import Linear

logger = logging.getLogger(__name__)

_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
_kernels: dict[tuple[torch.dtype, int], Any] = {}


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """`x weight^T + bias` for x `[..., features]`, weight `[outputs, features]`; None if the native product does not apply.

    It applies to bfloat16 and float32 tensors of one type on the CPU, without gradients.
    """
    dtype = x.dtype
    if (
        dtype not in _NAMES
        or weight.dtype != dtype
        or weight.dim() != 2
        or weight.stride(1) != 1
        or x.shape[-1] != weight.shape[1]
        or not (x.is_cpu and weight.is_cpu)
        or (bias is not None and (bias.dtype != dtype or not bias.is_contiguous()))
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return None
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    y = torch.empty(rows.shape[0], weight.shape[0], dtype=dtype)
    _kernel(dtype).run(
        rows.data_ptr(),
        rows.stride(0),
        weight.data_ptr(),
        weight.stride(0),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        y.stride(0),
        rows.shape[0],
        weight.shape[1],
        weight.shape[0],
    )
    return y if x.dim() == 2 else y.view(*x.shape[:-1], weight.shape[0])


def _kernel(dtype: torch.dtype) -> Any:
    key = dtype, torch.get_num_threads()
    kernel = _kernels.get(key)
    if kernel is None:
        kernel = _kernels[key] = Linear(_NAMES[dtype], key[1])
    return kernel


def check(model: torch.nn.Module) -> list[str]:
    """Multiplies random rows by each kind of layer of `model`, in batches of several sizes.

    Returns what is wrong: layers whose rows change with the batch, and layers that are no plain matrix products and were
    not checked. Nothing: the model's products are batch-invariant on this machine.
    """
    problems = []
    seen = set()
    for name, layer in model.named_modules():
        method = getattr(layer, "quant_method", None)
        weight = getattr(layer, "weight", None)
        if method is None:
            continue
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not hasattr(method, "apply"):
            problems.append(f"{name} ({type(method).__name__}) is no plain matrix product and was not checked")
            continue
        kind = type(method), tuple(weight.shape), weight.dtype
        if kind not in seen:
            seen.add(kind)
            problems += [f"{name} ({type(method).__name__}): {found}" for found in _differences(method, layer, weight)]
    return problems


def _differences(method: Any, layer: torch.nn.Module, weight: torch.Tensor) -> Iterator[str]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(17, weight.shape[1], generator=generator).to(weight.dtype)
    with torch.no_grad():
        together = method.apply(layer, x)
        for rows in (1, 2, 3, 5, 8):
            if not torch.equal(method.apply(layer, x[-rows:].clone()), together[-rows:]):
                yield f"{rows} rows alone differ from the same rows among 17"
