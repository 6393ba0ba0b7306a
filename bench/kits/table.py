"""Which of SGLang's own kits (`sglang/test/kits`) can be run on a CPU without a model hub, and which cannot and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPEC = "spec_server_kits"


@dataclass(frozen=True, eq=False)
class Kit:
    """A class of SGLang's test methods."""

    module: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its attributes: smaller than on SGLang's own machines, since this is a CPU."""


# The small model may end at once, which the kit takes for a failure.
_PAUSED = {"pause_num_requests": 8, "pause_max_new_tokens": 128, "pause_ignore_eos": True}

KITS = (
    Kit(SPEC, "SpecCorrectnessKit", {"acc_length_thres": 1.0, "batch_accept_len_thres": 1.0}),
    Kit(SPEC, "SpecParityKit"),
    Kit(SPEC, "SpecLogprobKit"),
    Kit(SPEC, "SpecHiddenStatesKit"),
    Kit(SPEC, "SpecPenaltyKit"),
    Kit(SPEC, "SpecFeatureKit"),
    Kit(SPEC, "SpecGrammarKit"),
    Kit("abort_timeout_kit", "AbortAllMixin", {"abort_all_num_requests": 12, "abort_all_max_new_tokens": 1500}),
    Kit("pause_generation_kit", "PauseResumeInPlaceMixin", _PAUSED),
    Kit("matched_stop_kit", "MatchedStopMixin"),
    Kit("regex_constrained_kit", "RegexConstrainedMixin"),
    Kit("ebnf_constrained_kit", "EBNFConstrainedMixin"),
    Kit("json_constrained_kit", "JSONConstrainedMixin"),
    Kit("json_mode_kit", "JSONModeMixin"),
    Kit("basic_api_contract_kit", "BasicAPIContractMixin"),
    Kit("basic_decode_correctness_kit", "BasicDecodeCorrectnessMixin"),
    Kit("basic_scheduler_stress_kit", "BasicSchedulerStressMixin"),
)

NOT_HERE = {
    "SpecAccuracyKit, SpecPerfKit, eval_accuracy_kit, lm_eval_kit, reasoning_kit": "data sets from a model hub",
    "SpecSamplingMaskKit": "the engine refuses a request with return_sampling_mask under any speculation but DFLASH",
    "spec_decoding_kit, perf_bench_kit, vlm_perf_kit, fwd_occupancy_kit": "measure the speed of a GPU",
    "kl_divergence_kit, cache_hit_kit": "a prompt file or data set from a model hub",
    "WaitingTimeoutMixin, RunningTimeoutTwoWaveMixin": "a server with time limits of their own",
    "mmmu_vlm_kit": "images",
    "pd_parity_kit": "disaggregation, which is refused at the start",
    "anthropic_messages_kit": "tool calls of a larger model",
    "streaming_session_kit": "sessions, which the engine has for plain decoding and EAGLE",
    "radix_cache_server_kit, unified_radix_cache_kit": "no tests of their own, or for hybrid caches",
    "prefix_cache_branching_kit": "for hybrid caches",
    "dsa_metadata_kit, attention_unittest": "kernels of a GPU",
}
