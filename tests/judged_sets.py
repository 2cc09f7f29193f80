"""Tiny judged sets of uniform grey images, whose distances and scores can be worked out by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_grey(path: Path, level: int, height: int = 8, width: int = 8) -> Path:
    """Write a uniform image of one grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), level, np.uint8)).save(path)
    return path


def save_family(folder: Path, items: Sequence[tuple[Sequence[int], float]]) -> None:
    """Write a family in the layout of BAPPS: the grey levels of each item, three or two, and its judgement."""
    three = len(items[0][0]) == 3
    names = ("ref", "p0", "p1") if three else ("p0", "p1")
    judgements = folder / ("judge" if three else "same")
    judgements.mkdir(parents=True)
    for index, (levels, judgement) in enumerate(items):
        for name, level in zip(names, levels, strict=True):
            save_grey(folder / name / f"{index:06d}.png", level)
        np.save(judgements / f"{index:06d}.npy", np.array([judgement], np.float32))


def save_root(folder: Path) -> Path:
    """Write two families of triplets and one of pairs; ``l2`` scores 0.625, 1 and 5/6 on them."""
    # l2 sides with 0.75 of the people on the first triplet and ties on the second.
    save_family(folder / "2afc/val/cnn", [((100, 150, 120), 0.75), ((100, 90, 110), 0.25)])
    save_family(folder / "2afc/val/traditional", [((0, 10, 20), 0.0)])
    save_family(folder / "jnd/val/cnn", [((0, 10), 1.0), ((0, 20), 0.0), ((0, 30), 1.0), ((0, 40), 0.0)])
    return folder


def save_pairs(
    file: Path, levels: Sequence[int], judged: Sequence[float], groups: Sequence[str] | None = None, side: int = 8
) -> Path:
    """Write a list of pairs of black and a grey level: how far apart they were judged, and their group."""
    save_grey(file.parent / "black.png", 0, side, side)
    lines = ["reference,distorted,distance,group" if groups else "reference,distorted,distance"]
    for index, (level, distance) in enumerate(zip(levels, judged, strict=True)):
        save_grey(file.parent / f"grey{level}.png", level, side, side)
        lines.append(f"black.png,grey{level}.png,{distance}" + (f",{groups[index]}" if groups else ""))
    file.write_text("\n".join(lines) + "\n")
    return file


def save_archive(archive: Path, folder: Path, prefix: str = "") -> Path:
    """Pack what is in a folder, files only and in reverse order, with ``prefix`` before every name."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    mode = "w:xz" if archive.suffix == ".xz" else "w:gz"
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                tar.add(path, prefix + path.relative_to(folder).as_posix())
    return archive


def save_members(archive: Path, members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write an archive of members as they are, hostile ones too."""
    with tarfile.open(archive, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def hostile_members() -> dict[str, tarfile.TarInfo]:
    """One member for each way to break out of a folder, or to fill a disk."""
    names = {
        "absolute": "/val/cnn/ref/000009.png",
        "parent": "val/cnn/ref/../../../../000009.png",
        "drive": "C:/val/cnn/ref/000009.png",
        "backslash": "..\\val\\cnn\\ref\\000009.png",
    }
    members = {kind: tarfile.TarInfo(name) for kind, name in names.items()}
    types = {
        "symbolic link": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "pipe": tarfile.FIFOTYPE,
    }
    for kind, of_type in types.items():
        members[kind] = tarfile.TarInfo("val/cnn/ref/000009.png")
        members[kind].type = of_type
        members[kind].linkname = "/etc/passwd"
    return members
