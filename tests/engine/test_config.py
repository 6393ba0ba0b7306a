"""Settings come from the environment or a file, and a wrong one is refused by name."""

import json

import pytest
from sglang_das.engine.config import ConfigError, DasConfig


def test_defaults_are_enough():
    assert DasConfig.load({}) == DasConfig()


def test_variables_override_the_file(tmp_path):
    path = tmp_path / "das.json"
    path.write_text(json.dumps({"window": 4, "enabled": False}))
    config = DasConfig.load({"SGLANG_DAS_CONFIG": str(path), "SGLANG_DAS_WINDOW": "5"})
    assert (config.window, config.enabled) == (5, False)


def test_yaml_and_inline_json_are_read(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "das.yaml"
    path.write_text("max_width: 8\nenabled: off\n")
    assert DasConfig.load({"SGLANG_DAS_CONFIG": str(path)}) == DasConfig(max_width=8, enabled=False)
    assert DasConfig.load({"SGLANG_DAS_CONFIG": '{"max_width": 8}'}) == DasConfig(max_width=8)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SGLANG_DAS_WINDOW": "many"}, "window must be of type int, got 'many'"),
        ({"SGLANG_DAS_ENABLED": "maybe"}, "enabled must be true or false, got 'maybe'"),
        ({"SGLANG_DAS_SHAPE": "bush"}, "shape must be one of auto, chain, tree, got 'bush'"),
        ({"SGLANG_DAS_MAX_WIDTH": "0"}, "max_width must be at least 1, got 0"),
        ({"SGLANG_DAS_CONFIG": '{"wondow": 3}'}, "unknown setting 'wondow'"),
        ({"SGLANG_DAS_CONFIG": "/nowhere.json"}, "cannot be read"),
        ({"SGLANG_DAS_CONFIG": "{"}, "not valid JSON or YAML"),
        ({"SGLANG_DAS_CONFIG": "[1]x"}, "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(environ, message):
    with pytest.raises(ConfigError, match=message):
        DasConfig.load(environ)
