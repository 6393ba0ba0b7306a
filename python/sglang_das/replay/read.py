"""Reading recorded rollouts: JSON lines, plain or compressed, and npz."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ReplayError
from .trace import MAX_KNOWN, Trace

_ARRAYS = ("prompt", "tokens", "offsets")
_LARGEST_TOKEN = 2**31 - 1
_LARGEST_KNOWN = 2**24 - 1  # the drafter stores ids of distributions in 24 bits
_LARGEST_SEED = 2**63 - 1


@dataclass
class Rollout:
    """One rollout of a file."""

    prompt: NDArray[np.int32]
    response: NDArray[np.int32]
    problem: str
    epoch: int
    seed: int | None = None
    temperature: float | None = None
    ids: NDArray[np.int32] | None = None
    """`[tokens, k]`, -1 in unused cells."""
    probabilities: NDArray[np.float32] | None = None


def read(paths: Sequence[Path]) -> Trace:
    """The rollouts of all files together, as one recording.

    Raises ReplayError, naming file, line and reason, if one cannot be read or says what cannot be.
    """
    rollouts: list[Rollout] = []
    for path in paths:
        found = list(_npz(path) if path.suffix == ".npz" else _json_lines(path))
        if not found:
            raise ReplayError(f"{path}: there are no rollouts in it")
        rollouts += found
    return _gather(rollouts)


def _gather(rollouts: list[Rollout]) -> Trace:
    epochs = np.array([rollout.epoch for rollout in rollouts])
    rollouts = [rollouts[i] for i in np.argsort(epochs, kind="stable")]
    names = list(dict.fromkeys(rollout.problem for rollout in rollouts))
    number = {name: i for i, name in enumerate(names)}
    prompts: dict[bytes, NDArray[np.int32]] = {}
    ids, probabilities = _distributions(rollouts)
    return Trace(
        prompts=[prompts.setdefault(rollout.prompt.tobytes(), rollout.prompt) for rollout in rollouts],
        tokens=np.concatenate([rollout.response for rollout in rollouts]),
        offsets=np.cumsum([0, *(len(rollout.response) for rollout in rollouts)], dtype=np.int64),
        problems=np.array([number[rollout.problem] for rollout in rollouts], np.int64),
        epochs=np.unique(epochs, return_inverse=True)[1][np.argsort(epochs, kind="stable")],
        seeds=np.array([rollout.seed or 0 for rollout in rollouts], np.int64),
        seeded=np.array([rollout.seed is not None for rollout in rollouts]),
        greedy=np.array([rollout.temperature == 0 for rollout in rollouts]),
        ids=ids,
        probabilities=probabilities,
        names=names,
    )


def _distributions(rollouts: list[Rollout]) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """Ids and probabilities of all tokens as one array each; None if no rollout has any."""
    k = max((rollout.ids.shape[1] for rollout in rollouts if rollout.ids is not None), default=0)
    if not k:
        return None, None
    tokens = sum(len(rollout.response) for rollout in rollouts)
    ids, probabilities = np.full((tokens, k), -1, np.int32), np.zeros((tokens, k), np.float32)
    at = 0
    for rollout in rollouts:
        end = at + len(rollout.response)
        if rollout.ids is not None and rollout.probabilities is not None:
            ids[at:end, : rollout.ids.shape[1]] = rollout.ids
            probabilities[at:end, : rollout.ids.shape[1]] = rollout.probabilities
        at = end
    return ids, probabilities


# --- npz ---


def _npz(path: Path) -> Iterator[Rollout]:
    """One problem: `prompt` [P], `tokens` [T] and `offsets` [n + 1] as `Trace` has them."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if missing := [name for name in _ARRAYS if name not in file]:
                raise ReplayError(f"{path}: there is no array {missing[0]} in it; it must have {', '.join(_ARRAYS)}")
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ReplayError(f"{path}: it cannot be read as npz: {error}") from error
    try:
        prompt, tokens = (_tokens(arrays[name], name) for name in ("prompt", "tokens"))
        offsets = arrays["offsets"]
        if offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer):
            raise ValueError(f"offsets has shape {offsets.shape} and type {offsets.dtype}; it must be integers [n + 1]")
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) <= 0).any():
            raise ValueError(f"offsets must rise from 0 to the number of tokens, {len(tokens)}")
    except ValueError as error:
        raise ReplayError(f"{path}: {error}") from error
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield Rollout(prompt, tokens[begin:end], path.stem, 0)


# --- JSON lines ---


def _json_lines(path: Path) -> Iterator[Rollout]:
    number = 0
    try:
        with _open(path) as file:
            for line in file:
                number += 1
                if line.strip():
                    yield _rollout(line)
    except ReplayError:
        raise
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        where = f"{path}: after line {number}" if number else str(path)
        raise ReplayError(f"{where}: it cannot be read: {error}") from error
    except ValueError as error:
        raise ReplayError(f"{path}:{number}: {error}") from error


def _open(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    match path.suffix:
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return _open_zstandard(path)
    return path.open("rb")


def _open_zstandard(path: Path) -> io.BytesIO:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ReplayError(f"{path}: reading it needs zstandard. Run: pip install zstandard") from error
    parts, rest = [], path.read_bytes()
    while rest:  # frame by frame: its readers take a file that ends within one for a whole one
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(rest))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        if not frame.eof:
            raise EOFError("it ends within a compressed frame")
        rest = frame.unused_data
    return io.BytesIO(b"".join(parts))


def _rollout(line: bytes) -> Rollout:
    """A line of a file. Raises ValueError with the reason if it is not as it must be."""
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {type(fields).__name__}")
    for name in ("prompt", "response"):
        if name not in fields:
            raise ValueError(f"{name} is missing; a rollout has prompt and response, lists of token ids")
    prompt, response = _tokens(fields["prompt"], "prompt"), _tokens(fields["response"], "response")
    if not len(response):
        raise ValueError("response is empty; a rollout has one token at least")
    ids, probabilities = _known(fields, len(response))
    return Rollout(
        prompt,
        response,
        problem=_problem(fields.get("problem"), prompt),
        epoch=_whole(fields.get("epoch", 0), "epoch", 2**31),
        seed=None if fields.get("seed") is None else _whole(fields["seed"], "seed", _LARGEST_SEED),
        temperature=_temperature(fields.get("temperature")),
        ids=ids,
        probabilities=probabilities,
    )


def _problem(value: object, prompt: NDArray[np.int32]) -> str:
    if value is None:  # the prompt says which
        return prompt.tobytes().hex()
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"problem must be a name or a number, got {value!r}")
    return str(value)


def _whole(value: object, name: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 0 to {most}, got {value!r}")
    return value


def _temperature(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"temperature must be a number, 0 or more, got {value!r}")
    return float(value)


def _tokens(value: Any, name: str, largest: int = _LARGEST_TOKEN) -> NDArray[np.int32]:
    """Token ids as an array. Raises ValueError if they are none."""
    array = np.asarray(value) if _is_flat(value) else np.zeros((0, 0))
    if array.ndim == 1 and not array.size:
        return array.astype(np.int32)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be a list of token ids, got {_short(value)}")
    if (wrong := (array < 0) | (array > largest)).any():
        at = int(wrong.argmax())
        raise ValueError(f"{name}[{at}] is {array[at]}; token ids are from 0 to {largest}")
    return array.astype(np.int32)


def _is_flat(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        isinstance(value, list) and not any(isinstance(item, bool | list | dict) for item in value)
    )


def _known(fields: dict[str, Any], tokens: int) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """`top_ids` and `top_probabilities`, `[tokens, k]`."""
    ids, probabilities = fields.get("top_ids"), fields.get("top_probabilities")
    if ids is None and probabilities is None:
        return None, None
    if ids is None or probabilities is None:
        raise ValueError("top_ids and top_probabilities come together or not at all")
    for name, rows in (("top_ids", ids), ("top_probabilities", probabilities)):
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise ValueError(f"{name} must be a list of lists, one for each token of the response")
        if len(rows) != tokens:
            raise ValueError(f"{name} has {len(rows)} rows, and the response {tokens} tokens; they must be as many")
    sizes = [len(row) for row in ids]
    if sizes != [len(row) for row in probabilities]:
        raise ValueError("the rows of top_ids and top_probabilities differ in length")
    if max(sizes) > MAX_KNOWN:
        raise ValueError(
            f"top_ids has rows of {max(sizes)} entries; at most {MAX_KNOWN} are used: give the most probable"
        )
    return _padded(ids, probabilities, sizes)


def _padded(
    ids: list[list[Any]], probabilities: list[list[Any]], sizes: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    used = np.arange(max(sizes)) < np.array(sizes)[:, None]
    wide_ids, wide = np.full(used.shape, -1, np.int32), np.zeros(used.shape, np.float32)
    wide_ids[used] = _tokens([token for row in ids for token in row], "top_ids", _LARGEST_KNOWN)
    flat = [value for row in probabilities for value in row]
    numbers = np.asarray(flat) if _is_flat(flat) else np.zeros((0, 0))
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.number):
        raise ValueError("top_probabilities must hold numbers")
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError("top_probabilities must be from 0 to 1")
    wide[used] = numbers
    return wide_ids, wide


def _short(value: object) -> str:
    text = json.dumps(value, default=lambda value: type(value).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."
