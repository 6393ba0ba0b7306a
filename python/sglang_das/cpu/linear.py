"""Matrix products whose rows have the same bits in any batch.

In bfloat16 torch's products on CPU are so for any number of rows. In float32 they change kernels below four rows, so
fewer rows are padded to four.
"""

from collections.abc import Callable

import torch

_ROWS = 4


def with_enough_rows(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`product(x)` for x `[rows, features]`, computed with zero rows added where few rows would take another kernel."""
    if x.dtype != torch.float32 or x.dim() != 2 or not 0 < x.shape[0] < _ROWS:
        return product(x)
    padded = x.new_zeros((_ROWS, x.shape[1]))
    padded[: x.shape[0]] = x
    return product(padded)[: x.shape[0]]
