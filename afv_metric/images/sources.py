"""Where training images come from: folders, torchvision's data sets, and archives that are read without unpacking.

What a path is taken for, by what is there:

- ``cifar-10-batches-py`` or ``cifar-100-python``, or a folder that holds one of them: the training images of CIFAR as
  torchvision keeps them, after its own check of their MD5 sums. Nothing is downloaded.
- A folder with ``train/`` and either ``meta.bin`` or ``ILSVRC2012_devkit_t12.tar.gz``, as torchvision lays ImageNet
  out: the images of ``train/``.
- Any other folder: all images below it, in sorted order, see :mod:`afv_metric.images.listing`.
- A file: a tar, compressed or not, or a zip.

Classes are folders, as in torchvision's ``ImageFolder``: the first folder below those that all images of a source
share. If images lie beside the class folders, or all in one folder, there are no classes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from torchvision.datasets import CIFAR10, CIFAR100

from afv_metric.images.listing import Picture, is_image_name, list_images

__all__ = ["LARGEST_MEMBER", "Contents", "Source", "class_folders", "find_source"]

_log = logging.getLogger(__name__)
LARGEST_MEMBER = 1 << 28  # bytes; a larger file in an archive is no picture, or is made to fill the memory


Contents = tuple[int | None, Iterable[Picture]]
"""Number of the images of a source, None if only reading gives it; and the images, to be gone through once.

Going through them raises ``ValueError`` where an archive is damaged.
"""


class Source(NamedTuple):
    """Where images come from."""

    name: str  # last part of its path
    where: str  # all of it
    kind: str
    files: Mapping[str, str]  # that it consists of, by a name that does not depend on where it lies
    read: Callable[[], Contents]  # raises ValueError if it is damaged
    part: str = ""  # of a stream

    def spread(self, count: int) -> Iterator[Picture]:
        """So many of its pictures, evenly spread; a tar is read twice. Of a stream they are the first."""
        if self.kind == "stream":
            return islice(self.read()[1], count)
        known, pictures = self.read()
        number = known or sum(1 for _ in pictures)
        chosen = {index * number // count for index in range(count)} if number > count else range(number)
        return (picture for index, picture in enumerate(self.read()[1]) if index in chosen)

    def state(self) -> str:
        """A hash of the names, sizes and modification times of its files."""
        digest = hashlib.sha256(self.part.encode())
        for name, path in self.files.items():
            digest.update(f"{name}\0{_stamp(path)}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()


def find_source(path: Path) -> Source:
    """Tell what kind of images a path holds.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is a file but no archive, or holds both CIFAR-10 and CIFAR-100.
    """
    if not path.exists():
        raise FileNotFoundError(f"no training images at {path}: there is no such folder or archive")
    if path.is_file():
        return _archive(path)
    known = (CIFAR10, CIFAR100)
    if itself := [dataset for dataset in known if path.resolve().name == dataset.base_folder]:
        return _cifar(path, path.resolve().parent, itself[0])
    inside = [dataset for dataset in known if (path / dataset.base_folder).is_dir()]
    if len(inside) == 2:
        folders = " and ".join(dataset.base_folder for dataset in known)
        raise ValueError(f"{path} holds {folders}: give the paths of those wanted")
    if inside:
        return _cifar(path, path, inside[0])
    about = any((path / name).is_file() for name in ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz"))
    is_image_net = about and (path / "train").is_dir()
    files, passed_over = list_images(path / "train" if is_image_net else path)
    if passed_over:
        _log.warning("%s", passed_over)

    def read() -> Contents:
        return len(files), (Picture(name, partial(_identity, file)) for name, file in files.items())

    return _source(path, "ImageNet" if is_image_net else "folder", files, read)


def _source(path: Path, kind: str, files: Mapping[str, str], read: Callable[[], Contents]) -> Source:
    return Source(path.resolve().name, str(path.resolve()), kind, files, read)


def class_folders(names: Sequence[str]) -> list[str] | None:
    """The folder of each image that stands for its class; None if there are no classes.

    Example:
        >>> class_folders(["train/cats/a.png", "train/cats/old/b.png", "train/dogs/c.png"])
        ['cats', 'cats', 'dogs']
    """
    folders = [PurePosixPath(name).parent.parts for name in names]
    if not folders:
        return None
    extremes = zip(min(folders), max(folders), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], extremes))
    if any(len(parts) == shared for parts in folders):
        return None
    return [parts[shared] for parts in folders]


def _cifar(path: Path, root: Path, dataset: Any) -> Source:
    def read() -> Contents:
        try:
            known = dataset(root, train=True)
        except RuntimeError as error:
            raise ValueError(f"{root / dataset.base_folder} is not complete, or damaged: {error}") from error
        labelled = zip(known.data, known.targets, strict=True)
        pictures = (
            Picture(f"{known.classes[label]}/{index:05d}", partial(_identity, pixels))
            for index, (pixels, label) in enumerate(labelled)
        )
        return len(known), pictures

    files = {file.name: str(file) for file in sorted((root / dataset.base_folder).iterdir())}
    return _source(path, dataset.__name__, files, read)


def _identity(found: Any) -> Any:
    return found


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:  # a link to nowhere, say: it will count as a broken image
        return str(error.errno)
    return f"{status.st_size} {status.st_mtime_ns}"


def _archive(path: Path) -> Source:
    # A tar is looked for first: its last file may be a zip, whose end is the mark of a zip.
    if tarfile.is_tarfile(path):
        pictures = partial(pictures_in_tar, lambda: path.open("rb"), str(path))
        return _source(path, "tar", {path.name: str(path)}, lambda: (None, pictures()))
    if zipfile.is_zipfile(path):
        return _source(path, "zip", {path.name: str(path)}, lambda: _zip(path))
    raise ValueError(f"{path} is neither a folder nor a tar or zip archive of images")


def _zip(path: Path) -> Contents:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from error
    # The archive is closed when the last picture is forgotten.
    pictures = [
        Picture(member.filename, partial(_open, partial(archive.read, member), member.file_size))
        for member in archive.infolist()
        if is_image_name(member.filename)
    ]
    return len(pictures), pictures


def pictures_in_tar(opened: Callable[[], IO[bytes]], path: str, behind: int = 0) -> Iterator[Picture]:
    """The images of a tar from front to back, but for those that are behind; links are passed over."""
    try:
        with opened() as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else a million headers stay in memory
                content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None or not is_image_name(member.name):
                    continue
                if behind:
                    behind -= 1
                else:
                    data = content.read() if member.size <= LARGEST_MEMBER else b""
                    yield Picture(member.name, partial(_open, partial(bytes, data), member.size))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error


def _open(read: Callable[[], bytes], size: int) -> IO[bytes]:
    if size > LARGEST_MEMBER:
        raise ValueError(f"{size} bytes, more than the {LARGEST_MEMBER} that a file in an archive may have")
    return io.BytesIO(read())


def _damaged(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"the archive {path} is damaged or cut short ({error}); copy it again")
