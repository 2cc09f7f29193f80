"""Pages of HTML in one file: they ask for nothing from outside, so they work from ``file://`` and in an e-mail."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from afv_metric.files import atomic_write

__all__ = ["data_uri", "png_uri", "write_page"]


def write_page(path: str | os.PathLike[str], template: str, *packages: str, **content: Any) -> None:
    """Write a page, atomically, from a template that extends ``base.html.j2`` and its ``title``, ``lead`` and ``run``.

    The ``templates`` of other packages are looked through after those of this one. All content is escaped.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in ("afv_metric", *packages)]),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    page = environment.get_template(template).render(**content)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def data_uri(content: bytes, mime: str) -> str:
    """A file as an address."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """A picture ``(H, W, 3)`` or ``(H, W)`` as the address of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")
