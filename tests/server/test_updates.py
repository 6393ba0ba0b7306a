"""History over flushes, weight updates and sleep: kept, and its generation advanced exactly once per update.

The servers are of their own, as an announced update changes what a flush means from then on.
"""

import base64
import urllib.error

import pytest

from .support import body, build_model, prompts, start_server


@pytest.fixture(scope="module")
def das(model, tmp_path_factory):
    with start_server("das", model, tmp_path_factory.mktemp("logs") / "das.log") as client:
        yield client


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """The next policy: other weights, the same shapes."""
    return build_model(tmp_path_factory.mktemp("other"), vocabulary=256, sharpness=6.0, seed=8)


def rollouts(das, seed=0):
    return das.tokens([body(prompt, temperature=0, max_new_tokens=64) for prompt in prompts(4, seed=seed)])


def generation(das):
    return das.das()["policy_version"]


def tensors(model):
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")


def load_tensors(das, named):
    """One `/update_weights_from_tensor` call, as slime, verl and miles make them."""
    import torch.multiprocessing
    from sglang.srt.utils import MultiprocessingSerializer

    torch.multiprocessing.set_sharing_strategy("file_system")  # the other one is for a process's own children
    data = base64.b64encode(MultiprocessingSerializer.serialize(list(named.items()))).decode()
    return das.post("/update_weights_from_tensor", {"serialized_named_tensors": [data], "flush_cache": False})


def test_a_flush_alone_counts_where_no_update_was_ever_announced(das):
    first = rollouts(das)
    problems, before = das.das()["problems"], generation(das)
    das.post("/flush_cache")
    das.post("/flush_cache")
    assert generation(das) == before + 1
    assert das.das()["problems"] == problems
    before = das.das()
    assert rollouts(das) == first
    after = das.das()
    drafted, accepted = after["drafted"] - before["drafted"], after["accepted"] - before["accepted"]
    # A tree drafts alternatives too, of which one at most is kept.
    assert accepted > 0.5 * drafted > 0, "a greedy rollout repeats its predecessor"


def test_an_update_from_disk(das, model, other_model):
    mine = rollouts(das)
    before = generation(das)
    das.post("/update_weights_from_disk", {"model_path": str(other_model)})
    assert generation(das) == before + 1
    theirs = rollouts(das)
    assert theirs != mine
    das.post("/update_weights_from_disk", {"model_path": str(model), "weight_version": "back"})
    assert generation(das) == before + 2
    assert rollouts(das) == mine
    assert das.das()["history"]["tokens"] > 0


def test_a_failed_update_is_none(das, tmp_path):
    rollouts(das)
    before = generation(das)
    with pytest.raises(urllib.error.HTTPError):
        das.post("/update_weights_from_disk", {"model_path": str(tmp_path / "nowhere")})
    assert generation(das) == before


def test_an_update_from_tensors_in_several_parts(das, model, other_model):
    mine = rollouts(das)
    before = generation(das)
    for folder in (other_model, model):
        das.post("/pause_generation", {"mode": "abort"})
        das.post("/flush_cache")
        das.post("/begin_weight_update", {})
        named = list(tensors(folder).items())
        for start in range(0, len(named), 8):
            load_tensors(das, dict(named[start : start + 8]))
        das.post("/end_weight_update", {})
        das.post("/flush_cache")
        das.post("/continue_generation")
        changed = rollouts(das) != mine
        assert changed == (folder is other_model)
    assert generation(das) == before + 2


def test_a_flush_no_longer_counts_once_updates_are_announced(das):
    rollouts(das)
    before = generation(das)
    das.post("/flush_cache")
    assert generation(das) == before


def test_sleep_and_wake(das, model):
    mine = rollouts(das)
    before = das.das()
    for _ in range(2):
        das.post("/release_memory_occupation", {"tags": ["kv_cache", "weights"]})
        das.post("/resume_memory_occupation", {"tags": ["weights", "kv_cache"]})
    das.post("/update_weights_from_disk", {"model_path": str(model)})
    after = das.das()
    assert after["policy_version"] == before["policy_version"] + 1
    assert after["history"]["tokens"] == before["history"]["tokens"]
    assert rollouts(das) == mine
    assert das.das()["accepted"] > after["accepted"]


def test_an_update_while_rollouts_pause_in_place(das, model):
    """One request lives under two policy versions; with the same weights its tokens stay the same."""
    from .test_requests import are_beginnings_of, go_on_and_abort, long_requests, while_running

    wanted = long_requests(3, 95)
    expected = das.tokens(wanted)
    before = generation(das)

    def update():
        das.post("/pause_generation", {"mode": "in_place"})
        das.post("/update_weights_from_disk", {"model_path": str(model), "flush_cache": False})
        das.post("/continue_generation")
        go_on_and_abort(das)

    answers = while_running(das, wanted, update)
    assert are_beginnings_of(expected, answers)
    assert generation(das) == before + 1
