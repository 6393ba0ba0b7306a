"""SGLang attention backend over the native kernel: decode, extend and speculative verification.

Stands in for `torch_native` on the CPU engine. The batch's layout is worked out once per forward pass, and each layer
makes one native call that reads the key-value pool in place. Supported: decoder attention with grouped heads in
bfloat16 or float32.
"""

import logging
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool

from sglang_das._native import Attention, AttentionPlan, cpu_isas

from .linear import NAMES, check

logger = logging.getLogger(__name__)


def create_backend(runner: Any) -> "CpuAttention":
    """The factory SGLang's registry calls for each model runner, once its model is loaded. Logs what to expect."""
    backend = CpuAttention(runner)
    problems = check(runner.model)
    for problem in problems:
        logger.warning("results may depend on the batch: %s", problem)
    if not problems:
        logger.info(
            "CPU engine (%s, %d threads): attention and matrix products are batch-invariant in %s",
            cpu_isas()[0],
            torch.get_num_threads(),
            NAMES[backend.dtype],
        )
    return backend


class CpuAttention(AttentionBackend):  # type: ignore[misc]
    """Attention whose rows have the same bits alone, in any batch, and in any kind of forward pass."""

    packs_rows = True
    """Requests may verify different numbers of rows."""

    def __init__(self, runner: Any) -> None:
        """Refuses models with attention the kernel does not compute.

        Raises:
            NotImplementedError: naming the layer and the feature.
        """
        super().__init__()
        for name, module in runner.model.named_modules():
            if isinstance(module, RadixAttention):
                _require_supported(name, module)
        if runner.kv_cache_dtype not in NAMES:
            raise NotImplementedError(
                f"a key-value cache of {runner.kv_cache_dtype} is not supported on this CPU engine; "
                "use --kv-cache-dtype auto with --dtype bfloat16 or float32"
            )
        self.req_to_token = runner.req_to_token_pool.req_to_token.numpy()
        self.pool = runner.token_to_kv_pool
        self.dtype = runner.kv_cache_dtype
        self.plan: Any = None
        self._kernels: dict[tuple[int, ...], Attention] = {}

    def support_triton(self) -> bool:
        """Nothing here is triton: allocation takes its torch paths."""
        return False

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Works out which slots each row of the batch sees."""
        mode = forward_batch.forward_mode
        mask = None
        if mode.is_idle():
            self.plan = None
            return
        seq_lens = forward_batch.seq_lens
        if mode.is_decode():
            prefix, rows = seq_lens - 1, torch.ones_like(seq_lens)
        elif mode.is_target_verify():
            spec = forward_batch.spec_info
            counts = getattr(spec, "row_counts", None)
            prefix, rows = seq_lens, torch.full_like(seq_lens, spec.draft_token_num) if counts is None else counts
            if spec.custom_mask is not None:
                mask = spec.custom_mask.numpy()
        else:
            prefix, rows = forward_batch.extend_prefix_lens, forward_batch.extend_seq_lens
        self.plan = AttentionPlan(
            self.req_to_token,
            forward_batch.req_pool_indices.long().numpy(),
            prefix.long().numpy(),
            rows.long().numpy(),
            self.pool.get_key_buffer(self.pool.start_layer).shape[0],
            mask,
            forward_batch.out_cache_loc.long().numpy(),
        )

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of one layer for `q` `[rows, heads * head_dim]`; writes `k` and `v` to the pool first."""
        heads, value_dim = layer.tp_q_head_num, layer.v_head_dim
        q = q.reshape(-1, heads * layer.qk_head_dim)
        if forward_batch.forward_mode.is_idle():
            return q.new_empty(q.shape[0], heads * value_dim)
        keys, values = self.pool.get_key_buffer(layer.layer_id), self.pool.get_value_buffer(layer.layer_id)
        if save_kv_cache and k is not None and v is not None:
            self._store(layer, forward_batch, k, v, keys, values)
        query = q.to(self.dtype)
        if query.stride(-1) != 1:
            query = query.contiguous()
        output = query.new_empty(q.shape[0], heads * value_dim)
        if q.shape[0] != self.plan.rows:
            raise ValueError(f"attention got {q.shape[0]} query rows for a batch of {self.plan.rows}")
        self._kernel(layer).run(
            self.plan,
            query.data_ptr(),
            query.stride(0),
            keys.data_ptr(),
            keys.stride(0),
            values.data_ptr(),
            values.stride(0),
            output.data_ptr(),
            output.stride(0),
            layer.scaling,
        )
        return output.to(q.dtype)

    def _store(
        self,
        layer: RadixAttention,
        forward_batch: Any,
        k: torch.Tensor,
        v: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Writes the step's keys and values to the pool."""
        k, v = k.view(k.shape[0], -1), v.view(v.shape[0], -1)
        plain = (
            type(self.pool) is MHATokenToKVPool
            and k.dtype == v.dtype == keys.dtype == values.dtype
            and k.stride(1) == v.stride(1) == 1
            and k.shape[0] == v.shape[0] == self.plan.rows
        )
        if not plain:
            self.pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
            return
        self._kernel(layer).store(
            self.plan,
            k.data_ptr(),
            k.stride(0),
            v.data_ptr(),
            v.stride(0),
            keys.data_ptr(),
            keys.stride(0),
            values.data_ptr(),
            values.stride(0),
        )

    def _kernel(self, layer: RadixAttention) -> Attention:
        shape = layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim
        threads = torch.get_num_threads()
        kernel = self._kernels.get((*shape, threads))
        if kernel is None:
            kernel = self._kernels[*shape, threads] = Attention(*shape, NAMES[self.dtype], threads)
        return kernel


def _require_supported(name: str, layer: RadixAttention) -> None:
    problems = [
        (layer.is_cross_attention, "cross attention"),
        (layer.attn_type == AttentionType.ENCODER_ONLY, "encoder attention"),
        (layer.sliding_window_size > -1, f"a sliding window of {layer.sliding_window_size} tokens"),
        (layer.logit_cap > 0, f"a logit cap of {layer.logit_cap}"),
        (layer.xai_temperature_len > 0, "a temperature that grows with length"),
    ]
    for present, feature in problems:
        if present:
            raise NotImplementedError(
                f"layer {name} has {feature}, which sglang-das's CPU attention does not support; "
                "it serves decoder models with full attention, such as Llama, Qwen2, Qwen3 and SmolLM2"
            )
