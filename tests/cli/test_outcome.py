"""How commands end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cli_images import TINY_BUNDLE, save_image

from afv_metric.cli.outcome import Interrupted, Problems, describe, emit, if_interrupted, run, say

Capture = pytest.CaptureFixture[str]


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("too few images"), 2, "error: too few images"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 2, "error: a.png: No such file or directory"),
        (OSError(18, "Invalid link", "a", None, "b"), 2, "error: a to b: Invalid link"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (MemoryError(), 2, "error: out of memory; "),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), 2, "error: out of memory; "),
        (RuntimeError("mat1 and mat2\nmore"), 2, "error: unexpected RuntimeError: mat1 and mat2; --debug shows"),
        (KeyError("width"), 2, "error: unexpected KeyError: 'width'; --debug shows"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("stopped and saved", 143), 143, "stopped and saved"),
    ],
)
def test_every_error_is_one_line_and_has_its_status(
    error: BaseException, status: int, message: str, capsys: Capture
) -> None:
    assert run(lambda: raising(error)) == status
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert (len(printed.err.splitlines()), printed.out) == (1, "")


def test_a_status_is_handed_on_and_none_is_success() -> None:
    assert (run(lambda: None), run(lambda: 1)) == (0, 1)


def test_debug_shows_where_an_error_arose(capsys: Capture) -> None:
    assert run(lambda: raising(ValueError("too few")), debug=True) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: too few"
    problems = Problems(debug=True)
    problems.add("a.png: cannot be read", ValueError("cut"))
    assert capsys.readouterr().err.splitlines() == ["ValueError: cut", "error: a.png: cannot be read"]
    assert (problems.status, Problems().status) == (1, 0)


def test_an_interrupt_says_what_is_kept(capsys: Capture) -> None:
    def work(stop: KeyboardInterrupt) -> None:
        with if_interrupted(lambda: "interrupted: 3 of 4 are done"):
            raise stop

    for stop, status in ((KeyboardInterrupt(), 130), (Interrupted(status=143), 143)):
        assert run(lambda stop=stop: work(stop)) == status  # type: ignore[misc]
        assert capsys.readouterr().err == "interrupted: 3 of 4 are done\n"


def test_what_is_logged_and_warned_of_are_lines_and_all_is_as_before(capsys: Capture) -> None:
    log = logging.getLogger("afv_metric.images")

    def work() -> None:
        log.info("7 files passed over")
        logging.getLogger("httpx").info("GET /")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("beyond [-1, 1]", stacklevel=1)
        warnings.warn_explicit("Skipping tag 3", UserWarning, "TiffImagePlugin.py", 956, module="PIL.TiffImagePlugin")

    before = (warnings.showwarning, list(logging.getLogger("afv_metric").handlers), signal.getsignal(signal.SIGTERM))
    assert run(work) == 0
    assert capsys.readouterr().err == "7 files passed over\nwarning: beyond [-1, 1]\n"
    assert run(work, quiet=True) == 0
    assert capsys.readouterr().err == "warning: beyond [-1, 1]\n"
    after = (warnings.showwarning, list(logging.getLogger("afv_metric").handlers), signal.getsignal(signal.SIGTERM))
    assert after == before


def test_names_that_are_no_text_are_printed(capsys: Capture) -> None:
    name = os.fsdecode(b"caf\xe9")

    def work() -> None:
        emit(name)
        say(name)

    assert run(work) == 0
    assert capsys.readouterr() == ("caf\\udce9\n", "caf\\udce9\n")


def test_describing_an_error_without_words() -> None:
    assert describe(ValueError()) == "ValueError"
    assert describe(IsADirectoryError(21, "Is a directory", b"a")) == "a: Is a directory"


PRINTING = """
import sys
from afv_metric.cli.outcome import emit, run
def work():
    first = emit("one")
    sys.stdin.read()
    open(sys.argv[1], "w").write(f"{first} {[emit('x' * 99999) for _ in range(3)][0]}")
    return 1
sys.exit(run(work))
"""


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTING, str(tmp_path / "done")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "one\n"
        process.stdout.close()
        _, errors = process.communicate()
    assert (process.returncode, errors, (tmp_path / "done").read_text()) == (1, "", "True False")


def test_messages_that_nobody_reads_do_not_end_the_work(tmp_path: Path) -> None:
    program = """
import sys
from tqdm import tqdm
from afv_metric.cli.outcome import run, say
def work():
    for _ in tqdm(range(99), mininterval=0):
        say("x" * 999)
    open(sys.argv[1], "w").write("done")
sys.exit(run(work))
"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", program, str(tmp_path / "done")]
    done = subprocess.run(command, stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert (done.returncode, (tmp_path / "done").read_text()) == (0, "done")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_named() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINTING, os.devnull]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: stdout: No space left on device\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_rows_that_are_written(number: signal.Signals, status: int, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for side in range(2):
        for index in range(6):
            save_image(tmp_path / f"{side}" / f"{index:03}.png", seed=index, noise=9 * side)
    arguments = [str(tmp_path / "0"), str(tmp_path / "1"), "--csv", str(out), "--batch-size", "1", "--quiet"]
    program = f"""
import os, sys
from afv_metric.cli import main, pairs
measure, calls = pairs._measure_batch, []
def measure_batch(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), {int(number)})
    return measure(*arguments)
pairs._measure_batch = measure_batch
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", program, "dirs", *arguments, "--weights", TINY_BUNDLE]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    kept = f"interrupted: 3 of 6 pairs are in {out}: the same command with --resume goes on\n"
    assert (done.returncode, done.stderr) == (status, kept)
    assert [line.partition(",")[0] for line in out.read_text().splitlines()] == [
        "file",
        "000.png",
        "001.png",
        "002.png",
    ]
    assert not list(tmp_path.glob(".*"))
