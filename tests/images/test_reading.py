import io
import struct
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

from afv_metric.images import ImageError, Reader, count_frames, percentile_range, read_image

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 48, 3), np.uint8)
GREY = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint8) * 2
WIDE = GREY.astype(np.uint16) * 257


def pixels(source, **options):
    return read_image(source, **options)[0].permute(1, 2, 0).numpy()


def difference(found, expected):
    return np.abs(found.astype(int) - expected.reshape((*found.shape[:2], -1))).max()


def write_tiff(path, values, bits, photometric=1, kind=1):
    """A plain TIFF of one channel, with the tags that Pillow does not write."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    tags = [
        *((256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 134), (277, 1)),
        *((278, height), (279, len(data)), (339, kind)),
    ]
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<IH", 8, len(tags)))
        file.write(b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags))
        file.write(struct.pack("<I", 0) + data)
    return path


# Files of 8 bits


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "La", "RGBa", "PA"])
def test_every_mode_becomes_rgb_or_its_own_channels(mode):
    first = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = Image.fromarray(COLOURS).convert(first).convert(mode)
    expected = np.asarray(image.convert("LA" if mode == "La" else "RGBA").convert("RGB"))
    assert np.array_equal(pixels(image), expected)
    assert read_image(image, channels=None).shape[1] == (1 if mode in ("1", "L", "LA", "La") else 3)
    assert read_image(image, channels=1).shape == (1, 1, 40, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_orientation(tmp_path, orientation, format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "x", format, exif=exif)
    with Image.open(tmp_path / "x") as image:
        assert np.array_equal(pixels(tmp_path / "x"), np.asarray(ImageOps.exif_transpose(image)))


def test_sources_of_every_kind_give_the_same(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", COLOURS)
    np.savez(tmp_path / "x.npz", COLOURS)
    data = (tmp_path / "x.png").read_bytes()
    for source in (tmp_path / "x.png", str(tmp_path / "x.npy"), tmp_path / "x.npz", io.BytesIO(data), COLOURS):
        assert np.array_equal(pixels(source), COLOURS)
    assert np.array_equal(pixels(Image.fromarray(COLOURS)), COLOURS)
    tensor = read_image(COLOURS)
    tensor.zero_()
    assert COLOURS.any()  # it is a copy
    with pytest.raises(TypeError, match="an image is a path, a file, an array or Pillow's image, got Tensor"):
        read_image(torch.zeros(3, 40, 40))


def test_transparency_shows_the_background(tmp_path):
    for value in (0, 255):
        opaque = np.full((40, 40, 4), value, np.uint8)
        opaque[..., 3] = 255
        clear = opaque.copy()
        clear[:, :20, 3] = 0
        for name, values in (("opaque", opaque), ("clear", clear)):
            Image.fromarray(values).save(tmp_path / f"{name}.png")
        assert np.unique(pixels(tmp_path / "opaque.png")).tolist() == [value]
        assert np.unique(pixels(tmp_path / "clear.png")[:, :20]).tolist() == [128]
        assert (pixels(tmp_path / "clear.png")[:, 20:] == value).all()
        assert pixels(tmp_path / "clear.png", background=(1, 2, 3))[0, 0].tolist() == [1, 2, 3]


def test_transparent_colours_of_palettes_and_greys(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png", transparency=GREY[0, 1].item())
    assert pixels(tmp_path / "grey.png")[0, :3, 0].tolist() == [0, 128, 4]
    palette = Image.fromarray(COLOURS).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes([0] * 256))
    assert (pixels(tmp_path / "palette.png") == 128).all()
    Image.fromarray(WIDE).save(tmp_path / "wide.png", transparency=WIDE[0, 1].item())
    assert pixels(tmp_path / "wide.png")[0, :3, 0].tolist() == [0, 128, 4]


# More bits


@pytest.mark.parametrize("most", [65535, 1023, 4095])
def test_a_pgm_has_the_range_of_its_header(tmp_path, most):
    values = np.round(GREY / 255 * most).astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5\n48 40\n%d\n" % most + values.tobytes())
    assert difference(pixels(tmp_path / "x.pgm"), GREY) == 0
    (tmp_path / "dark.pgm").write_bytes(b"P5\n48 40\n4095\n" + (values // values.max() * 9).astype(">u2").tobytes())
    assert pixels(tmp_path / "dark.pgm").max() <= 1


def test_tiffs_of_sixteen_bits_are_read_as_what_they_are(tmp_path):
    assert difference(pixels(write_tiff(tmp_path / "a.tif", WIDE, 16)), GREY) == 0
    assert difference(pixels(write_tiff(tmp_path / "b.tif", 65535 - WIDE, 16, photometric=0)), GREY) == 0
    assert difference(pixels(write_tiff(tmp_path / "c.tif", (WIDE // 2).astype(np.int16), 16, kind=2)), GREY) <= 1
    signed = (WIDE.astype(int) - 32768).astype(np.int16)
    with pytest.raises(ImageError, match=r"from -32768 to 11436, and its format defines no range.*-32768 32767"):
        read_image(write_tiff(tmp_path / "d.tif", signed, 16, kind=2))
    assert difference(pixels(tmp_path / "d.tif", data_range=(-32768, 32767)), GREY) == 0
    whole = WIDE.astype(np.uint32) * 65537
    with pytest.raises(ImageError, match="its format defines no range"):
        read_image(write_tiff(tmp_path / "e.tif", whole, 32))
    assert difference(pixels(tmp_path / "e.tif", data_range=(0, 2**32 - 1)), GREY) == 0


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_few_bits_in_sixteen_need_a_declared_range(tmp_path, bits, suffix):
    most = 2**bits - 1
    values = np.rint(GREY / 255 * most).astype(np.uint16)
    values[0, 1] = most
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    with pytest.raises(ImageError, match=rf"from 0 to {most}, far from the 65535 .* --range 0 {most} \(data_range="):
        read_image(tmp_path / f"x.{suffix}")
    assert difference(pixels(tmp_path / f"x.{suffix}", data_range=(0, most))[1:], GREY[1:]) == 0
    Image.fromarray(GREY).save(tmp_path / "twin.png")
    assert difference(pixels(tmp_path / "twin.png", data_range=(0, most)), GREY) == 0  # 8 bits stay 8 bits


def test_a_black_image_is_black():
    assert not read_image(Image.fromarray(np.zeros((40, 40), np.uint16))).any()


def test_colours_of_twelve_bits_in_sixteen_are_not_black(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    few = COLOURS.astype(np.uint16) * 16
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in few)
    write_png(tmp_path / "x.png", 48, 40, 16, 2, rows)
    with pytest.raises(ImageError, match="--range 0 4095"):
        read_image(tmp_path / "x.png")
    assert difference(pixels(tmp_path / "x.png", data_range=(0, 4080)), COLOURS) == 0
    assert torchvision


def write_png(path, width, height, depth, colour, rows, *chunks):
    import zlib

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    more = b"".join(chunk(*one) for one in chunks)
    data = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_floating_point_needs_a_declared_range(tmp_path):
    Image.fromarray((GREY / 255).astype(np.float32)).save(tmp_path / "x.tif")
    np.save(tmp_path / "x.npy", GREY / 255)
    for name in ("x.tif", "x.npy"):
        with pytest.raises(ImageError, match=rf"{name}: has values from 0 to 0.67451, .* --range 0 1 \(data_range"):
            read_image(tmp_path / name)
        assert difference(pixels(tmp_path / name, data_range=(0, 1)), GREY) == 0
    assert pixels(np.array([[-9.0, 9.0]]), data_range=(0, 1))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(ImageError, match="has 2 values that are not finite numbers"):
        read_image(np.array([[np.nan, np.inf, 0]]), data_range=(0, 1))
    with pytest.raises(ValueError, match="LOW below HIGH, got 1 and 0"):
        Reader(data_range=(1, 0))


def test_the_percentiles_of_a_set_are_a_range():
    images = [np.full((40, 40), value, np.float32) for value in range(101)]
    assert percentile_range(images, 5, 90) == (5, 90)
    with pytest.raises(ValueError, match="percentiles are for images deeper than 8 bits"):
        percentile_range([GREY])


# Arrays and frames


def test_arrays_of_other_shapes_are_refused(tmp_path):
    np.savez(tmp_path / "two.npz", a=GREY, b=GREY)
    np.save(tmp_path / "pickled.npy", np.array([{}], object))
    for source, message in (
        (np.zeros(9, np.uint8), r"shape \(9,\)"),
        (np.zeros((3, 40, 80), np.uint8), "channels come last"),
        (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\)"),
        (np.zeros((9, 9), np.complex64), "values of complex64; expected real numbers"),
        (tmp_path / "two.npz", r"two.npz: holds 2 arrays \(a, b\); expected one image"),
        (tmp_path / "pickled.npy", "pickled.npy: is damaged, or of a kind"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(source)


def test_any_number_of_channels():
    five = RNG.integers(0, 256, (40, 40, 5), np.uint8)
    assert np.array_equal(pixels(five, channels=None), five)
    assert np.array_equal(pixels(five, channels=5), five)
    with pytest.raises(ImageError, match="has 5 channels, expected 3"):
        read_image(five)


def test_frames(tmp_path):
    frames = RNG.integers(0, 256, (3, 40, 40, 3), np.uint8)
    np.save(tmp_path / "x.npy", frames)
    pages = [Image.fromarray(frame) for frame in frames]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "x.webp", save_all=True, append_images=pages[1:], lossless=True)
    for name in ("x.npy", "x.tif", "x.webp"):
        assert count_frames(tmp_path / name) == 3
        assert np.array_equal(pixels(tmp_path / name), frames[0])
        assert np.array_equal(pixels(tmp_path / name, frame=1), frames[1])
        assert np.array_equal(pixels(tmp_path / name, frame=-1), frames[2])
        with pytest.raises(ImageError, match="has 3 frames, 0 to 2; frame 3 was asked for"):
            read_image(tmp_path / name, frame=3)
    assert count_frames(GREY) == 1
    assert np.array_equal(pixels(GREY, frame=0, channels=1)[..., 0], GREY)


# Colour


def profile(colorants):
    """The profile of sRGB with other primaries."""
    wide = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(struct.unpack(">I", wide[128:132])[0]):
        tag, place, _ = struct.unpack(">4sII", wide[132 + 12 * entry : 144 + 12 * entry])
        if tag in colorants:
            wide[place + 8 : place + 20] = struct.pack(">3i", *(round(value * 65536) for value in colorants[tag]))
    return bytes(wide)


P3 = profile(
    {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
)
PICTURE = Image.fromarray(RNG.integers(60, 200, (6, 8, 3), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)


def to_profile(data):
    ends = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(data))
    converted = ImageCms.profileToProfile(PICTURE, *ends, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC)
    assert converted is not None
    return converted


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_embedded_profiles_are_converted(tmp_path, format):
    settings = {"lossless": True} if format == "WEBP" else {}
    to_profile(P3).save(tmp_path / "x", format, icc_profile=P3, **settings)
    expected = np.asarray(PICTURE)
    assert difference(pixels(tmp_path / "x"), expected) <= 2
    assert difference(pixels(tmp_path / "x", colour_management=False), expected) > 9


def test_profiles_of_srgb_and_damaged_ones_change_nothing(tmp_path, caplog):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, data in enumerate((srgb, b"rubbish")):
        PICTURE.save(tmp_path / "x.png", icc_profile=data)
        assert np.array_equal(pixels(tmp_path / "x.png"), np.asarray(PICTURE))
        assert ("colour profile cannot be used" in caplog.text) == bool(number)


def test_gamma_and_chromaticities_of_png_are_converted(tmp_path):
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(to_profile(P3)))
    points = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
    chunks = [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *(round(1e5 * x) for x in points)))]
    write_png(tmp_path / "p3.png", 48, 40, 8, 2, rows, *chunks)
    assert difference(pixels(tmp_path / "p3.png"), np.asarray(PICTURE)) <= 2
    linear = np.rint(255 * (np.asarray(PICTURE) / 255) ** 2.2).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in linear)
    write_png(tmp_path / "linear.png", 48, 40, 8, 2, rows, (b"gAMA", struct.pack(">I", 100000)))
    assert difference(pixels(tmp_path / "linear.png"), np.asarray(PICTURE)) <= 4
    write_png(tmp_path / "srgb.png", 48, 40, 8, 2, rows, (b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0"))
    assert np.array_equal(pixels(tmp_path / "srgb.png"), linear)


# Damage


def test_wrong_checksums_and_cut_files_are_refused(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    place = whole.index(b"IDAT")
    (length,) = struct.unpack(">I", whole[place - 4 : place])
    for position in (place + 40, place + 4 + length):  # in the data, and in the checksum
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (tmp_path / "x.png").write_bytes(damaged)
        with pytest.raises(ImageError, match="x.png: is damaged"):
            read_image(tmp_path / "x.png")
    Image.fromarray(COLOURS).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-300])
    with pytest.raises(ImageError, match="x.jpg: is damaged"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("content", [b"", b"not an image", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("suffix", ["png", "npy", "tif"])
def test_rubbish_is_named(tmp_path, content, suffix):
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(ImageError, match=rf"x\.{suffix}: is "):
        read_image(tmp_path / f"x.{suffix}")


def test_missing_files_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


def test_the_limit_of_pixels_is_our_own(tmp_path, monkeypatch):
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", COLOURS)
    for name in ("x.png", "x.npy"):
        with pytest.raises(ImageError, match="is 48x40 pixels, more than the 1,919 .* raise the limit with --most-pix"):
            read_image(tmp_path / name, most_pixels=1919)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # of which Pillow would warn
    assert read_image(tmp_path / "x.png").shape == (1, 3, 40, 48)
    assert Image.MAX_IMAGE_PIXELS == 1500


def test_threads_read_alike_and_touch_no_filter_of_warnings(tmp_path, monkeypatch):
    to_profile(P3).save(tmp_path / "x.png", icc_profile=P3)
    expected, filters = read_image(tmp_path / "x.png"), list(warnings.filters)
    monkeypatch.delattr(warnings, "catch_warnings")  # which would change the filters of the other threads
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_image(tmp_path / "x.png"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(image, expected) for image in found)
    assert list(warnings.filters) == filters


# Formats of extras


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    (tmp_path / "x.nii").write_bytes(b"")
    with pytest.raises(ImageError, match=r"needs nibabel to be read: pip install 'afv-metric\[medical\]'"):
        read_image(tmp_path / "x.nii")


def save_dicom(path, values, **fields):
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.BitsAllocated, data.PixelRepresentation = 1, 16, int(values.dtype.kind == "i")
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsStored, data.HighBit = 12, 11
    for name, value in fields.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom(tmp_path):
    values = np.rint(GREY / 255 * 4095).astype(np.uint16)
    assert difference(pixels(save_dicom(tmp_path / "x.dcm", values)), GREY) == 0
    negative = save_dicom(tmp_path / "no suffix", 4095 - values, PhotometricInterpretation="MONOCHROME1")
    assert difference(pixels(negative), GREY) == 0
    window = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    scan = save_dicom(tmp_path / "ct.dcm", values, **window)
    assert difference(pixels(scan), GREY) == 0
    hounsfield = values.astype(float) - 1024
    expected = np.rint(255 * ((hounsfield + 160) / 400).clip(0, 1))
    assert difference(pixels(scan, window=True), expected) <= 1
    assert difference(pixels(scan, data_range=(-160, 240)), expected) <= 1
    with pytest.raises(ImageError, match="has no window of its own"):
        read_image(tmp_path / "x.dcm", window=True)
    deep = save_dicom(tmp_path / "deep.dcm", values, BitsStored=16, HighBit=15)
    with pytest.raises(ImageError, match="--range 0 4095"):
        read_image(deep)


def test_a_dicom_file_of_the_field():
    pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm", download=False)
    with pytest.raises(ImageError, match="Declare which values are black and white"):
        read_image(path)
    image = read_image(path, data_range=(-1024, 3071), channels=1)
    assert image.shape == (1, 1, 128, 128)
    assert image.unique().numel() > 50


def test_nifti(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = RNG.integers(-100, 900, (20, 30, 5)).astype(np.int16)
    for name in ("x.nii", "x.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / name)
        assert count_frames(tmp_path / name) == 5
        with pytest.raises(ImageError, match="its format defines no range"):
            read_image(tmp_path / name)
        found = pixels(tmp_path / name, data_range=(-100, 900))
        expected = np.rint((np.rot90(volume[..., 2]) + 100) * 0.255)
        assert difference(found, expected) <= 1
        packed = Reader(data_range=(-100, 900)).read(io.BytesIO((tmp_path / name).read_bytes()), name=name)
        assert np.array_equal(packed[0].permute(1, 2, 0).numpy(), found)
        assert not np.array_equal(pixels(tmp_path / name, data_range=(-100, 900), frame=0), found)


def test_tiffs_of_many_channels(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    five = RNG.integers(0, 256, (40, 48, 5), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", five, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(
        tmp_path / "planes.tif", five.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
    )
    wide = COLOURS.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "wide.tif", wide, photometric="rgb")
    tifffile.imwrite(tmp_path / "big.tif", COLOURS, photometric="rgb", bigtiff=True)
    for name in ("x.tif", "planes.tif"):
        assert np.array_equal(pixels(tmp_path / name, channels=None), five)
    assert difference(pixels(tmp_path / "wide.tif", data_range=(0, 4080)), COLOURS) == 0
    with pytest.raises(ImageError, match="--range 0 4095"):
        read_image(tmp_path / "wide.tif")
    assert np.array_equal(pixels(tmp_path / "big.tif"), COLOURS)


def test_heif(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = np.stack([GREY] * 3, -1)
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "x.heic", quality=95)
    assert difference(pixels(tmp_path / "x.heic"), smooth) <= 6
    assert count_frames(tmp_path / "x.heic") == 1


@pytest.mark.parametrize("tile", [None, (64, 32)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_large_tiff_is_read_in_bands(tmp_path, monkeypatch, tile, planar, channels):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr("afv_metric.images.formats._WHOLE", 90 * 100)
    pixels = np.random.default_rng(0).integers(0, 65536, (300, 90, channels), np.uint16)
    options = {"tile": tile} if tile else {"rowsperstrip": 7}
    if channels == 1:
        stored, photometric = pixels[..., 0], "miniswhite"
    else:
        options["planarconfig"], photometric = planar, "rgb"
        stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, stored, photometric=photometric, compression="zlib", predictor=True, **options)
    expected = 255 - np.rint(pixels / 257) if channels == 1 else np.rint(pixels / 257)
    reader = Reader(data_range=(0, 65535), channels=channels, most_pixels=20_000)
    with pytest.raises(ImageError, match="90x300 pixels, more than the 20,000"):
        reader.read(path)
    parts = list(reader.parts(path, str(path)))
    assert max(len(part) for part in parts) < 150
    assert np.abs(np.concatenate(parts) - expected).max() <= 1
    low, high = percentile_range([path], 0, 100, reader=reader)
    assert low < 1000 < 64000 < high
    whole = Reader(data_range=(0, 65535), channels=channels).levels(path)
    assert np.abs(whole - expected).max() <= 1


def test_bands_of_a_tiff_may_be_missing_or_have_alpha(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr("afv_metric.images.formats._WHOLE", 64 * 64)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 64, 4), np.uint8)
    pixels[..., 3] = 255
    options = {"photometric": "rgb", "tile": (64, 64), "dtype": np.uint8}
    tifffile.imwrite(tmp_path / "alpha.tif", pixels, extrasamples=["unassalpha"], **options)
    assert np.array_equal(np.concatenate(list(Reader().parts(tmp_path / "alpha.tif", "alpha.tif"))), pixels[..., :3])
    tiles = iter([pixels[:64, :, :3], None])
    tifffile.imwrite(tmp_path / "missing.tif", tiles, shape=(128, 64, 3), **options)
    top, bottom = Reader().parts(tmp_path / "missing.tif", "missing.tif")
    assert np.array_equal(top, pixels[:64, :, :3])
    assert not bottom.any()
