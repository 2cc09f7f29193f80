import json
import sys
from types import ModuleType

import pytest

from experiments import __main__ as module
from experiments.__main__ import main


@pytest.fixture
def fake(monkeypatch):
    """An experiment that raises what ``fake.error`` is, or else reports its options."""
    experiment = ModuleType("experiments.fake")
    experiment.error = None
    clock = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(module.time, "process_time", lambda: clock[0] / 2)

    def run(options):
        if experiment.error:
            raise experiment.error
        clock[0] += 2.04
        return {"table": [["what", "value"], ["seed", str(options.seed)], ["size", str(options.size)]], "half": 0.5}

    experiment.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=7)
    experiment.run = run
    monkeypatch.setitem(sys.modules, experiment.__name__, experiment)
    monkeypatch.setattr(module, "_EXPERIMENTS", {"fake": "does nothing"})
    return experiment


def test_an_experiment_ends_in_a_table_and_a_file_of_its_numbers_and_settings(fake, tmp_path, capsys):
    assert main(["fake", "--out", str(tmp_path / "new"), "--seed", "3", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["what", "value"], ["seed", "3"], ["size", "7"]]
    assert len({len(line) for line in lines}) == 1  # numbers end below each other
    record = json.loads((tmp_path / "new" / "fake.json").read_text())
    assert record["half"] == 0.5
    assert record["settings"] == {"size": 7, "seed": 3, "device": "cpu"}
    assert {"afv_metric", "python", "torch"} <= set(record["versions"])
    assert (record["seconds"], record["processor_seconds"]) == (2.0, 1.0)


@pytest.mark.parametrize("error", [ValueError("no such data"), OSError("disk full"), ImportError("needs faiss")])
def test_what_goes_wrong_is_one_line_and_leaves_no_file(fake, tmp_path, capsys, error):
    fake.error = error
    assert main(["fake", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == f"error: {error}\n"
    assert not (tmp_path / "new").exists()


def test_devices_that_are_not_there_are_named(fake, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fake", "--out", str(tmp_path), "--device", "abacus"])
    assert "abacus" in capsys.readouterr().err


def test_interrupting_is_no_traceback(fake, tmp_path, capsys):
    fake.error = KeyboardInterrupt()
    assert main(["fake", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_every_experiment_has_a_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in ("classify", "sets", "neighbours", "compress", "monitor", "mnist"):
        assert name in text
