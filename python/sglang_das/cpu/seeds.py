"""A sampling seed for every request, so that its noise depends on nothing it shares the server with.

A request's own seed is used as it is. Others get hash(nonce, admission counter): the nonce is drawn from the operating
system when the server starts and shared by the tensor-parallel ranks of one replica only, so that two replicas never
draw alike; the counter advances when a request is first scheduled, which all ranks do in the same order. Never from a
request's id or a clock.
"""

import hashlib
import os
from typing import Any

import torch

_nonce: int | None = None
_admitted = 0


def share_nonce(group: Any = None) -> None:
    """Draws this process's nonce, once. In a torch process group of several ranks all take that of the first."""
    global _nonce
    if _nonce is not None:
        return
    drawn = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.int64).clone()
    if group is not None and torch.distributed.get_world_size(group) > 1:
        torch.distributed.broadcast(drawn, torch.distributed.get_global_rank(group, 0), group=group)
    _nonce = int(drawn.item())


def seed_of(req: Any) -> int:
    """The seed of a request as int64, fixed at its first call and kept over chunks and retraction."""
    global _admitted
    own = req.sampling_params.sampling_seed
    if own is not None:
        return (int(own) + 2**63) % 2**64 - 2**63  # its low 64 bits, which are what the noise takes
    given: int | None = getattr(req, "das_seed", None)
    if given is None:
        share_nonce()
        assert _nonce is not None
        text = _nonce.to_bytes(8, "little", signed=True) + _admitted.to_bytes(8, "little")
        given = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
        _admitted += 1
        req.das_seed = given
    return given


def give_seeds(info: Any, reqs: list[Any]) -> None:
    """Fills `info.sampling_seed` (int64 `[requests]`) of a `SamplingBatchInfo` for the requests of a new batch.

    Requests without a seed of their own are marked by a min_p of -0.0: it filters nothing, and SGLang filters, merges
    and copies that tensor with the batch. `draws_by_token` reads the mark.
    """
    if info.sampling_seed is not None:
        return  # deterministic inference has given seeds
    info.sampling_seed = torch.tensor([seed_of(req) for req in reqs], dtype=torch.int64, device=info.device)
    unseeded = torch.tensor([req.sampling_params.sampling_seed is None for req in reqs], device=info.device)
    info.min_ps[unseeded & (info.min_ps == 0)] = -0.0


def draws_by_token(min_ps: torch.Tensor) -> torch.Tensor:
    """bool `[rows]`: noise is keyed by token ids even when filters are active (no seed of its own, or min-p)."""
    return torch.signbit(min_ps) | (min_ps > 0)
