"""Which files of a folder are images: one rule for scoring, sets, training and judged data.

- A file counts by its suffix, in any case: whatever Pillow decodes, NumPy's ``.npy`` and ``.npz``, and the formats of
  the extras (DICOM, NIfTI, HEIF). Formats that hold drawings or films, such as EPS and MPEG, do not count.
- Folders are entered at any depth, linked ones as well, except where a link leads back to a folder above it.
- Hidden files and folders and those that systems leave behind (``Thumbs.db``, ``@eaDir``, ``__MACOSX``) are passed
  over, as is every other file: captions, tables, archives. They are counted, so that one line can say it.
- Links to nowhere are named; one with the name of an image is an image that cannot be read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

__all__ = ["Picture", "image_suffixes", "is_image_name", "list_images"]

ARRAYS = (".npy", ".npz")
DICOM = (".dcm", ".dicom")
NIFTI = (".nii", ".nii.gz")
HEIF = (".heic", ".heif", ".hif")
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow names these, but has no decoder of its own
_SYSTEM = {
    "$recycle.bin", "#recycle", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found",
    "system volume information", "thumbs.db",
}  # fmt: skip


class Picture(NamedTuple):
    """An image that is not decoded yet."""

    name: str  # path inside its source, with forward slashes; never used as a path, as it may be ../../x.png
    open: Callable[[], Any]  # gives what a Reader takes, in any thread; raises ValueError if it is too large
    position: Any = None  # where a stream goes on behind it, as JSON has it


def list_images(folder: str | os.PathLike[str]) -> tuple[dict[str, str], str]:
    """Find the images of a folder, see :mod:`afv_metric.images.listing` for the rules.

    Returns:
        Path of each image by its name, the path below the folder with forward slashes, sorted by its parts; and one
        line about what was passed over, empty if nothing was.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
        ValueError: If it holds no image.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; a folder of images was expected")
    found: list[tuple[tuple[str, ...], str]] = []
    passed_over: Counter[str] = Counter()
    dead: list[str] = []

    # With text in place of Path objects, which would take three times as long: there may be a million files.
    def enter(top: str, inside: tuple[str, ...], above: frozenset[tuple[int, int]]) -> None:
        identity = (os.stat(top).st_dev, os.stat(top).st_ino)
        if identity in above:
            passed_over["circular link"] += 1
            return
        with os.scandir(top) as entries:
            for entry in entries:
                parts, linked = (*inside, entry.name), entry.is_symlink()
                regular = os.path.isfile(entry.path) if linked else entry.is_file()
                if entry.name.startswith("."):
                    passed_over["hidden"] += 1
                elif entry.name.lower() in _SYSTEM:
                    passed_over["system"] += 1
                elif os.path.isdir(entry.path) if linked else entry.is_dir():
                    enter(entry.path, parts, above | {identity})
                elif not regular and os.path.exists(entry.path):
                    passed_over["special"] += 1  # a pipe, say, that would block whoever opens it
                else:
                    if not regular:
                        dead.append("/".join(parts))
                    if is_image_name(entry.name):
                        found.append((parts, entry.path))
                    elif regular:
                        passed_over[_suffix(entry.name)] += 1

    enter(str(root), (), frozenset())
    skipped = []
    if passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in passed_over.most_common(5))
        more = ", ..." if len(passed_over) > 5 else ""
        skipped.append(f"{_count(passed_over.total(), 'other file')} ({kinds}{more})")
    if dead:
        skipped.append(
            f"{_count(len(dead), 'dead link')} ({', '.join(sorted(dead)[:3])}{', ...' if len(dead) > 3 else ''})"
        )
    summary = f"passed over {', '.join(skipped)}" if skipped else ""
    if not found:
        raise ValueError(f"{root} holds no image{_lack(passed_over, summary)}")
    return {"/".join(parts): path for parts, path in sorted(found)}, f"{root}: {summary}" if skipped else ""


def _lack(passed_over: Counter[str], summary: str) -> str:
    if archives := sum(passed_over[suffix] for suffix in (".tar", ".tgz", ".tar.gz", ".zip")):
        return f", but {_count(archives, 'archive')}: train on them by their own paths, or unpack them first"
    remark = f" ({summary})" if summary else ""
    return f"{remark}: expected files such as .png, .jpg, .tif, .webp, .npy or .dcm"


@cache
def image_suffixes() -> tuple[str, ...]:
    """Suffixes, in lower case, of all files that count as images; some need an extra to be read."""
    Image.init()
    pillow = {
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PIXELS
    }
    return tuple(sorted(pillow.union(ARRAYS, DICOM, NIFTI, HEIF, [".avif"])))


def is_image_name(name: str) -> bool:
    """Whether a path ends as an image's does, and is neither hidden nor of a system.

    Example:
        >>> [is_image_name(name) for name in ("a/b.JPG", "a/._b.jpg", "__MACOSX/b.jpg", "b.txt")]
        [True, False, False, False]
    """
    *folders, last = name.split("/")
    if last.startswith(".") or any(folder.lower() in _SYSTEM for folder in folders):
        return False
    return last.lower().endswith(image_suffixes())


def _suffix(name: str) -> str:
    lower = name.lower()
    return ".tar.gz" if lower.endswith(".tar.gz") else os.path.splitext(lower)[1] or "without suffix"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
