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
    HookRegistry.register(
        "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply", _apply_linear, HookType.AROUND
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
    from .linear import with_enough_rows

    return with_enough_rows(lambda rows: original(method, layer, rows, bias), x)


def _compute_lm_head(
    original: Callable[..., Any], processor: Any, hidden_states: Any, *args: Any, **kwargs: Any
) -> Any:
    from .linear import with_enough_rows

    return with_enough_rows(lambda rows: original(processor, rows, *args, **kwargs), hidden_states)
