"""Agreement between tensor-parallel ranks.

Every rank runs its own scheduler and worker. They must verify the same rows: other drafts would mix up keys and values,
another width would hang a collective. Width and budgets depend on measured times, so the first rank decides and the
others follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sglang_das.engine.drafts import Drafts


@dataclass(frozen=True)
class Ranks:
    """The tensor-parallel ranks of one replica; a single rank agrees with itself."""

    group: Any
    """The engine's group coordinator, or None for a single rank."""

    @classmethod
    def of_engine(cls) -> Ranks:
        """The group of the running engine (`sglang/srt/distributed/parallel_state.py`)."""
        from sglang.srt.runtime_context import get_parallel

        group = get_parallel().tp_group
        return cls(group if group.world_size > 1 else None)

    def suffix(self) -> str:
        """What sets this process's files apart from those of the other ranks; nothing where it is alone."""
        from sglang.srt.runtime_context import get_parallel

        replica = get_parallel().dp_rank
        parts = [] if replica is None else [f".dp{replica}"]
        return "".join(parts if self.group is None else [*parts, f".tp{self.group.rank_in_group}"])

    def agree(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first rank's values, on every rank. Shapes must be equal already."""
        if self.group is None:
            return values
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        torch.distributed.broadcast(tensor, src=self.group.ranks[0], group=self.group.cpu_group)
        agreed: NDArray[np.int64] = tensor.numpy()
        return agreed

    def agree_on_drafts(self, drafts: Drafts) -> Drafts:
        """The first rank's drafts, on every rank, whatever the others proposed."""
        if self.group is None:
            return drafts
        n = len(drafts.sizes)
        width = int(self.agree(np.array([drafts.width], np.int64))[0])
        packed = np.zeros((n, 2 * (width - 1) + 1), np.int64)
        if drafts.width == width:
            packed = np.concatenate([drafts.tokens, drafts.parents, drafts.sizes[:, None]], axis=1).astype(np.int64)
        packed = self.agree(packed)
        tokens, parents, sizes = np.split(packed, [width - 1, 2 * (width - 1)], axis=1)
        probabilities = drafts.probabilities if drafts.width == width else np.zeros((n, width - 1), np.float32)
        return Drafts(tokens.astype(np.int32), parents.astype(np.int32), probabilities, sizes[:, 0].astype(np.int32))
