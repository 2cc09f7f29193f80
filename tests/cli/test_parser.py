"""Arguments, and what is said of wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_images import QUIET, save_image

from afv_metric.cli import main
from afv_metric.cli.parser import COMMANDS, make_parser
from afv_metric.fisher.forms import FORMS

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["compare", "a.png"], "IMG"),
        (["compare", "a.png", "b.png", "--form", "euclid"], "euclid"),
        (["matrix", ".", "--batch-size", "0"], "at least 1"),
        (["sets", ".", ".", "--size", "48"], "48"),
        (["sets", ".", ".", "--resamples", "0"], "at least 1"),
        (["dirs", ".", ".", "--device", "abacus"], "abacus"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "mention"),
    [
        ("compare", "--map PNG"),
        ("dirs", "DIR0 DIR1"),
        ("matrix", "--csv FILE"),
        ("sets", "--resamples R"),
        ("info", "BUNDLE"),
        ("cite", "--form"),
    ],
)
def test_every_command_has_help(command: str, mention: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert mention in capsys.readouterr().out


def test_auto_device_and_all_forms_are_accepted(tmp_path: Path, capsys: Capture) -> None:
    image = str(save_image(tmp_path / "a.png"))
    assert main(["compare", image, image, "--device", "auto", *QUIET]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["0", image]
    for name in ("compare", "dirs", "matrix", "cite"):
        (command,) = (action for action in make_parser(name)._actions if action.choices)
        (form,) = (action for action in command.choices[name]._actions if action.dest == "form")  # type: ignore[index]
        assert tuple(form.choices) == tuple(FORMS)


def test_module_runs_as_a_command() -> None:
    run = subprocess.run([sys.executable, "-m", "afv_metric", "--help"], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stderr == ""
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s", run.stdout, re.MULTILINE)
