import io
import json
import logging
import os
import resource
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from afv_metric.images import Reader, read_image
from afv_metric.images import cache as data
from afv_metric.images.cache import ImageSet, ImageView, draw_images, load_images, split_held_out
from afv_metric.images.tiles import Tiling, resize_and_center_crop


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFV_METRIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path):
    for index in range(66):
        folder = tmp_path / "tree" / f"class{index % 2}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        size = (70 + index, 75)
        Image.new("RGB" if index % 3 else "L", size, index if not index % 3 else (index,) * 3).save(
            folder / f"{index:03d}.png", compress_level=0
        )
    return tmp_path / "tree"


def save_many(folder, count, size=(64, 64), name="{:03d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", size, (index, 0, 0)).save(folder / name.format(index))
    return folder


def entries(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def load(path, size=64, **settings):
    return load_images([path], size, quiet=True, **settings)


def decode(source, size=64):
    """The middle square of one image."""
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        source.save(file, "PNG" if source.mode != "CMYK" else "JPEG")
        source = io.BytesIO(file.getvalue())
    decoded = data._decode(data.Picture("x", lambda: source), data._Rules(size, Reader(), None))
    assert not isinstance(decoded, str)
    ((square,), _) = decoded
    return square


# What is read


def test_images_of_any_size_and_colour_are_read_in_order(tree):
    images = load(tree)
    assert images.images.shape == (66, 3, 64, 64)
    batch = images.images[:]
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (batch == batch[:, :1, :1, :1]).all()
    assert batch[:, 0, 0, 0].tolist() == [*range(0, 66, 2), *range(1, 66, 2)]
    assert images.labels.tolist() == [0] * 33 + [1] * 33
    assert images.classes == ("class0", "class1")
    assert images.names[0] == "tree/class0/images/000.png"


def test_a_flat_folder_has_no_labels(tmp_path):
    images = load(save_many(tmp_path / "flat", 64))
    assert images.labels is None
    assert images.classes == ()


def test_sources_are_joined_and_their_classes_kept_apart(tree, tmp_path):
    for folder in ("class0", "other"):
        save_many(tmp_path / "more" / folder, 2)
    images = load_images([tree, tmp_path / "more"], 64, quiet=True)
    assert images.classes == ("tree/class0", "tree/class1", "more/class0", "more/other")
    assert images.labels[-5:].tolist() == [1, 2, 2, 3, 3]
    assert images.images[-2:][:, 0, 0, 0].tolist() == [0, 1]
    assert load_images([tree, save_many(tmp_path / "flat", 1)], 64, quiet=True).labels is None
    assert load(tree).classes == ("class0", "class1")


def test_an_archive_is_read_as_the_folder_in_it(tree, tmp_path):
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as archive:
        for path in sorted(tree.rglob("*.png")):
            archive.add(path, path.relative_to(tmp_path))
    shutil.make_archive(str(tmp_path / "tree"), "zip", tree)
    expected = load(tree)
    for name in ("tree.tar.gz", "tree.zip"):
        images = load(tmp_path / name)
        order = torch.tensor(np.argsort([Path(name).name for name in images.names]))
        expected_order = torch.tensor(np.argsort([Path(name).name for name in expected.names]))
        assert torch.equal(images.images[order], expected.images[expected_order])
        assert torch.equal(images.labels[order], expected.labels[expected_order])
        assert images.classes == expected.classes


def test_cifar_comes_back_exactly_from_means_of_four(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)

    class Cifar:
        base_folder = CIFAR10.base_folder
        classes = ("bee", "cat")
        targets = (0, 1) * 32
        data = pixels

        def __init__(self, root, train):
            assert train

        def __len__(self):
            return 64

    monkeypatch.setattr("afv_metric.images.sources.CIFAR10", Cifar)
    (tmp_path / Cifar.base_folder).mkdir()
    images = load(tmp_path)
    means = torch.nn.functional.avg_pool2d(images.images[:].float(), 2)
    assert torch.equal(means, torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    assert images.labels[:3].tolist() == [0, 1, 0]
    assert images.classes == ("bee", "cat")


# What becomes of one image


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK"])
def test_all_modes_become_rgb(mode):
    pixels = decode(Image.new("RGB", (70, 70), (255, 255, 255)).convert(mode))
    assert (pixels > 250).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "I;16"])
def test_modes_follow_the_rules_of_the_metric(tmp_path, mode):
    values = np.random.default_rng(0).integers(0, 65536, (64, 64), np.uint16)
    if mode == "I;16":
        image = Image.fromarray(values)
    else:
        colours = np.random.default_rng(1).integers(0, 256, (64, 64, 4), np.uint8)
        image = Image.fromarray(colours).convert("RGBA" if mode in ("LA", "RGBA") else "RGB").convert(mode)
    image.save(tmp_path / "x.png", **({"transparency": bytes(range(256))} if mode == "P" else {}))
    expected = read_image(tmp_path / "x.png")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(decode(tmp_path / "x.png"), expected)


@pytest.mark.parametrize(("orientation", "bright"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation_is_applied(tmp_path, orientation, bright, suffix):
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{suffix}", exif=exif)
    pixels = decode(tmp_path / f"x.{suffix}")
    corners = {(row, column): pixels[row, column].min() > 200 for row in (0, -1) for column in (0, -1)}
    assert [corner for corner, is_bright in corners.items() if is_bright] == [bright]


def test_damaged_exif_is_no_reason_to_skip_an_image():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(file, "JPEG", exif=b"Exif\0\0rubbish that is no TIFF")
    assert (decode(file) == 9).all()


def test_large_images_are_averaged_and_their_middle_is_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (128, 256, 3), np.uint8)
    means = pixels[:, 64:192].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(decode(Image.fromarray(pixels)) - means).max() <= 1


def test_large_jpegs_are_reduced_alike(tmp_path):
    ramp = np.linspace(0, 255, 800)[None, :, None] * np.ones((600, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "x.jpg", quality=95)
    whole = resize_and_center_crop(Reader().levels(tmp_path / "x.jpg"), 64).astype(int)
    reduced = Reader().levels(tmp_path / "x.jpg", square=64)
    assert reduced.shape == (150, 200, 3)
    assert np.abs(whole - decode(tmp_path / "x.jpg")).max() <= 3


@pytest.mark.parametrize("side", [16, 32])
def test_small_images_are_repeated_where_that_fits(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side + 6, 3), np.uint8)
    repeats = 64 // side
    expected = pixels[:, 3:-3].repeat(repeats, 0).repeat(repeats, 1)
    assert np.array_equal(decode(Image.fromarray(pixels)), expected)


def test_other_small_images_are_enlarged_smoothly():
    ramp = np.linspace(0, 255, 40).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    steps = np.diff(decode(Image.fromarray(ramp))[32, :, 0].astype(int))
    assert (steps > 0).all()


def test_small_images_are_told(tmp_path, caplog):
    save_many(tmp_path / "images", 64, (40, 31))
    load(tmp_path / "images")
    assert "64 images have a shorter side below 32 pixels" in caplog.text
    caplog.clear()
    load(save_many(tmp_path / "larger", 64, (40, 32)))
    assert "shorter side" not in caplog.text


# Broken images and too few


def test_broken_images_are_named_and_skipped(tree, cache, caplog):
    whole = (tree / "class0" / "images" / "000.png").read_bytes()
    (tree / "class0" / "a.jpg").write_bytes(b"no image")
    (tree / "class0" / "b.png").write_bytes(whole[:1000])
    os.symlink(tree / "nowhere", tree / "class1" / "c.png")
    for _ in range(2):  # built, and found
        caplog.clear()
        images = load(tree)
        assert len(images.images) == len(images.labels) == len(images.names) == 66
        (entry,) = entries(cache)
        assert f"skipped 3 of 69 images that cannot be read; {cache / entry / 'broken.json'} names them" in caplog.text
    reasons = json.loads((cache / entry / "broken.json").read_text())
    assert list(reasons) == ["tree/class0/a.jpg", "tree/class0/b.png", "tree/class1/c.png"]
    assert reasons["tree/class0/a.jpg"].startswith("is no image that Pillow reads")
    assert "Truncated" in reasons["tree/class0/b.png"]
    assert "No such file" in reasons["tree/class1/c.png"]


def test_decompression_bombs_are_refused_by_name(tree, cache):
    Image.new("RGB", (100, 99)).save(tree / "class0" / "bomb.png")
    for path in tree.rglob("0*.png"):
        Image.new("L", (64, 64)).save(path)
    assert len(load(tree, reader=Reader(most_pixels=9899)).images) == 66
    reasons = json.loads((cache / entries(cache)[0] / "broken.json").read_text())
    assert list(reasons) == ["tree/class0/bomb.png"]
    assert "is 100x99 pixels, more than the 9,899" in reasons["tree/class0/bomb.png"]


def test_too_few_images_are_refused(tmp_path, cache):
    save_many(tmp_path / "images", 63)
    (tmp_path / "images" / "broken.png").write_bytes(b"")
    expected = r"63 tiles of images can be read, 1 are broken \(the first is images/broken.png: .*\); at least 64 tiles"
    with pytest.raises(ValueError, match=expected):
        load(tmp_path / "images")
    assert entries(cache) == []


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"images holds no image: expected files such as .png"):
        load(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="no training images at"):
        load(tmp_path / "nowhere")


# The cache


@pytest.fixture
def decodings(monkeypatch):
    """Names of the images that are decoded."""
    names = []
    original = data._decode
    monkeypatch.setattr(data, "_decode", lambda picture, rules: names.append(picture.name) or original(picture, rules))
    return names


def test_images_are_decoded_once(tree, cache, decodings):
    first = load(tree)
    assert len(decodings) == 66
    again = load(tree)
    assert len(decodings) == 66
    assert torch.equal(first.images[:], again.images[:])
    assert torch.equal(first.labels, again.labels)
    assert first[2:] == again[2:]
    assert (cache / entries(cache)[0] / "pixels.bin").stat().st_size == 66 * 64 * 64 * 3
    load(tree, 32)
    assert len(decodings) == 132
    assert len(entries(cache)) == 2


def test_the_pixels_stay_on_the_disk(tree, cache):
    images = load(tree)
    entry = cache / entries(cache)[0]
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("no /proc")
    assert str(entry / "pixels.bin") in mapped.read_text()
    assert len(images.images) == 66


def test_a_changed_source_is_decoded_again_and_the_old_pixels_go(tree, cache, decodings):
    before = load(tree)
    (old,) = entries(cache)
    Image.new("RGB", (99, 99), (255, 255, 255)).save(tree / "class0" / "images" / "000.png")
    after = load(tree)
    (new,) = entries(cache)
    assert new != old
    assert len(decodings) == 132
    assert after.images[:1].unique().tolist() == [255]
    assert before.images[:1].unique().tolist() == [0]  # still mapped
    assert before.fingerprint != after.fingerprint


def test_the_fingerprint_is_that_of_the_pixels(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.png"):
        os.utime(path, (1, 1))
    assert load(tree).fingerprint == load(tmp_path / "copy").fingerprint
    assert load(tree, 32).fingerprint != load(tree).fingerprint


@pytest.mark.parametrize("damage", ["short", "long", "no pixels", "no index", "half an index", "other index"])
def test_a_damaged_cache_is_noticed_and_built_anew(tree, cache, decodings, caplog, damage):
    expected = load(tree).images[:]
    entry = cache / entries(cache)[0]
    pixels, index = entry / "pixels.bin", entry / "index.json"
    if damage in ("short", "long"):
        content = pixels.read_bytes()
        pixels.write_bytes(content[:-1] if damage == "short" else content + b"!")
    elif damage.startswith("no "):
        (pixels if damage == "no pixels" else index).unlink()
    else:
        index.write_text(index.read_text()[:-9] if damage == "half an index" else "[]")
    assert torch.equal(load(tree).images[:], expected)
    assert len(decodings) == 132
    assert "are damaged" in caplog.text
    assert len(entries(cache)) == 1


def test_what_a_killed_process_left_is_removed(tree, cache):
    load(tree)
    (name,) = entries(cache)
    (cache / name).rename(cache / f".{name}-12345678")
    load(tree)
    assert entries(cache) == [name]


def test_two_builders_do_not_meet(tree, cache, decodings):
    results = []
    threads = [threading.Thread(target=lambda: results.append(load(tree))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decodings) == 66
    assert len(entries(cache)) == 1
    assert all(torch.equal(result.images[:], results[0].images[:]) for result in results)
    assert len(results) == 3


def test_a_full_disk_is_told_before_and_during(tree, cache, monkeypatch, decodings):
    usage = shutil.disk_usage(tree)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"cannot be kept in .*1 MB are needed and 0 MB are free.*AFV_METRIC_CACHE"):
            load(tree)
    assert entries(cache) == []
    assert decodings == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # the kernel refuses to write more
    try:
        with pytest.raises(OSError, match="cannot be kept in .*File too large"):
            load(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(cache) == []


def test_a_cache_that_cannot_be_written_is_told(tree, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot be kept in .*file/cache: Not a directory.*AFV_METRIC_CACHE"):
        load(tree, cache=tmp_path / "file" / "cache")


def test_where_the_cache_is(tree, tmp_path, monkeypatch):
    assert data._default_cache() == tmp_path / "cache"
    monkeypatch.delenv("AFV_METRIC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data._default_cache() == tmp_path / "xdg" / "afv_metric" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data._default_cache() == tmp_path / "home" / ".cache" / "afv_metric" / "images"
    load(tree, cache=tmp_path / "given")
    assert len(entries(tmp_path / "given")) == 1


def test_what_was_found_is_told(tree, caplog):
    with caplog.at_level(logging.INFO):
        load(tree)
    assert f"66 images in 2 classes from {tree} (folder)" in caplog.text


# Views and splits


def test_rows_of_rows():
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 4, 5, 3).contiguous()
    rows = ImageView(pixels).take(torch.tensor([5, 1, 3])).take(torch.tensor([2, 0]))
    assert rows.shape == (2, 3, 4, 5)
    assert rows[:].shape == rows.shape
    assert rows[torch.tensor([1, 0, 1])][:, 2, 3, 4].tolist() == [5, 3, 5]
    assert rows[torch.tensor([True, False])].shape == (1, 3, 4, 5)


def test_a_share_is_held_out(tree):
    images = load(tree)
    training, held_out = split_held_out(images, 0.25, seed=1)
    assert (len(training.images), len(held_out.images)) == (50, 16)
    assert sorted(training.names + held_out.names) == sorted(images.names)
    for part in (training, held_out):
        assert len(part.names) == len(part.labels) == len(part.images)
        assert part.names == sorted(part.names)
        for name, label, image in zip(part.names, part.labels.tolist(), part.images[:], strict=True):
            assert (image == int(name[-7:-4])).all()
            assert label == int(name[len("tree/class")])
        assert part.images._pixels.data_ptr() == images.images._pixels.data_ptr()


def test_splits_depend_on_the_seed_alone(tree):
    images = load(tree)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (split_held_out(images, 0.5, seed)[1].names for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_odd_shares(tree):
    images = load(tree)
    whole, nothing = split_held_out(images, 0, seed=1)
    assert whole.names == images.names
    assert torch.equal(whole.images[:], images.images[:])
    assert len(nothing.images) == 0
    assert [len(part.names) for part in split_held_out(images, 1e-6, seed=1)] == [65, 1]
    assert [len(part.names) for part in split_held_out(images, 0.9999, seed=1)] == [1, 65]
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share of the images in"):
            split_held_out(images, share, seed=1)


def test_a_smaller_choice_is_part_of_a_larger_one():
    names = [str(index) for index in range(20)]
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 2, 2, 3).contiguous()
    everything = ImageSet(ImageView(pixels), torch.arange(20), ("one",), names, "")
    few, more = (draw_images(everything, count, seed=3) for count in (5, 12))
    assert len(few.names) == len(few.images) == 5
    assert set(few.names) < set(more.names)
    assert few.labels is not None
    assert [str(label) for label in few.labels.tolist()] == list(few.names)
    assert few.images[:][:, 0, 0, 0].tolist() == few.labels.tolist()
    assert draw_images(everything, 0, seed=3) is everything
    with pytest.raises(ValueError, match="21 images were asked for, and there are 20"):
        draw_images(everything, 21, seed=3)


# Tiles, channels and ranges


def save_scans(folder, count, side=256):
    """Images of 16 bits that use 12, with a black border."""
    folder.mkdir()
    for index in range(count):
        scan = np.zeros((side, side), np.uint16)
        scan[64:, :] = np.random.default_rng(index).integers(0, 4096, (side - 64, side))
        Image.fromarray(scan).save(folder / f"{index}.png")
    return folder


def test_large_images_become_tiles_of_a_declared_range(tmp_path):
    folder = save_scans(tmp_path / "scans", 4)
    reader = Reader(data_range=(0, 4095), channels=1)
    with pytest.raises(ValueError, match=r"4 tiles of images can be read; at least 64 tiles .* \(--tiles 1024\)"):
        load(folder, 32, reader=reader)
    images = load(folder, 32, reader=reader, tiling=Tiling())
    # 8 x 8 native tiles, of which two rows are empty, 4 x 4 of which one is, 2 x 2, and the middle square
    assert images.images.shape == (4 * (48 + 12 + 4 + 1), 1, 32, 32)
    assert images.pictures.tolist() == np.arange(4).repeat(65).tolist()
    assert images.names[:2] == ["scans/0.png#0", "scans/0.png#1"]
    scan = np.asarray(Image.open(folder / "1.png"))[64:96, :32]
    assert np.array_equal(images.images[65:66][0, 0].numpy(), np.rint(scan * (255 / 4095)).astype(np.uint8))
    assert torch.equal(load(folder, 32, reader=reader, tiling=Tiling()).pictures, images.pictures)
    few = load(folder, 32, reader=reader, tiling=Tiling(most=20))
    assert len(few.names) == 80


def test_tiles_of_one_image_are_held_out_together(tmp_path):
    tiling, reader = Tiling(most=20), Reader(data_range=(0, 4095))
    images = load(save_scans(tmp_path / "scans", 5), 32, reader=reader, tiling=tiling)
    training, held_out = split_held_out(images, 0.4, seed=1)
    assert (len(training.names), len(held_out.names)) == (60, 40)
    assert set(training.pictures.tolist()).isdisjoint(held_out.pictures.tolist())


def test_files_of_other_channels_are_named(tmp_path, cache):
    folder = save_many(tmp_path / "images", 64)
    np.save(folder / "five.npy", np.zeros((64, 64, 5), np.uint8))
    assert load(folder, reader=Reader(channels=None)).images.shape == (64, 3, 64, 64)
    reasons = json.loads((cache / entries(cache)[0] / "broken.json").read_text())
    assert reasons == {"images/five.npy": "has 5 channels, the images before it 3"}


def test_all_images_count_alike_if_so_asked(tmp_path):
    folder = save_scans(tmp_path / "scans", 2)
    for index in range(2, 6):
        Image.fromarray(np.random.default_rng(index).integers(0, 4096, (32, 32), np.uint16)).save(
            folder / f"{index}.png"
        )
    reader = Reader(data_range=(0, 4095))
    by_area, by_image = (load(folder, 32, reader=reader, tiling=Tiling(weighting=how)) for how in ("area", "image"))
    assert by_area.pictures.bincount().tolist() == [65, 65, 1, 1, 1, 1]
    assert by_image.pictures.bincount().tolist() == [65] * 6
    assert torch.equal(by_image.images[:65], by_area.images[:65])
    assert by_image.names[130] == by_image.names[194] == "scans/2.png"


def test_a_tar_keeps_to_the_bound_as_well(tmp_path):
    with tarfile.open(tmp_path / "scans.tar", "w") as archive:
        archive.add(save_scans(tmp_path / "scans", 4), "scans")
    tiling = Tiling(cache_gb=4 * 20.5 * 32 * 32 * 3 / 1e9)
    images = load(tmp_path / "scans.tar", 32, reader=Reader(data_range=(0, 4095)), tiling=tiling)
    assert images.pictures.bincount().tolist() == [20] * 4


def test_every_slice_of_a_volume_is_seen(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 1), np.uint8)
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "volume.npy", volume)
    images = load(tmp_path / "images", 32, tiling=Tiling())
    assert np.array_equal(images.images[:][:, 0], volume[..., 0])
