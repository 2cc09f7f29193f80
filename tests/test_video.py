import csv
import json
import math

import pytest
import torch
from conftest import TINY_BUNDLE, make_images
from PIL import Image

from afv_metric import AFVDistance
from afv_metric.cli import main
from afv_metric.images import ImageError
from afv_metric.video import compare_frames, read_frames


def _frames(seed, count=5):
    return ((make_images(count, 32, 48, seed) + 1) * 127.5).round().byte()


def _save_folder(frames, folder):
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"frame{8 + index}.png")  # 8, 9, 10, ...
    return folder


def _save_video(frames, path):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = "bgr0"  # lossless, of red, green and blue
        for frame in frames:
            image = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("form", ["activation", "fisher", "local"])
def test_frames_are_at_the_distances_of_images(bundle, form):
    metric = AFVDistance(bundle, form=form)
    first, second = _frames(1), _frames(2)
    second[2] = first[2]
    found = list(compare_frames(metric, first, second))
    distances = torch.tensor([frame.distance for frame in found])
    torch.testing.assert_close(distances, metric(first, second), rtol=1e-4, atol=1e-7)
    assert distances[2] == 0
    changes = metric(second[1:], second[:-1]) - metric(first[1:], first[:-1])
    assert math.isnan(found[0].temporal)
    torch.testing.assert_close(torch.tensor([frame.temporal for frame in found[1:]]), changes, rtol=1e-3, atol=1e-5)


def test_no_more_than_two_frames_are_held(bundle):
    alive, most = [0], [0]

    class Frame(torch.Tensor):
        def __del__(self):
            alive[0] -= 1

    def frames(seed):
        for frame in _frames(seed, 12):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield frame.as_subclass(Frame)

    assert len(list(compare_frames(AFVDistance(bundle), frames(1), frames(2)))) == 12
    assert most[0] <= 5


def test_folders_and_files_hold_the_frames_in_order(tmp_path):
    frames = _frames(1)
    for path in (_save_folder(frames, tmp_path / "folder"), _save_video(frames, tmp_path / "video.mkv")):
        assert torch.equal(torch.cat(list(read_frames(path))), frames)


def test_what_is_no_video_is_told(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "junk.mp4").write_bytes(b"no video" * 99)
    for path, error, text in (
        (tmp_path / "junk.mp4", ImageError, "Invalid data"),
        (tmp_path / "none.mp4", OSError, "No such file"),
        (tmp_path, ValueError, "no image"),
    ):
        with pytest.raises(error, match=text):
            next(read_frames(path))


def test_the_command_sums_up_and_keeps_rows(tmp_path, capsys):
    first, second = _frames(1), _frames(2)
    paths = [str(_save_folder(first, tmp_path / "first")), str(_save_video(second, tmp_path / "second.mkv"))]
    given = ["video", *paths, "--weights", str(TINY_BUNDLE), "--device", "cpu", "--quiet"]
    assert main([*given, "--json", "--csv", str(tmp_path / "rows.csv")]) == 0
    record = json.loads(capsys.readouterr().out)
    distances = AFVDistance(TINY_BUNDLE)(first, second)
    assert record["distances"] == pytest.approx(distances.tolist(), rel=1e-4)
    assert record["mean"] == pytest.approx(float(distances.mean()), rel=1e-4)
    assert (record["frames"], record["worst_frame"]) == (5, int(distances.argmax()))
    assert record["p50"] == pytest.approx(float(distances.median()), rel=1e-4)
    assert record["temporal"] == pytest.approx(sum(map(abs, record["temporals"])) / 4)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [float(row["distance"]) for row in rows] == pytest.approx(record["distances"], rel=1e-5)
    assert [float(row["temporal"]) for row in rows[1:]] == pytest.approx(record["temporals"], rel=1e-4)
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["frames", "5"]


def test_a_video_that_ends_early_is_told_after_what_could_be_compared(tmp_path, capsys):
    paths = [str(_save_folder(_frames(seed, count), tmp_path / str(seed))) for seed, count in ((1, 5), (2, 3))]
    assert main(["video", *paths, "--weights", str(TINY_BUNDLE), "--device", "cpu", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "after 3 frames: the second video has ended" in printed.err
    assert printed.out.splitlines()[0].split() == ["frames", "3"]
    assert main(["video", str(tmp_path / "none.mp4"), paths[0], "--quiet"]) == 2
    assert "none.mp4: No such file" in capsys.readouterr().err
