"""The `das` command around its subcommands."""

import subprocess
import sys

import pytest
from sglang_das import cli


def test_version(capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith("sglang-das ")


def test_help_needs_no_subcommands_packages():
    code = "import sys; sys.modules.update(aiohttp=None, rich=None, torch=None, sglang=None); "
    code += "from sglang_das import cli; cli.main()"
    result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "demo" in result.stdout


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "demo", ("a_module_that_is_not_there", "sglang,demo", "test"))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["demo"])
    assert leaving.value.code == 2
    assert (
        "das demo needs a_module_that_is_not_there. Run: pip install 'sglang-das[sglang,demo]'"
        in capsys.readouterr().err
    )


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main([])
    assert leaving.value.code == 2
