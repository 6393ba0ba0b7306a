"""Matrix products whose rows have the same bits in any batch.

torch's are not: they change kernels, and with them the order of summation, with the number of rows and threads. The
native ones sum every output element in one fixed order. They read the weights in place, so weight updates just work.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import torch

from sglang_das._native import Linear

NAMES: dict[torch.dtype, Literal["bfloat16", "float32"]] = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
"""Element types of the native kernels."""


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """`x weight^T + bias` for x `[..., features]`, weight `[outputs, features]`; None where this does not apply.

    It applies to bfloat16 and float32 tensors of one type on the CPU, without gradients.
    """
    dtype = x.dtype
    if (
        dtype not in NAMES
        or weight.dtype is not dtype
        or weight.dim() != 2
        or weight.stride(1) != 1
        or not (x.is_cpu and weight.is_cpu)
        or (bias is not None and (bias.dtype is not dtype or not bias.is_contiguous()))
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return None
    outputs, features = weight.shape
    if x.shape[-1] != features:
        return None
    rows = x if x.dim() == 2 else x.reshape(-1, features)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    count = rows.shape[0]
    y = torch.empty(count, outputs, dtype=dtype)
    _kernel(dtype, torch.get_num_threads()).run(
        rows.data_ptr(),
        rows.stride(0),
        weight.data_ptr(),
        weight.stride(0),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        outputs,
        count,
        features,
        outputs,
    )
    return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)


@cache
def _kernel(dtype: torch.dtype, threads: int) -> Linear:
    return Linear(NAMES[dtype], threads)


def check(model: torch.nn.Module) -> list[str]:
    """Multiplies random rows by each kind of layer of `model`, in batches of several sizes.

    Returns what is wrong: layers whose rows change with the batch, and layers that are no plain matrix products and
    were not checked. Nothing: the model's products are batch-invariant on this machine.
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
