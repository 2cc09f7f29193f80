import json

import pytest

from afv_metric.train import log
from afv_metric.train.log import Log


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
