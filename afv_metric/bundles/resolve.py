"""Where bundles come from: the ones that ship with the package, local folders, and the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from afv_metric.files import finish_update, reason_of, sha256_of
from afv_metric.suggestions import did_you_mean, explain_lpips

__all__ = ["DEFAULT_BUNDLE", "BundleError", "HubError", "find_bundle", "list_bundles"]

DEFAULT_BUNDLE: str = "tiny-imagenet-v8"

_CONFIG = "config.json"
_PATIENCE = 5.0  # seconds until a hub counts as out of reach
_PACKAGE = Path(__file__).resolve().parents[1]
_HUB_ID = re.compile(r"(?!.*\.\.)(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./+-]*))?", re.ASCII)
_logger = logging.getLogger(__name__)


class BundleError(RuntimeError):
    """A bundle that is not what it should be; the message says what, where, and what to do."""


class HubError(RuntimeError):
    """A bundle could not be had from the Hugging Face hub; the text says what to do about it."""


def list_bundles() -> list[str]:
    """Give the sorted names of the bundles that ship with the package.

    Example:
        >>> "tiny-imagenet-v8" in list_bundles()
        True
    """
    return sorted(_shipped_bundles())


def find_bundle(
    weights: str | os.PathLike[str] = DEFAULT_BUNDLE, files: Sequence[str] = (_CONFIG, "model.safetensors")
) -> Path:
    """Give the local folder that holds the files of a bundle, downloading them if need be.

    A string is looked up as the name of a shipped bundle first, then as a folder, then as a hub id
    ``owner/name[@revision]``; a path object is always a folder. Files of the hub all come from one commit and
    stay in the cache of ``huggingface_hub``, whose environment variables apply (``HF_HOME``, ``HF_ENDPOINT``,
    ``HF_HUB_OFFLINE``, ``HF_TOKEN``). Safetensors of the hub have to match the sha256 in ``config.json``.

    Raises:
        ValueError: ``weights`` is none of the three kinds.
        BundleError: The folder, or one of the files in it, does not exist.
        HubError: The files could not be downloaded, or are not what ``config.json`` says they are.
    """
    shipped = _shipped_bundles()
    if isinstance(weights, str) and weights in shipped:
        return _local_bundle(shipped[weights], files)
    path = os.path.expanduser(weights)
    if not isinstance(weights, str) or os.path.isdir(path):
        return _local_bundle(Path(path), files)
    hub_id = _HUB_ID.fullmatch(weights)
    if hub_id and not os.path.exists(path):
        return _download(hub_id["repository"], hub_id["revision"], files)
    raise ValueError(
        f"cannot find a bundle {weights!r}: expected the name of a shipped bundle ({_shipped_names()}), "
        "an existing folder, or a hub id 'owner/name[@revision]'"
        + (explain_lpips(weights) or did_you_mean(weights, shipped))
        + ("; this is a file, give the folder that holds it" if os.path.exists(path) else "")
    )


def _shipped_bundles() -> dict[str, Path]:
    """Folder of every shipped bundle by its name: beside the package in a checkout, and first of all inside of it."""
    roots = [_PACKAGE / "weights"]
    # Without this file the parent is not our checkout but, say, site-packages, where "weights" is not ours.
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        roots.insert(0, _PACKAGE.parent / "weights")
    return {config.parent.name: config.parent for root in roots for config in root.glob(f"*/{_CONFIG}")}


def _shipped_names() -> str:
    return ", ".join(map(repr, list_bundles())) or "there is none in this installation"


def _local_bundle(folder: Path, files: Sequence[str]) -> Path:
    if not folder.is_dir():
        raise BundleError(f"there is no bundle folder {str(folder)!r}")
    try:
        finish_update(folder, _CONFIG)
    except OSError as error:
        raise BundleError(
            f"{folder} was being written by a process that was killed; finish it: {reason_of(error)}"
        ) from error
    for file in files:
        if not (folder / file).is_file():
            if (folder / "recipe.json").is_file() or any(folder.glob("checkpoint-*.pt")):
                raise BundleError(
                    f"{str(folder)!r} is the folder of a training run, not of a bundle; make one of it: "
                    f"python -m afv_metric.train export {folder} --out BUNDLE"
                )
            raise BundleError(f"the bundle folder {str(folder)!r} has no file {file!r}")
    return folder


def _download(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """Bring the files into the cache of ``huggingface_hub`` and give the snapshot folder that holds them."""
    folder = _fetch(repository, revision, _CONFIG).parent
    for file in files:
        checked = file.endswith(".safetensors")
        if checked:
            _expected_sha256(folder, file)  # fails before, not after, a large download from some other model
        # The snapshot folder is named after its commit. Asking for that very commit keeps the files together
        # even if the branch moves in the meantime.
        _fetch(repository, folder.name, file)
        if checked:
            _verify(repository, folder, file)
    return folder


def _expected_sha256(folder: Path, file: str) -> str:
    """Read the sha256 of a file from the config of its bundle."""
    try:
        return str(json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["files"][file]["sha256"])
    except (ValueError, LookupError, TypeError) as error:
        raise HubError(
            f"{folder / _CONFIG} names no sha256 of {file} ({error!r}): the repository holds no AFV bundle, "
            f"or this file is broken; in the latter case delete {(folder / _CONFIG).resolve()} and try again"
        ) from error


def _verify(repository: str, folder: Path, file: str) -> None:
    """Compare a cached file with the config of its bundle; if it differs, download both once more."""
    expected, found = _expected_sha256(folder, file), sha256_of(folder / file)
    if found == expected:
        return
    _logger.warning("sha256 of %s should be %s but is %s; downloading again", folder / file, expected, found)
    outcome, failure = "brought the same, so the repository or a mirror of it is at fault", None
    try:
        for name in (file, _CONFIG):
            # Where the cache has no symbolic links, a forced download would leave the old copy in place.
            if not (folder / name).is_symlink():
                (folder / name).unlink()
            _fetch(repository, folder.name, name, force=True)
        expected, found = _expected_sha256(folder, file), sha256_of(folder / file)
    except (HubError, OSError) as error:
        outcome, failure = f"failed: {error}", error
    if found != expected:
        raise HubError(
            f"the sha256 of {file} from {repository} should be {expected} but is {found}, and a second, "
            f"forced download {outcome}. To start afresh delete {(folder / file).resolve()} and try again, "
            f"or run: hf download {repository} {file} --revision {folder.name} --force-download"
        ) from failure


def _fetch(repository: str, revision: str | None, file: str, force: bool = False) -> Path:
    """Give the cached path of one file of a repository, downloading it if need be."""
    from huggingface_hub import constants, errors, get_session, hf_hub_download, try_to_load_from_cache

    try:
        with _quiet_client():
            cached = try_to_load_from_cache(repository, file, revision=revision)
            if not isinstance(cached, str) and not constants.HF_HUB_OFFLINE:
                # The client itself would try for half a minute to reach a hub that cannot be reached.
                try:
                    get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
                except Exception as error:
                    raise errors.LocalEntryNotFoundError(str(error)) from error
            return Path(hf_hub_download(repository, file, revision=revision, force_download=force))
    except Exception as error:
        # Not only its own errors: the client lets those of its HTTP library through, which has changed twice.
        raise HubError(_explanation(error, repository, revision, file)) from error


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the lines of the hub client and its HTTP library out of the log: an error has a sentence of ours."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx", "httpx2", "urllib3")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _explanation(error: Exception, repository: str, revision: str | None, file: str) -> str:
    """Say in words what went wrong with a download and what to do about it."""
    from huggingface_hub import errors

    name = f"{repository}@{revision}" if revision else repository
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{file} of {name} is not in the cache, and asking the hub failed ({reason_of(error.__cause__ or error)}). "
            "Connect once, without HF_HUB_OFFLINE; or set HF_ENDPOINT to a mirror; or download the folder in "
            f"another way and pass its path ({repository!r} is no folder here); or use a bundle that ships "
            f"with the package ({_shipped_names()})"
        )
    refused = isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403)
    if isinstance(error, errors.RepositoryNotFoundError) or refused:
        return (
            f"the hub shows no repository {repository!r}, nor is there such a folder. Check the name; if the "
            "repository is private or gated, run 'hf auth login' or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the repository {repository!r} has no revision {revision!r}. Give a branch, a tag or a commit "
            "after the '@', or leave it out for the newest"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name} has no file {file!r}. Choose a repository and a revision that hold an AFV bundle"
    return (
        f"{file} of {name} could not be downloaded ({type(error).__name__}: {reason_of(error)}). Try again; if that "
        "does not help, download the folder in another way and pass its path"
    )
