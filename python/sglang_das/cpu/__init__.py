"""SGLang on a plain CPU, from PyPI alone.

With `SGLANG_USE_CPU_ENGINE=1` a stock `pip install sglang` does not start: the CPU build of `sgl_kernel` is not on
PyPI. This package supplies what is missing, only when that engine is asked for and the real kernels are absent:

- `stand_in`: a package `sgl_kernel` with the functions SGLang imports and calls on CPU;
- `attention`: a native backend, in place of `torch_native`, that also serves speculative verification;
- `linear` and `rowwise`: matrix products whose rows do not depend on the batch, and what lies between them;
- `seeds` and `sampler`: per-request noise without `--enable-deterministic-inference`;
- `penalties`: their order.

Together they make arithmetic batch-invariant: a row's logits have the same bits alone, in any batch, and as a decode,
verify or re-prefilled row; so with the same seeds a request gets the same tokens whatever it shares the server with.
"""

import importlib.util
import mmap
import os
import sys
from pathlib import Path

STAND_IN = Path(__file__).parent / "stand_in"
"""The folder that holds the stand-in package `sgl_kernel`."""

RELIES_ON: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch", ("batch", "vocab_size")),
    ("sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator.apply", ("self", "logits", "repeat")),
    ("sglang.srt.arg_groups.resolution_hooks.register_resolution_hook", ("name",)),
    ("sglang.srt.layers.sampler.create_sampler", ("backend",)),
    ("sglang.srt.layers.sampler.register_sampler_backend", ("backend", "factory")),
    ("sglang.srt.layers.sampler.sampler_softmax", ("logits", "temperatures")),
    (
        "sglang.srt.layers.sampler.Sampler._sample_from_probs",
        ("self", "probs", "sampling_info", "positions", "simple_sampling_case"),
    ),
    ("sglang.srt.layers.sampler.Sampler._preprocess_logits", ("self", "logits", "sampling_info")),
    ("sglang.srt.layers.attention.attention_registry.create_torch_native_backend", ("runner",)),
    ("sglang.srt.layers.attention.base_attn_backend.AttentionBackend.init_forward_metadata", ("self", "forward_batch")),
    (
        "sglang.srt.layers.attention.base_attn_backend.AttentionBackend.forward",
        ("self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache", "kwargs"),
    ),
    ("sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply", ("self", "layer", "x", "bias")),
    ("sglang.srt.layers.quantization.unquant.UnquantizedEmbeddingMethod.apply", ("self", "layer", "x", "bias")),
    (
        "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head",
        ("self", "hidden_states", "lm_head", "embedding_bias", "out"),
    ),
    (
        "sglang.srt.layers.layernorm.RMSNorm.forward_native",
        ("self", "x", "residual", "post_residual_addition", "quant_linear"),
    ),
    ("sglang.srt.layers.activation.SiluAndMul.forward_native", ("self", "x")),
    (
        "sglang.srt.layers.rotary_embedding.base.RotaryEmbedding.forward_native",
        ("self", "positions", "query", "key", "offsets", "fused_set_kv_buffer_arg"),
    ),
)
"""What the hooks hold on to in SGLang: dotted name and parameters."""

_installed: str | None = None


def install() -> str:
    """Makes SGLang's CPU engine work in this process and those it spawns. Call it before SGLang's modules are imported.

    Returns what was done, or why nothing was. Calling it again changes nothing.

    Raises:
        RuntimeError: another `sgl_kernel` without CPU functions is already imported.
    """
    global _installed
    if _installed is None:
        _installed = _install()
    return _installed


def _install() -> str:
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") != "1":
        return "nothing to do: SGLANG_USE_CPU_ENGINE=1 does not ask for the CPU engine"
    if library := _real_kernels():
        return f"nothing to do: SGLang's own CPU kernels are installed ({library})"
    _put_stand_in_first()
    # Threads that spin while they wait starve the other processes of a server (tokenizer, HTTP) when cores are few.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from . import hooks

    hooks.register()
    return "CPU engine: sgl_kernel stand-in, batch-invariant attention and linears, seeded sampling"


def _real_kernels() -> Path | None:
    """SGLang's CPU library, if it is installed: the `common_ops` that has the operator SGLang itself looks for."""
    spec = importlib.util.find_spec("sgl_kernel")
    if spec is None or spec.origin is None:
        return None
    for library in sorted(Path(spec.origin).parent.rglob("common_ops*.so")):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"convert_weight_packed") >= 0:
                return library
    return None


def _put_stand_in_first() -> None:
    loaded = getattr(sys.modules.get("sgl_kernel"), "__file__", None)
    if loaded and not Path(loaded).is_relative_to(STAND_IN):
        raise RuntimeError(
            f"sgl_kernel is already imported from {loaded}, which lacks SGLang's CPU functions. "
            "Call sglang_das.cpu.install() before anything imports sglang.srt."
        )
    folder = str(STAND_IN)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Spawned schedulers import SGLang before they load plugins, so they need it from their environment.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, inherited)])
