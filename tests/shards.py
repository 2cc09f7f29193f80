"""Tar files of images as WebDataset writes them, and a server for them on 127.0.0.1."""

import contextlib
import io
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
from PIL import Image


def save_shards(folder: Path, *lengths: int, side: int = 64) -> list[Path]:
    """Shards of grey images of noise, whose first pixel is their number; each with a class beside it."""
    paths, number = [], 0
    for shard, length in enumerate(lengths):
        paths.append(folder / f"train-{shard:04d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for index in range(length):
                pixels = np.random.default_rng(number).integers(0, 256, (side, side), np.uint8)
                pixels[0, 0], number = number % 256, number + 1
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
                for name, data in ((f"{index:06d}.png", file.getvalue()), (f"{index:06d}.cls", b"3")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return paths


class _Quiet(SimpleHTTPRequestHandler):
    cuts: ClassVar[dict[str, int]] = {}

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source, outputfile) -> None:
        """Break off once where a cut is asked for."""
        place = self.cuts.pop(Path(self.path).name, None)
        outputfile.write(source.read(-1 if place is None else place))


@contextlib.contextmanager
def serve(folder: Path, **cuts: int) -> Iterator[str]:
    """Serve a folder; files named in ``cuts``, without suffix, break off at a byte at their first download."""
    handler = type("Handler", (_Quiet,), {"cuts": {f"{name}.tar": place for name, place in cuts.items()}})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
