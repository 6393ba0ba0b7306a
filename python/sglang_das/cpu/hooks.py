"""Where the CPU engine's parts meet SGLang.

Those called rarely go through SGLang's registries, which apply them once all plugins are loaded. The rest is put in
place when a model runner begins to build itself, so that only the scheduler's process pays for it, and directly,
because it is called hundreds of times a step.
"""

import functools
from collections.abc import Callable
from typing import Any

DEFAULT_POOL_TOKENS = 65536
"""Size of the key-value pool, in tokens, unless `--max-total-tokens` or `--mem-fraction-static` is given."""


def register() -> None:
    """Registers the hooks of this package with SGLang's hook registry."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    register_resolution_hook("handle_cpu_backends")(_set_defaults)
    HookRegistry.register(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
        _on_new_batch,
        HookType.AFTER,
    )
    # Every model runner makes its sampler first.
    HookRegistry.register("sglang.srt.layers.sampler.create_sampler", _prepare_runner, HookType.BEFORE)


def _set_defaults(server_args: Any, previous: Callable[[Any], None]) -> None:
    """What suits a CPU where the user has not said otherwise."""
    from sglang.srt.arg_groups.overrides import declare_resolution

    previous(server_args)
    # A forward pass here is synchronous, so overlap gains nothing and runs finished requests one step too far.
    defaults: dict[str, Any] = {"disable_overlap_schedule": True}
    if server_args.attention_backend is None:
        defaults["attention_backend"] = "torch_native"
    if server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
        # Otherwise SGLang fills most of the machine's memory with the key-value pool.
        defaults["max_total_tokens"] = DEFAULT_POOL_TOKENS
    declare_resolution(server_args, "sglang_das", **defaults)


def _on_new_batch(info: Any, _cls: Any, batch: Any, *_args: Any, **_kwargs: Any) -> None:
    from . import penalties
    from .seeds import give_seeds

    give_seeds(info, batch.reqs)
    penalties.order(info)


@functools.cache
def _prepare_runner(*_args: Any, **_kwargs: Any) -> None:
    from sglang.srt.layers import sampler
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.logits_processor import LogitsProcessor
    from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    from .attention import create_backend
    from .sampler import SeededSampler, softmax_in_place

    _synchronise_nothing()
    sampler.register_sampler_backend("pytorch", SeededSampler)
    sampler.sampler_softmax = softmax_in_place
    ATTENTION_BACKENDS["torch_native"] = create_backend
    _wrap(UnquantizedLinearMethod, "apply", _apply)
    _wrap(UnquantizedEmbeddingMethod, "apply", _apply)
    _wrap(LogitsProcessor, "_compute_lm_head", _compute_lm_head)
    _wrap(RMSNorm, "forward_native", _normalise)
    _wrap(SiluAndMul, "forward_native", _gate)
    _wrap(RotaryEmbedding, "forward_native", _embed_positions)


def _synchronise_nothing() -> None:
    """Let `torch.get_device_module()` be that of the CPU: SGLang asks it to synchronise when memory is released, and
    torch's CUDA build without a GPU raises.
    """
    import torch

    original = torch.get_device_module

    @functools.wraps(original)
    def get_device_module(device: Any = None) -> Any:
        return original("cpu" if device is None else device)

    torch.get_device_module = get_device_module


def _wrap(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a method by one that falls back on it."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(wrap(original)))


def _apply(original: Callable[..., Any]) -> Callable[..., Any]:
    from .linear import multiply

    def apply(method: Any, layer: Any, x: Any, bias: Any = None) -> Any:
        y = multiply(x, layer.weight, bias)
        return original(method, layer, x, bias) if y is None else y

    return apply


def _compute_lm_head(original: Callable[..., Any]) -> Callable[..., Any]:
    from sglang.srt.layers.logits_processor import should_apply_lm_head_quant_method

    from .linear import multiply

    def compute_lm_head(
        processor: Any, hidden_states: Any, lm_head: Any, embedding_bias: Any = None, *, out: Any = None
    ) -> Any:
        special = (
            not hasattr(lm_head, "weight")
            or hasattr(lm_head, "set_lora")
            or should_apply_lm_head_quant_method(lm_head, getattr(lm_head, "quant_method", None))
            or processor.use_fp32_lm_head
            or processor.rl_on_policy_target is not None
        )
        y = None if special else multiply(hidden_states.to(lm_head.weight.dtype), lm_head.weight)
        return original(processor, hidden_states, lm_head, embedding_bias, out=out) if y is None else y

    return compute_lm_head


def _normalise(original: Callable[..., Any]) -> Callable[..., Any]:
    from .rowwise import normalise

    def forward_native(
        layer: Any, x: Any, residual: Any = None, post_residual_addition: Any = None, quant_linear: Any = None
    ) -> Any:
        special = post_residual_addition is not None or quant_linear is not None
        y = None if special else normalise(layer, x, residual)
        return original(layer, x, residual, post_residual_addition, quant_linear) if y is None else y

    return forward_native


def _gate(original: Callable[..., Any]) -> Callable[..., Any]:
    from .rowwise import gate

    def forward_native(layer: Any, x: Any) -> Any:
        y = gate(x)
        return original(layer, x) if y is None else y

    return forward_native


def _embed_positions(original: Callable[..., Any]) -> Callable[..., Any]:
    from sglang.srt.layers.rotary_embedding.utils import apply_rotary_emb

    from .rowwise import embed_positions

    def forward_native(
        layer: Any, positions: Any, query: Any, key: Any, offsets: Any = None, fused_set_kv_buffer_arg: Any = None
    ) -> Any:
        special = (
            offsets is not None
            or fused_set_kv_buffer_arg is not None
            or hasattr(layer, "sin_cos_cache")
            or layer._apply_rotary_emb_wrapped is not apply_rotary_emb
        )
        y = None if special else embed_positions(layer, positions, query, key)
        return original(layer, positions, query, key, offsets, fused_set_kv_buffer_arg) if y is None else y

    return forward_native
