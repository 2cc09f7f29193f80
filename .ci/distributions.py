"""Check what a wheel and a source distribution hold: ``python .ci/distributions.py WHEEL SDIST``."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

WEIGHTS = {f"afv_metric/weights/tiny-imagenet-v8/{name}" for name in ("config.json", "model.safetensors")}


def committed(*folders: str) -> set[str]:
    """Files of the repository under the folders, as git lists them."""
    done = subprocess.run(["git", "ls-files", "-z", *folders], capture_output=True, text=True, check=True)
    return set(done.stdout.rstrip("\0").split("\0"))


def check(what: str, found: set[str], wanted: set[str]) -> None:
    """Stop if a file is missing."""
    if missing := sorted(wanted - found):
        sys.exit(f"{what} lacks {', '.join(missing)}")


def main(wheel: str, sdist: str) -> None:
    """Stop with a line if a file is missing, or one is there that should not be."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    # Templates, scripts and styles too: whatever is committed in a package belongs to it.
    check(wheel, found, committed("afv_metric", "bapps_eval") | WEIGHTS)
    strange = {name.partition("/")[0] for name in found if ".dist-info/" not in name} - {"afv_metric", "bapps_eval"}
    if strange:
        sys.exit(f"{wheel} holds {', '.join(sorted(strange))}, which are not of the packages")
    with tarfile.open(sdist) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    check(sdist, names, committed("afv_metric", "bapps_eval", "experiments", "tests", "weights", "docs", "examples"))
    print(f"{len(found)} files in the wheel, {len(names)} in the sdist, as they should be")


if __name__ == "__main__":
    main(*sys.argv[1:])
