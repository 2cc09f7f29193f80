"""What happens to files: each damage takes a file that is whole, and a source of chance."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

# The head of a PNG of 60,000 x 60,000 pixels.
ENORMOUS = bytes.fromhex("89504e470d0a1a0a0000000d494844520000ea600000ea60080200000000000000")


def _cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content) + 1)])


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"x")
    for _ in range(5):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def _link(path: Path, target: str | Path) -> None:
    path.unlink()
    path.symlink_to(target)


def _turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "cut": _cut,
    "flipped": _flip,
    "emptied": lambda path, _: path.write_bytes(b""),
    "foreign": lambda path, chance: path.write_bytes(chance.randbytes(64)),
    "foreign text": lambda path, _: path.write_bytes(b"reference,distorted,distance\n\xff"),
    "foreign JSON": lambda path, _: path.write_bytes(b'{"schema_version": 2, "name": [], "width": "x"}\n'),
    "cut JSON": lambda path, _: path.write_bytes(b"[1, null"),
    "enormous": lambda path, _: path.write_bytes(ENORMOUS),
    "removed": lambda path, _: path.unlink(),
    "of a system": lambda path, _: path.rename(path.with_name("Thumbs.db")),
    "renamed": lambda path, _: path.rename(path.with_suffix(".zzz")),
    "twice": lambda path, _: path.with_name(f"{path.stem} 2{path.suffix}").write_bytes(path.read_bytes()),
    "a folder": lambda path, _: _turn_into_folder(path),
    "a link to itself": lambda path, _: _link(path, path.name),
    "a link to nowhere": lambda path, _: _link(path, "nowhere"),
    "a link to its folder": lambda path, _: _link(path, path.parent),
    "unreadable": lambda path, _: path.chmod(0),
}


def damage_some(folder: Path, number: int, chance: random.Random) -> list[str]:
    """Damage files below a folder, one after the other; returns how."""
    done = []
    for _ in range(number):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        kind = chance.choice(list(DAMAGES))
        DAMAGES[kind](chance.choice(files), chance)
        done.append(kind)
    return done
