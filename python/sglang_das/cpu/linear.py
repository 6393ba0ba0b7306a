"""Matrix products whose rows have the same bits in any batch.

torch's products on a CPU change kernels with few rows: below four in float32, and in bfloat16 a single row may sum in
another order than several do. From four rows on a row's bits stay the same, so fewer are padded to four.
"""

from collections.abc import Callable

import torch

_ROWS = 4


def with_enough_rows(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`product(x)` for x `[rows, features]`, computed with zero rows added where few rows would take another kernel."""
    if x.dim() != 2 or not 0 < x.shape[0] < _ROWS:
        return product(x)
    padded = x.new_zeros((_ROWS, x.shape[1]))
    padded[: x.shape[0]] = x
    return product(padded)[: x.shape[0]]
