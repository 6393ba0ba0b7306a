"""The hash behind seeded sampling as a torch operator, under the name SGLang calls it by."""

import torch
from sglang_das._native import murmur_hash32


@torch.library.custom_op("sgl_kernel::murmur_hash32_cpu", mutates_args=())  # type: ignore[untyped-decorator]
def murmur_hash32_cpu(seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor) -> torch.Tensor:
    """uint32 `[rows, columns]`: the hash of each row's seed (uint64) and position with each column."""
    hashes = murmur_hash32(seed.view(torch.int64).numpy(), positions.long().numpy(), col_indices.long().numpy())
    return torch.from_numpy(hashes)


@murmur_hash32_cpu.register_fake  # type: ignore[untyped-decorator]
def _(seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor) -> torch.Tensor:
    return seed.new_empty((seed.shape[0], col_indices.shape[0]), dtype=torch.uint32)
