import json
import time

import pytest

from afv_metric.train import log
from afv_metric.train.log import Log, read_records


def test_records_are_lines_of_json(tmp_path, monkeypatch):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    writer = Log(tmp_path)
    writer.write("stats", 10, 1.26, {"loss_d": 0.5})
    writer.write("stats", 20, 2.5, {"loss_d": 0.25})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert lines == [
        {"iteration": 10, "seconds": 1.3, "loss_d": 0.5},
        {"iteration": 20, "seconds": 2.5, "loss_d": 0.25},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["stats.jsonl"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_same_numbers_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = Log(tmp_path)
    writer.write("monitors", 10, 1.0, {"fid": 3.5})
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("monitors/fid")] == [(10, 3.5)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_events_of_a_branch_that_was_given_up_are_void(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    clock = [time.time()]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for begun, steps in ((0, (10, 20, 30)), (20, (25,))):
        clock[0] += 1  # TensorBoard reads files in the order of their names, which begin with the second
        writer = Log(tmp_path, begun)
        for step in steps:
            writer.write("stats", step, 1.0, {"real": step / 10})
        writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("stats/real")] == [10, 20, 25]


def test_lines_that_are_no_records_are_named(tmp_path):
    (tmp_path / "stats.jsonl").write_bytes(b'{"iteration": 1}\n\xff\xfe\x00junk\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"stats\.jsonl, line 2 is no record of an iteration"):
        read_records(tmp_path / "stats.jsonl")
