"""The history goes from one server to the next by a file; a file that is no good never keeps a server from starting."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang_das import RolloutHistory
from sglang_das.engine.config import ConfigError, DasConfig
from sglang_das.engine.problems import Problems
from sglang_das.engine.snapshot import Past, Snapshots

VOCABULARY = 100
CONFIG = DasConfig()
SEEN = [(0, 17, True, 0, 12.5), (3, 40, False, 2, 13.25)]


def prompt(number):
    return np.arange(number, number + 9, dtype=np.int64)


def server(path, *, vocabulary=VOCABULARY):
    """A server's snapshots, history and problems, as it starts."""
    snapshots = Snapshots(path, 600.0, vocabulary)
    past = snapshots.load(CONFIG) or Past(RolloutHistory(), Problems(), {})
    return snapshots, past.history, past.problems


def past(history, problems, lengths=None):
    """What there is to be written."""
    return lambda: Past(history, problems, lengths or {})


def roll_out(history, problems, number, output, name=None):
    problem = problems.admit(prompt(number), name).problem
    with_prompt = history.rollout(problem.key, problem.prompt)
    with_prompt.append(output)
    with_prompt.close()
    return problem.key


@pytest.fixture
def saved(tmp_path):
    """A file with two problems, and their numbers."""
    path = tmp_path / "history"
    snapshots, history, problems = server(path)
    keys = [roll_out(history, problems, number, [50 + number, 60, 70], name) for number, name in ((1, None), (2, "b"))]
    snapshots.finish(past(history, problems, dict.fromkeys(keys, SEEN)), 30)
    assert snapshots.describe() == {"path": str(path), "loaded": False, "refused": None, "saved": 1, "failures": 0}
    assert sorted(os.listdir(tmp_path)) == ["history", "history.prompts"]
    return path, keys


def test_a_server_goes_on_from_the_last_ones_history(saved):
    path, keys = saved
    snapshots, history, problems = server(path)
    assert snapshots.figures.loaded
    assert [problems.admit(prompt(1)).problem.key, problems.admit(prompt(9), "b").problem.key] == keys
    sequence = history.rollout(keys[0], prompt(1))
    sequence.append([51])
    assert sequence.draft(max_tokens=2).tokens.tolist() == [60, 70]
    assert history.generation == 1, "the weights may be others"


def test_lengths_go_with_it(saved):
    path, keys = saved
    assert Snapshots(path, 600.0, VOCABULARY).load(CONFIG).lengths == dict.fromkeys(keys, SEEN)


def test_an_error_in_taking_stock_is_told_and_nothing_else(tmp_path, caplog):
    snapshots = Snapshots(tmp_path / "history", 600.0, VOCABULARY)
    snapshots.finish(lambda: 1 / 0, 30)
    assert (snapshots.figures.saved, snapshots.figures.failures) == (0, 1)
    assert "division by zero" in caplog.text


def test_new_problems_never_get_a_number_given_before(saved):
    path, keys = saved
    numbers = set(keys)
    for generation in range(3):
        snapshots, history, problems = server(path)
        # Admitted too late for this snapshot to know their prompts: numbers that only the history holds.
        known = problems.known()
        numbers_now = {roll_out(history, problems, 20 + 2 * generation + i, [5, 6, 7]) for i in range(2)}
        assert not numbers_now & numbers
        numbers |= numbers_now
        snapshots._write(history, known, {})
    assert len(server(path)[2]) == 2


def test_what_the_history_has_dropped_is_forgotten(saved):
    path, _ = saved
    RolloutHistory().save(path)
    assert len(server(path)[2]) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_refused_and_moved_aside(saved, data):
    path, _ = saved
    name = data.draw(st.sampled_from(["history", "history.prompts"]))
    files = {file: path.with_name(file).read_bytes() for file in ("history", "history.prompts")}
    whole = files[name]
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = bytes([*whole[:place], whole[place] ^ data.draw(st.integers(1, 255)), *whole[place + 1 :]])
    path.with_name(name).write_bytes(damaged)
    snapshots, history, problems = server(path)
    assert snapshots.figures.refused
    assert not snapshots.figures.loaded
    assert len(history) == len(problems) == 0
    assert path.with_name(f"{name}.refused").read_bytes() == damaged
    assert not path.exists()
    for file, content in files.items():
        path.with_name(file).write_bytes(content)


@pytest.mark.parametrize("missing", ["history", "history.prompts"])
def test_half_a_snapshot_is_none(saved, missing):
    path, _ = saved
    path.with_name(missing).unlink()
    snapshots, history, problems = server(path)
    assert "No such file" in snapshots.figures.refused
    assert len(history) == len(problems) == 0


def test_a_model_of_another_vocabulary_has_another_history(saved):
    path, _ = saved
    snapshots, _, problems = server(path, vocabulary=99)
    assert "its model has 100 tokens, this one 99" in snapshots.figures.refused
    assert len(problems) == 0


def test_a_file_that_cannot_be_written_is_told_and_nothing_else(tmp_path, caplog):
    snapshots, history, problems = server(tmp_path / "gone" / "history")
    snapshots.finish(past(history, problems), 30)
    assert (snapshots.figures.saved, snapshots.figures.failures) == (0, 1)
    assert "could not write its history" in caplog.text


def test_it_is_written_when_due(tmp_path):
    snapshots = Snapshots(tmp_path / "history", 0.01, VOCABULARY)
    history, problems = RolloutHistory(), Problems()
    roll_out(history, problems, 1, [5, 6])
    while snapshots.figures.saved < 2:
        snapshots.save_if_due(past(history, problems))
    assert server(tmp_path / "history")[0].figures.loaded
    patient = Snapshots(tmp_path / "other", 600.0, VOCABULARY)
    patient.save_if_due(past(history, problems))
    assert not (tmp_path / "other").exists()


def test_the_setting_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="snapshot must be a file in a folder that exists, got '/no/such/folder/x'"):
        DasConfig(snapshot="/no/such/folder/x")
    with pytest.raises(ConfigError, match="snapshot_interval_s must be positive"):
        DasConfig(snapshot=str(tmp_path / "x"), snapshot_interval_s=0)
