import json

import numpy as np
import pytest
import torch
from PIL import Image
from shards import save_shards, serve

from afv_metric.images import streams
from afv_metric.images.cache import load_images
from afv_metric.images.reading import Reader
from afv_metric.images.rounds import Rounds
from afv_metric.images.streams import find_sources
from afv_metric.images.tiles import Tiling

READER = Reader(channels=1)


def read(paths, position=None, most=1000):
    """Numbers of the images of a stream, and the position behind each, as a file keeps it."""
    (source,) = find_sources(paths, json.loads(json.dumps(position)))
    found = []
    for picture in source.read()[1]:
        found.append((int(READER.read(picture.open(), name=picture.name)[0, 0, 0, 0]), picture.position))
        if len(found) == most:
            break
    return found


def urls(paths):
    return [path.as_uri() for path in paths]


def save_dataset(folder, count):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = [np.random.default_rng(index).integers(0, 256, (64, 64), np.uint8) for index in range(count)]
    for index, pixels in enumerate(images):
        pixels[0, 0] = index
    rows = {"label": list(range(count)), "photo": list(map(Image.fromarray, images))}
    made = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    for shard in range(3):
        made.shard(3, shard).to_parquet(folder / f"train-{shard:05d}-of-00003.parquet")
    return f"datasets:{folder}"


def test_shards_are_read_one_after_the_other_from_any_position(tmp_path):
    paths = urls(save_shards(tmp_path, 3, 4, 2))
    whole = read(paths)
    assert [number for number, _ in whole] == list(range(9))
    for behind in (2, 3, 7, 9):
        again = [number for number, _ in read(paths, whole[behind - 1][1], most=12)]
        assert again == [*range(9), *range(9), *range(9)][behind : behind + 12]


def test_shards_come_over_http_and_a_connection_that_breaks_is_taken_up_again(tmp_path, monkeypatch, caplog):
    pytest.importorskip("aiohttp")
    waits = []
    monkeypatch.setattr(streams.time, "sleep", waits.append)
    save_shards(tmp_path, 5, 5)
    with serve(tmp_path, **{"train-0001": 9000}) as host:
        found = read([f"{host}/train-0000.tar", f"{host}/train-0001.tar"])
        assert [number for number, _ in found] == list(range(10))
        assert waits == [1]
        assert "train-0001.tar" in caplog.text
        with pytest.raises(ValueError, match=r"none.tar cannot be read behind image 0"):
            read([f"{host}/none.tar"])
    assert waits == [1]  # what is not there will not come


def test_a_shard_that_stays_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(streams.time, "sleep", lambda _: None)
    (path,) = save_shards(tmp_path, 5)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"train-0000.tar cannot be read behind image 1: unexpected end of data"):
        read(urls([path]))


def test_a_data_set_is_streamed_from_any_position(tmp_path):
    name = save_dataset(tmp_path, 9)
    whole = read([name])
    assert [number for number, _ in whole] == list(range(9))
    for behind in (2, 3, 7):
        assert [number for number, _ in read([name], whole[behind - 1][1], most=9)] == [
            *range(behind, 9),
            *range(behind),
        ]
    with pytest.raises(ValueError, match="split"):
        read([f"{name}:other"])


def test_what_is_streamed_stands_alone(tmp_path):
    for paths in (["https://host/a.tar", tmp_path], ["https://host/a.tar", "datasets:owner/name"]):
        with pytest.raises(ValueError, match="is streamed: give it alone"):
            find_sources(paths)


@pytest.fixture
def rounds(tmp_path):
    """Rounds of 70 of 90 images, of which an iteration draws 35; the first five images are held out."""

    def open_rounds(lengths=(50, 40), length=70):
        paths = urls(save_shards(tmp_path, *lengths))

        def load(position=None):
            tiling = Tiling(most=1, cache_gb=64 * 64 * length / 1e9)
            return load_images(
                paths, 64, reader=READER, tiling=tiling, cache=tmp_path / "cache", quiet=True, position=position
            )

        first = load()
        held_out, trained = first.names[:5], first.images.take(torch.arange(5, len(first.names)))
        return Rounds(first, trained, held_out, load, 35, tmp_path / "stream.json")

    return open_rounds


def numbers(rows):
    return rows[:][:, 0, 0, 0].tolist()


def test_every_round_goes_on_where_the_last_one_ended(rounds, tmp_path):
    opened = rounds()
    expected = [*range(90)] * 4
    for iteration in range(8):
        number = iteration // 2
        of_round = [image for image in expected[70 * number : 70 * number + 70] if image >= 5]
        assert numbers(opened.at(iteration)) == of_round
    for name, gone in (("stream.json", False), ("stream.json", True)):
        if gone:
            (tmp_path / name).unlink()
        assert numbers(rounds().at(5)) == [image for image in expected[140:210] if image >= 5]
    assert sum(path.stat().st_size for path in tmp_path.rglob("pixels.bin")) == 2 * 70 * 64 * 64  # the first, this one
    with pytest.raises(ValueError, match="stream.json is of another stream"):
        rounds(length=71)


def test_a_stream_that_the_cache_holds_is_one_round(rounds):
    opened = rounds((40, 30), 80)
    assert numbers(opened.at(0)) == numbers(opened.at(1000)) == list(range(5, 70))
