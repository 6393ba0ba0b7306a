"""Everything DAS relies on inside SGLang, in one table, checked when the plugin registers and by `das doctor`.

The modules behind `LATE` need the engine's kernels and are checked when the worker is made, not at registration.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

TESTED_VERSION = "0.5.23"


class IncompatibleEngine(RuntimeError):
    """The installed SGLang lacks something DAS needs; the message names it and the remedy."""


@dataclass(frozen=True)
class Need:
    """A name in SGLang and the parameters it must take."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()


EARLY = (
    Need("sglang.srt.speculative.spec_info", "SpeculativeAlgorithm.register", ("name",)),
    Need("sglang.srt.speculative.spec_registry", "CustomSpecAlgo", ("name", "factory", "supports_overlap")),
    Need("sglang.srt.speculative.spec_registry", "get_spec", ("name",)),
)

_COMPONENTS = "sglang.srt.managers.scheduler_components"
LATE = (
    Need("sglang.srt.managers.overlap_utils", "FutureMap", ("device", "spec_algo", "req_to_token_pool")),
    Need(
        "sglang.srt.speculative.base_spec_worker",
        "BaseSpecWorker.note_request_finished",
        ("self", "rid", "natural_stop"),
    ),
    Need("sglang.srt.speculative.base_spec_worker", "BaseSpecWorker.clear_cache_pool", ("self",)),
    Need("sglang.srt.managers.tp_worker", "TpModelWorker.forward_batch_generation", ("self", "batch", "is_verify")),
    Need("sglang.srt.layers.sampler", "Sampler.forward", ("self", "logits_output", "sampling_info", "positions")),
    Need(
        "sglang.srt.layers.logprob_processor",
        "compute_spec_logprobs",
        ("batch", "logits_output", "predict", "accept_index"),
    ),
    Need("sglang.srt.sampling.sampling_batch_info", "SamplingBatchInfo.update_regex_vocab_mask", ("self",)),
    Need("sglang.srt.sampling.sampling_batch_info", "SamplingBatchInfo.apply_logits_bias", ("self", "logits")),
    Need("sglang.srt.sampling.sampling_params", "TOP_K_ALL"),
    Need("sglang.srt.sampling.sampling_batch_info", "ProcessorEntry", ("processor", "rows", "indices")),
    Need(
        "sglang.srt.sampling.sampling_batch_info", "SamplingBatchInfo._apply_pre_grammar_logits_transforms", ("logits",)
    ),
    Need("sglang.srt.sampling.penaltylib", "BatchedPenalizerOrchestrator.apply", ("self", "logits")),
    Need("sglang.srt.layers.sampler", "apply_custom_logit_processor", ("logits", "sampling_batch_info")),
    Need("sglang.srt.sampling.custom_logit_processor", "CustomLogitProcessor.from_str", ("json_str",)),
    Need("sglang.srt.constrained.base_grammar_backend", "GrammarMask", ("grammar", "vocab_mask")),
    Need("sglang.srt.constrained.base_grammar_backend", "BaseGrammarObject.accept_token", ("self", "token")),
    Need("sglang.srt.constrained.base_grammar_backend", "BaseGrammarObject.rollback", ("self", "k")),
    Need(
        "sglang.srt.constrained.base_grammar_backend",
        "BaseGrammarObject.allocate_vocab_mask",
        ("self", "vocab_size", "batch_size", "device"),
    ),
    Need(
        "sglang.srt.constrained.base_grammar_backend",
        "BaseGrammarObject.fill_vocab_mask",
        ("self", "vocab_mask", "idx"),
    ),
    Need(
        "sglang.srt.speculative.ngram_info",
        "NgramVerifyInput",
        ("draft_token", "custom_mask", "positions", "draft_token_num"),
    ),
    Need(
        "sglang.kernels.ops.speculative.cache_locs",
        "assign_extend_cache_locs_func",
        ("req_pool_indices", "req_to_token", "start_offset", "end_offset", "batch_size", "draft_token_num", "device"),
    ),
    Need(
        "sglang.srt.speculative.spec_utils",
        "move_accept_tokens_to_target_kvcache",
        ("batch", "accept_index", "num_correct_drafts", "token_to_kv_pool_allocator"),
    ),
    # Only used on a GPU: see `widths`.
    Need(
        "sglang.srt.model_executor.model_runner", "ModelRunner._get_attention_backend", ("self", "init_new_workspace")
    ),
    Need("sglang.srt.model_executor.model_runner", "ModelRunner._decode_cuda_graph_runner_cls", ("self",)),
    Need(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner",
        ("model_runner", "attn_backend", "speculative_num_steps", "speculative_num_draft_tokens"),
    ),
    Need(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner.get_spec_info",
        ("num_tokens",),
    ),
    Need("sglang.srt.speculative.spec_utils", "commit_mamba_states_after_verify"),
    Need("sglang.srt.speculative.spec_utils", "prepare_mamba_track_for_verify", ("batch",)),
    Need("sglang.srt.speculative.spec_utils", "record_stream_for_v2_verify"),
    Need(
        "sglang.srt.managers.scheduler",
        "GenerationBatchResult",
        ("logits_output", "next_token_ids", "accept_lens", "cap_lens", "new_seq_lens", "next_draft_input"),
    ),
    Need(f"{_COMPONENTS}.internal_state", "SchedulerInternalStateController._add_speculative", ("self", "state")),
    Need(f"{_COMPONENTS}.internal_state", "SchedulerInternalStateController._update_handlers", ("self",)),
    Need(f"{_COMPONENTS}.internal_state", "_UpdateHandler", ("validate", "apply")),
    Need(f"{_COMPONENTS}.internal_state", "UpdateRejected"),
    Need(
        f"{_COMPONENTS}.weight_updater", "SchedulerWeightUpdaterManager.record_weight_version_after_update", ("self",)
    ),
    Need(f"{_COMPONENTS}.weight_updater", "SchedulerWeightUpdaterManager.end_weight_update", ("self", "recv_req")),
    Need("sglang.srt.mem_cache.kv_cache_configurator", "get_req_to_token_extra_context_len"),
    Need("sglang.srt.mem_cache.allocation_sizing", "get_alloc_reserve_per_decode"),
    Need("sglang.srt.mem_cache.allocation_sizing", "get_alloc_page_size"),
    Need("sglang.srt.managers.scheduler", "Scheduler.send_abort_output", ("self", "abort_req", "req")),
    Need("sglang.srt.managers.scheduler", "Scheduler.get_next_batch_to_run", ("self",)),
    Need("sglang.srt.managers.scheduler", "Scheduler.handle_shutdown", ("self", "recv_req")),
    Need("sglang.srt.managers.tokenizer_manager", "TokenizerManager._calculate_spec_decoding_metrics", ("meta_info",)),
    Need("sglang.srt.managers.schedule_batch", "Req.update_finish_state", ("self", "new_accepted_len")),
    Need("sglang.srt.managers.schedule_batch", "Req.tail_str", ("self", "new_accepted_len")),
    Need(
        f"{_COMPONENTS}.output_streamer",
        "SchedulerOutputStreamer.is_request_level_customized_info_key",
        ("self", "key"),
    ),
)


def require(needs: Iterable[Need] = EARLY) -> None:
    """Check a part of the table.

    Raises:
        IncompatibleEngine: naming everything that is missing, the versions and the remedy.
    """
    problems = [problem for need in needs if (problem := check(need)) is not None]
    if problems:
        raise IncompatibleEngine(
            f"SGLang {installed_version()} does not offer what sglang-das needs: {'; '.join(problems)}. "
            f"Install the tested version: pip install sglang=={TESTED_VERSION}"
        )


def check(need: Need) -> str | None:
    """What is wrong with one need, or None."""
    try:
        target: Any = importlib.import_module(need.module)
    except ImportError as error:
        return f"{need.module} cannot be imported ({error})"
    for part in need.name.split("."):
        if not hasattr(target, part):
            return f"{need.module}.{need.name} is missing"
        target = getattr(target, part)
    if not need.parameters:
        return None
    offered = {"self", *inspect.signature(target).parameters}
    missing = [parameter for parameter in need.parameters if parameter not in offered]
    return f"{need.module}.{need.name} does not take {', '.join(missing)}" if missing else None


def installed_version() -> str:
    """SGLang's version, or `none`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sglang")
    except PackageNotFoundError:
        return "none"
