"""Where the CPU engine's parts meet SGLang. Registered here, applied by SGLang once all plugins are loaded."""

from collections.abc import Callable
from typing import Any


def register() -> None:
    """Registers the hooks of this package with SGLang's hook registry."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch", _give_seeds, HookType.AFTER
    )
    HookRegistry.register("sglang.srt.layers.sampler.create_sampler", _prepare_runner, HookType.BEFORE)
    for method in ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"):
        HookRegistry.register(
            f"sglang.srt.layers.quantization.unquant.{method}.apply", _apply_linear, HookType.AROUND
        )
    HookRegistry.register(
        "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head", _compute_lm_head, HookType.AROUND
    )


def _give_seeds(info: Any, _cls: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    from .seeds import give_seeds

    give_seeds(info, batch.reqs)


def _prepare_runner(*_args: Any, **_kwargs: Any) -> None:
    """Every model runner creates its sampler first: the moment to put our sampler and attention in place."""
    from sglang.srt.layers import sampler
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    from .attention import create_backend
    from .sampler import SeededSampler

    if "pytorch" not in sampler._CUSTOM_SAMPLER_FACTORIES:
        sampler.register_sampler_backend("pytorch", SeededSampler)
    ATTENTION_BACKENDS["torch_native"] = create_backend


def _apply_linear(original: Callable[..., Any], method: Any, layer: Any, x: Any, bias: Any = None) -> Any:
    from .linear import multiply

    y = multiply(x, layer.weight, bias)
    return original(method, layer, x, bias) if y is None else y


def _compute_lm_head(
    original: Callable[..., Any],
    processor: Any,
    hidden_states: Any,
    lm_head: Any,
    embedding_bias: Any = None,
    *,
    out: Any = None,
) -> Any:
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method

    from .linear import multiply

    special = (
        not hasattr(lm_head, "weight")
        or hasattr(lm_head, "set_lora")
        or should_apply_lm_head_quant_method(lm_head, getattr(lm_head, "quant_method", None))
        or processor.use_fp32_lm_head
        or processor.rl_on_policy_target is not None
    )
    y = None if special else multiply(hidden_states.to(lm_head.weight.dtype), lm_head.weight)
    return original(processor, hidden_states, lm_head, embedding_bias, out=out) if y is None else y
