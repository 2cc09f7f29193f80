"""Arguments, and what is said of wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_images import QUIET, save_image

from afv_metric import __version__
from afv_metric.cli import main
from afv_metric.cli.parser import COMMANDS, make_parser
from afv_metric.fisher.forms import FORMS
from afv_metric.train.__main__ import main as train
from bapps_eval.__main__ import main as bapps_eval

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comparre", "a", "b"], "invalid choice: 'comparre'; did you mean 'compare'?"),
        (["abacus"], "invalid choice: 'abacus'; choose from compare, dirs"),
        (["cite", "--form", "fihser"], "argument --form: invalid choice: 'fihser'; did you mean 'fisher'?"),
        (["matrix", "a", "--devcie", "cpu"], "unexpected argument '--devcie'; did you mean '--device'?"),
        (["dirs", "a", "b", "c"], "afv-metric dirs: error: unexpected argument 'c'\n"),
        (["dirs", "a", "b", "--batch-size", "x"], "argument --batch-size: must be a whole number, got 'x'"),
        (["export", "a", "--out", "b", "--levels", "x"], "argument --levels: must be a number, got 'x'"),
        (["dirs", "a", "b", "--device", "gpu"], "there is no device 'gpu', only cpu, cuda, mps, xpu and auto"),
    ],
)
def test_mistakes_are_said_in_the_words_of_the_user(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_does_not_exist(capsys: Capture) -> None:
    assert main(["train", "imagnet", "--data", "a", "--out", "b"]) == 2
    assert re.search("no recipe 'imagnet', only .*; did you mean 'imagenet'", capsys.readouterr().err)


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert (exit_.value.code, capsys.readouterr().out) == (0, f"afv-metric {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_argument_in_plain_text(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "`" not in text
    (commands,) = (action for action in make_parser(command)._actions if action.choices)
    assert all(action.help for action in commands.choices[command]._actions)  # type: ignore[index]


def test_help_imports_nothing_heavy() -> None:
    program = """
import contextlib, io, sys
from afv_metric.cli import main
from afv_metric.cli.parser import COMMANDS
for arguments in ([], *([name] for name in COMMANDS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*arguments, "--help"])
print(sorted({"torch", "numpy", "PIL", "scipy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_three_doors_lead_into_one_house(capsys: Capture) -> None:
    assert train(["imagenet", "--show"]) == main(["train", "imagenet", "--show"]) == 0
    one, other = capsys.readouterr().out.split("}\n{")
    assert one.strip("{}\n") == other.strip("{}\n")
    for door, arguments, usage in (
        (train, ["adapt"], "afv-metric adapt"),
        (train, ["calibrate"], "afv-metric calibrate"),
        (train, [], "afv-metric train"),
        (bapps_eval, ["report"], "afv-metric eval-report"),
        (bapps_eval, ["--splitt"], "afv-metric eval"),
        (main, ["eval", "report"], "afv-metric eval-report"),
    ):
        with pytest.raises(SystemExit):
            door(arguments)
        assert f"{usage}: error: " in capsys.readouterr().err
