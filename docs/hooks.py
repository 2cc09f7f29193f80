"""Hooks of mkdocs: the model card of the shipped bundle is a page, though it lies beside the weights."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_CARD = Path("weights/tiny-imagenet-v8")


def on_files(files: Files, config: Any) -> Files:
    """Add the card and its pictures."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / _CARD).iterdir()):
        if path.suffix in (".md", ".png"):
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links that go through the repository's root, as on a forge, find the card in the site."""
    return markdown.replace("](../weights/", "](weights/")
