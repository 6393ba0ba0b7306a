"""Reading recordings: what is understood, and how what is not is refused."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest
from sglang_das.replay import ReplayError
from sglang_das.replay.read import read

from .traces import lines

GOOD = {"prompt": [1, 2], "response": [3, 4]}


def refused(tmp_path, line, name="rollouts.jsonl"):
    path = tmp_path / name
    path.write_text(json.dumps(GOOD) + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(ReplayError) as error:
        read([path])
    return str(error.value), path


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": None}, "prompt must be a list of token ids"),
        ({"prompt": "text"}, "prompt must be a list of token ids"),
        ({"response": [1.5]}, "response must be a list of token ids"),
        ({"response": [[1]]}, "response must be a list of token ids"),
        ({"response": [True]}, "response must be a list of token ids"),
        ({"response": [1, -2]}, "response[1] is -2"),
        ({"response": [2**31]}, "response[0] is 2147483648"),
        ({"response": [10**30]}, "response must be a list of token ids"),
        ({"response": []}, "response is empty"),
        ({"epoch": -1}, "epoch must be a whole number"),
        ({"epoch": "two"}, "epoch must be a whole number"),
        ({"problem": [1]}, "problem must be a name or a number"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"temperature": -0.1}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_ids": [[1], [2]]}, "come together"),
        ({"top_ids": [[1]], "top_probabilities": [[0.5]]}, "top_ids has 1 rows, and the response 2 tokens"),
        ({"top_ids": [[1], [2]], "top_probabilities": [[0.5], []]}, "differ in length"),
        ({"top_ids": [[1], [2]], "top_probabilities": [[0.5], [1.5]]}, "must be from 0 to 1"),
        ({"top_ids": [[1], [2]], "top_probabilities": [[0.5], [float("nan")]]}, "must be from 0 to 1"),
        ({"top_ids": [[1], [2]], "top_probabilities": [[0.5], ["x"]]}, "must hold numbers"),
        ({"top_ids": [[1], [2**24]], "top_probabilities": [[0.5], [0.5]]}, "top_ids[1] is 16777216"),
        ({"top_ids": [[1] * 9] * 2, "top_probabilities": [[0.1] * 9] * 2}, "rows of 9 entries"),
        ({"top_ids": 3, "top_probabilities": 3}, "list of lists"),
    ],
)
def test_a_bad_field_is_refused_by_file_line_and_reason(tmp_path, fields, reason):
    message, path = refused(tmp_path, GOOD | fields)
    assert message.startswith(f"{path}:2: ")
    assert reason in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": [1', "it is not JSON"),
        ("[1, 2]", "expected an object, got list"),
        ('{"prompt": [1]}', "response is missing"),
        ('{"response": [1]}', "prompt is missing"),
    ],
)
def test_a_line_that_is_no_rollout_is_refused(tmp_path, line, reason):
    message, path = refused(tmp_path, line)
    assert message.startswith(f"{path}:2: ")
    assert reason in message


def test_an_empty_file_and_one_that_is_not_there_are_refused(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ReplayError, match=r"empty\.jsonl: there are no rollouts"):
        read([empty])
    with pytest.raises(ReplayError, match=r"missing\.jsonl: it cannot be read"):
        read([tmp_path / "missing.jsonl"])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "noise.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(ReplayError, match=r"noise\.jsonl:1: it is not JSON"):
        read([path])


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read_as_they_are_and_damaged_ones_refused(tmp_path, suffix, compress):
    content = compress(lines([[5, 6, 7]] * 50).encode())
    whole, cut = tmp_path / f"whole.jsonl{suffix}", tmp_path / f"cut.jsonl{suffix}"
    whole.write_bytes(content)
    cut.write_bytes(content[: len(content) // 2])
    assert len(read([whole])) == 100
    with pytest.raises(ReplayError, match=r"cut\.jsonl"):
        read([cut])


def test_zstandard_files_are_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "rollouts.jsonl.zst"
    frames = [zstandard.compress(lines([response], epochs=1).encode()) for response in ([5, 6, 7], [8])]
    path.write_bytes(b"".join(frames))
    assert read([path]).tokens.tolist() == [5, 6, 7, 8]
    for damaged in (b"no such thing", frames[0][:-5], frames[0] + frames[1][:-5]):
        path.write_bytes(damaged)
        with pytest.raises(ReplayError, match=r"rollouts\.jsonl\.zst: it cannot be read"):
            read([path])


def test_what_is_recorded_arrives(tmp_path):
    path = tmp_path / "a.jsonl"
    rollouts = [
        {**GOOD, "epoch": 4, "problem": "x", "seed": 5, "temperature": 0.8,
         "top_ids": [[3, 9], [4]], "top_probabilities": [[0.5, 0.25], [1.0]]},
        {"prompt": [1], "response": [8], "epoch": 2, "problem": "y", "temperature": 0},
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rollouts)) + "\n\n")
    trace = read([path])
    assert trace.names == ["y", "x"]
    assert trace.epochs.tolist() == [0, 1]
    assert [trace.response(i).tolist() for i in range(2)] == [[8], [3, 4]]
    assert [prompt.tolist() for prompt in trace.prompts] == [[1], [1, 2]]
    assert (trace.seeds.tolist(), trace.seeded.tolist(), trace.greedy.tolist()) == (
        [0, 5],
        [False, True],
        [True, False],
    )
    assert trace.ids.tolist() == [[-1, -1], [3, 9], [4, -1]]
    assert trace.probabilities.tolist() == [[0, 0], [0.5, 0.25], [1.0, 0]]


def test_rollouts_without_a_problem_belong_to_their_prompt(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "response": [1]}) + "\n" for prompt in ([1], [2], [1])))
    assert read([path]).problems.tolist() == [0, 1, 0]


def test_npz_files_are_a_problem_each(tmp_path):
    paths = [tmp_path / name for name in ("a.npz", "b.npz")]
    for path in paths:
        np.savez(path, prompt=np.array([1, 2]), tokens=np.array([3, 4, 5]), offsets=np.array([0, 1, 3]))
    trace = read(paths)
    assert trace.names == ["a", "b"]
    assert [trace.response(i).tolist() for i in range(4)] == [[3], [4, 5]] * 2


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"offsets": [0, 1]}, "offsets must rise from 0"),
        ({"offsets": [0, 2, 2, 3]}, "offsets must rise from 0"),
        ({"offsets": [0.0, 3.0]}, "offsets has shape"),
        ({"tokens": [[1, 2, 3]]}, "tokens must be a list"),
        ({"tokens": [1.0, 2.0, 3.0]}, "tokens must be a list"),
        ({"tokens": [1, -1, 3]}, "tokens\\[1\\] is -1"),
    ],
)
def test_bad_npz_arrays_are_refused(tmp_path, arrays, reason):
    path = tmp_path / "a.npz"
    good = {"prompt": [1, 2], "tokens": [3, 4, 5], "offsets": [0, 3]}
    np.savez(path, **{name: np.array(value) for name, value in (good | arrays).items()})
    with pytest.raises(ReplayError, match=rf"a\.npz: {reason}"):
        read([path])


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ReplayError, match=r"a\.npz: it cannot be read as npz"):
        read([path])
    np.savez(path, tokens=np.array([1]))
    with pytest.raises(ReplayError, match=r"a\.npz: there is no array prompt"):
        read([path])
