"""Verification by sample and match.

At every drafted node the next token is sampled *as plain decoding would have sampled it there*: the same logit
transforms, the same sampler, the noise of the same position. A draft is kept exactly as far as it equals those samples.
So what is emitted is the target's own sample at every position, whatever was drafted: the draft decides only how many
of them one forward yields. This is why a drafter may even look at the sampler's noise, which under a ratio test
(rejection sampling) would bias the output: EXACTNESS.md, beside this file, has the argument.

Host side of a step is numpy over `[requests, width]`; node 0 is the root, the request's last emitted token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sglang.srt.constrained.base_grammar_backend import GrammarMask
from sglang.srt.layers.sampler import apply_custom_logit_processor
from sglang.srt.sampling.sampling_batch_info import ProcessorEntry, SamplingBatchInfo
from sglang.srt.speculative.ngram_info import NgramVerifyInput

from sglang_das.engine import penalties, processors
from sglang_das.engine.distributions import Distributions
from sglang_das.engine.drafts import DraftTree
from sglang_das.engine.grammars import NodeMasks
from sglang_das.engine.rows import Rows


class DasVerifyInput(NgramVerifyInput):  # type: ignore[misc]
    """NGRAM's verify input, without a mask where the drafts are chains (`sglang/srt/speculative/ngram_info.py`).

    A chain is plain causal attention over the new rows, which every attention backend does without a mask.
    """

    custom_mask: torch.Tensor | None
    row_counts: torch.Tensor | None = None
    """Rows of each request where they are packed, int64 `[n]`; otherwise each has `draft_token_num`."""

    @property
    def tree_topk(self) -> int:
        """1 for chains (backends then skip the mask), -1 for irregular trees."""
        return 1 if self.custom_mask is None else -1

    def generate_attn_arg_prefill(self, **arguments: Any) -> Any:
        """FlashInfer's arguments; the base class dereferences a mask that chains do not have."""
        if self.custom_mask is not None:
            return super().generate_attn_arg_prefill(**arguments)
        self.custom_mask = torch.empty(0, dtype=torch.bool, device=self.device)
        try:
            kv_indices, cum_kv_seq_len, qo_indptr, _ = super().generate_attn_arg_prefill(**arguments)
        finally:
            self.custom_mask = None
        return kv_indices, cum_kv_seq_len, qo_indptr, None


def rows_mask(rows: Rows, device: torch.device) -> torch.Tensor:
    """What the new rows see of each other, request by request bool `[rows, rows]`: what CPU backends read."""
    return torch.from_numpy(rows.visible()).to(device, non_blocking=True)


def full_mask(tree: DraftTree, seq_lens: torch.Tensor, total: int) -> torch.Tensor:
    """What the new rows see of everything, as GPU backends read it: request by request bool `[width, length + width]`.

    Args:
        tree: the step's draft tree, `[n, width]`.
        seq_lens: each request's committed length on the device, `[n]`.
        total: their sum.
    """
    n, width = tree.depth.shape
    mask = torch.ones(width * (total + n * width), dtype=torch.bool, device=seq_lens.device)
    lengths = seq_lens.long() + width
    row_starts = (
        width * (lengths.cumsum(0) - lengths)[:, None] + torch.arange(width, device=mask.device) * lengths[:, None]
    )
    columns = torch.arange(width, device=mask.device) + seq_lens[:, None]
    mask[(row_starts[:, :, None] + columns[:, None, :]).ravel()] = rows_mask(Rows.of(tree, packed=False), mask.device)
    return mask


def verify_input(
    rows: Rows, roots: NDArray[np.int64], seq_lens: torch.Tensor, mask: torch.Tensor | None
) -> DasVerifyInput:
    """The engine's verify input of one step.

    Args:
        rows: of the step, whose draft tree is `[n, width]`.
        roots: each request's last emitted token, `[n]`.
        seq_lens: each request's committed length on the device, `[n]`.
        mask: what the rows see, in the attention backend's form; none for chains on their own.
    """
    device, tree = seq_lens.device, rows.tree
    n, width = tree.depth.shape
    tokens = np.empty((n, width), np.int64)
    tokens[:, 0] = roots
    tokens[:, 1:] = tree.drafts.tokens
    depth = torch.from_numpy(tree.depth).to(device, non_blocking=True)
    links = torch.from_numpy(np.stack([tree.first_child, tree.next_sibling])).to(device, non_blocking=True)
    positions = (seq_lens[:, None] + depth).ravel()
    spec_info = DasVerifyInput(
        draft_token=torch.from_numpy(tokens.ravel()[rows.nodes]).to(device, non_blocking=True),
        custom_mask=mask,
        positions=positions[torch.from_numpy(rows.nodes).to(device)] if rows.packed else positions,
        retrieve_index=torch.arange(n * width, device=device).view(n, width),
        retrieve_next_token=links[0],
        retrieve_next_sibling=links[1],
        draft_token_num=width,
        new_seq_lens=seq_lens,
    )
    if rows.packed:
        spec_info.row_counts = torch.from_numpy(rows.counts).to(device)
    return spec_info


def sample_nodes(
    batch: Any,
    sampler: Any,
    logits_output: Any,
    positions: torch.Tensor,
    rows: Rows,
    masks: NodeMasks | None = None,
) -> tuple[NDArray[np.int64], Distributions]:
    """Sample the next token at every drafted node and root as plain decoding would.

    Args:
        batch: the engine's `ScheduleBatch` in its verify forward.
        sampler: the model runner's sampler, the one plain decoding uses.
        logits_output: the verify forward's output; `next_token_logits` is raw float32 `[rows, vocabulary]`.
            Where the batch returns log-probabilities, the transformed logits of the sampled rows are written back.
        positions: position of every row, `[rows]` (`sampler.forward` keys the noise by it).
        rows: of the forward; the step's draft tree is `[n, width]`.
        masks: what grammars allow at drafted nodes.

    Returns:
        The sampled tokens, `[n, width]`, 0 at unused nodes; and what they were drawn from.
    """
    tree = rows.tree
    used = tree.used()
    nodes = np.flatnonzero(used)
    n, width = used.shape
    logits = logits_output.next_token_logits
    row_index = torch.from_numpy(rows.used).to(logits.device)
    batch.sampling_info.update_regex_vocab_mask()
    info = sampling_info_of_rows(batch.sampling_info, tree, nodes)
    batch.sampling_info.grammar_mask = None  # belongs to one step
    places = np.cumsum(used.ravel()).reshape(n, width) - 1
    info.penalizer_orchestrator = penalties.at_nodes(batch.reqs, tree.drafts, places)
    if masks is not None:
        masks.put(info.grammar_mask.vocab_mask, places)
    # Log-probabilities are computed from the whole array afterwards, so the sampler, which works in place, gets a copy.
    everything = len(nodes) == len(rows.nodes) and not batch.return_logprob
    row_logits = logits if everything else logits[row_index]
    info.apply_logits_bias(row_logits)
    if info.has_custom_logit_processor:
        apply_custom_logit_processor(row_logits, info)
        info.has_custom_logit_processor = False  # or the sampler would apply them again
    if batch.return_logprob:
        logits[row_index] = row_logits
    sampled = sampler(
        dataclasses.replace(logits_output, next_token_logits=row_logits),
        info,
        False,
        [0] * len(nodes),
        [None] * len(nodes),
        positions[row_index],
    )
    tokens = np.zeros(n * width, np.int64)
    tokens[nodes] = sampled.cpu().numpy()
    return tokens.reshape(n, width), Distributions(sampler, row_logits, info, nodes, (n, width))


def penalise_prefill(batch: Any) -> None:
    """Give the sampling of a prefill penalties that know the whole output, also of a request that was retracted.

    Args:
        batch: the engine's `ScheduleBatch`, whose `sampling_info` belongs to this forward alone.
    """
    info = batch.sampling_info
    info.penalizer_orchestrator = penalties.at_roots(batch.reqs)
    info.acc_additive_penalties = info.acc_scaling_penalties = None


# Fields of SamplingBatchInfo with one row a request that take part in sampling.
_PER_REQUEST = (
    "temperatures",
    "top_ps",
    "top_ks",
    "min_ps",
    "sampling_seed",
    "logit_bias",
)


def sampling_info_of_rows(info: SamplingBatchInfo, tree: DraftTree, rows: NDArray[np.int64]) -> SamplingBatchInfo:
    """The sampling parameters of single nodes: each samples as its request does, but for the penalties, which are left
    out, and the grammar's mask, which is its root's.

    The inverse of the engine's `filter_batch`: rows repeat requests instead of dropping them.

    Args:
        info: of the batch.
        tree: the step's draft tree, `[n, width]`.
        rows: root and node of each row as flat indices of `[n, width]`.
    """
    owner_list: list[int] = (rows // tree.depth.shape[1]).tolist()
    owners = torch.tensor(owner_list, device=info.temperatures.device)
    picked = {name: value[owners] for name in _PER_REQUEST if (value := getattr(info, name)) is not None}
    of_rows = dataclasses.replace(
        info,
        grammars=None,
        penalizer_orchestrator=None,
        acc_additive_penalties=None,
        acc_scaling_penalties=None,
        **picked,
    )
    if info.grammar_mask is not None:
        of_rows.grammar_mask = GrammarMask(info.grammar_mask.grammar, info.grammar_mask.vocab_mask[owners])
    if info.has_custom_logit_processor:
        of_rows.custom_params = processors.params_of_rows(info.custom_params, tree, rows)
        of_rows.custom_logit_processor = {
            key: _processor_rows(entry, owner_list, owners.device) for key, entry in info.custom_logit_processor.items()
        }
    return of_rows


def _processor_rows(entry: ProcessorEntry, owners: list[int], device: torch.device) -> ProcessorEntry:
    members = set(entry.rows)
    rows = [row for row, owner in enumerate(owners) if owner in members]
    return ProcessorEntry(processor=entry.processor, rows=rows, indices=torch.tensor(rows, device=device))
