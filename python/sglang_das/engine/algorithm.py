"""What the engine may ask of the algorithm named DAS (`sglang/srt/speculative/spec_registry.py`).

`is_ngram()` is True because DAS has NGRAM's shape: it drafts on the host, owns no draft model and carries accepted
tokens from step to step. The four methods at the end are called by 0.5.23 without a default in `CustomSpecAlgo`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from sglang_das.engine.config import DasConfig
from sglang_das.engine.shapes import TREE_TOPK, choose_shape, verify_steps

logger = logging.getLogger(__name__)


class UnsupportedOption(ValueError):
    """A server option DAS cannot honour; the message says why and what to do."""


class DasAlgorithm(CustomSpecAlgo):  # type: ignore[misc]
    """The registered algorithm: resolves its server arguments and refuses what it cannot serve."""

    def is_ngram(self) -> bool:
        """DAS follows NGRAM's path through scheduler and graph runner."""
        return True

    def has_draft_kv(self) -> bool:
        """Drafts come from a tree on the host: no key-value cache of their own."""
        return False

    def handle_server_args(self, server_args: Any) -> None:
        """Refuse unsupported options, then fill in what the engine needs to size its pools.

        `server_args` is the engine's stand-in (`arg_groups/overrides.py`): plain assignment only.

        Raises:
            UnsupportedOption: naming the option, the reason and the remedy.
            ConfigError: trees are asked for where they cannot be verified.
        """
        for reason in unsupported_options(server_args):
            raise UnsupportedOption(f"--speculative-algorithm DAS: {reason}")
        config = DasConfig.load()
        width = server_args.speculative_num_draft_tokens or config.max_width
        shape, reason = choose_shape(server_args, config.shape)
        logger.info("DAS drafts %ss: %s", shape, reason)
        topk = TREE_TOPK if shape == "tree" else 1
        server_args.speculative_num_draft_tokens = width
        server_args.speculative_num_steps = verify_steps(width, topk)
        server_args.speculative_eagle_topk = topk
        # Drafting needs the tokens accepted by the last step on the host, so there is nothing to overlap a step with.
        server_args.disable_overlap_schedule = True
        server_args.enable_mixed_chunk = False

    # The four below are missing from CustomSpecAlgo in 0.5.23 although the scheduler calls them.

    def carries_draft_hidden_states(self) -> bool:
        """No draft model, no hidden states between steps."""
        return False

    def need_topk(self) -> bool:
        """No draft model, no top-k of its distribution."""
        return False

    def get_platform_worker_cls(self) -> None:
        """The same worker on every platform."""
        return None

    def create_future_map(
        self,
        device: Any,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> Any:
        """The engine's own relay between steps."""
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay)


# (field, is it a problem?, reason and remedy)
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("pp_size", lambda v: (v or 1) > 1, "pipeline parallelism is not supported; use --pp-size 1 and --tp-size"),
    ("attn_dp_size", lambda v: (v or 1) > 1, "data-parallel attention is not supported; drop --enable-dp-attention"),
    ("enable_lora", bool, "LoRA adapters are not supported yet; drop --enable-lora, or serve them without DAS"),
    ("lora_paths", bool, "LoRA adapters are not supported yet; drop --lora-paths, or serve them without DAS"),
    (
        "disaggregation_mode",
        lambda v: v not in (None, "null"),
        "prefill/decode disaggregation is not supported; drop --disaggregation-mode",
    ),
    ("enable_two_batch_overlap", bool, "two-batch overlap is not supported; drop --enable-two-batch-overlap"),
    ("enable_pdmux", bool, "PD multiplexing is not supported; drop --enable-pdmux"),
    (
        "speculative_draft_model_path",
        lambda v: v is not None,
        "there is no draft model; drop --speculative-draft-model-path",
    ),
    (
        "speculative_use_rejection_sampling",
        bool,
        "every emitted token is the target's own sample, so there is nothing to reject; "
        "drop --speculative-use-rejection-sampling",
    ),
    (
        "speculative_accept_threshold_single",
        lambda v: v not in (None, 1.0),
        "a relaxed acceptance threshold would change the outputs; drop --speculative-accept-threshold-single",
    ),
    (
        "speculative_accept_threshold_acc",
        lambda v: v not in (None, 1.0),
        "a relaxed acceptance threshold would change the outputs; drop --speculative-accept-threshold-acc",
    ),
    (
        "speculative_num_draft_tokens",
        lambda v: v is not None and v < 1,
        "the verify width must be at least 1; give --speculative-num-draft-tokens 16, or leave it out",
    ),
    (
        "rl_on_policy_target",
        lambda v: v is not None,
        "the on-policy sampler draws from bfloat16 logits, which is untested here; drop --rl-on-policy-target",
    ),
    ("enable_watermark", bool, "watermarked sampling is not supported; drop --enable-watermark"),
)


def unsupported_options(server_args: Any) -> Iterator[str]:
    """Reasons, one a server option, why these arguments cannot be served."""
    for field, is_problem, reason in _RULES:
        value = getattr(server_args, field, None)
        if is_problem(value):
            yield f"{reason} ({field}={value!r})"
