"""From a folder to the Hugging Face hub: a bundle is validated, then uploaded in one commit."""

from __future__ import annotations

import os
import re
from pathlib import Path

from afv_metric.bundles.bundle import FILES, BundleError
from afv_metric.bundles.resolve import HubError
from afv_metric.bundles.validate import pictures_of, validate_bundle
from afv_metric.files import reason_of

__all__ = ["push_bundle"]

_REPOSITORY = re.compile(r"(?!.*(\.\.|--))\w[\w.-]*/\w[\w.-]*", re.ASCII)


def push_bundle(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    samples: int = 1_000,
    quiet: bool = True,
) -> str:
    """Upload a bundle to the Hugging Face hub, where ``AFVDistance(weights="owner/name")`` finds it.

    It is validated first. The repository and the branch are made if they do not exist; in one that does, the files of
    the bundle are replaced and others stay. Token, address of the hub and the like are those of ``huggingface_hub``
    (``hf auth login``, ``HF_TOKEN``, ``HF_ENDPOINT``).

    The repository is named ``owner/name``, the revision is a branch, ``main`` if None. A dry run says what would be
    done, and asks the hub for nothing.

    Returns:
        One line per file, what became of them, and how to use the bundle.

    Raises:
        BundleError: If the bundle is not valid, with the table of checks.
        FileNotFoundError: If there is no such folder.
        HubError: If the hub cannot be reached or refuses; the text says what to do.
        ValueError: If ``repository`` is no such name.
    """
    from huggingface_hub import HfApi, constants

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no bundle folder {str(folder)!r}")
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"the repository must be named as owner/name, got {repository!r}")
    report = validate_bundle(folder, samples=samples, quiet=quiet)
    if not report.passed:
        raise BundleError(f"the bundle is not valid, and was not uploaded:\n{report}")

    wanted = {*FILES, "README.md", "scale.json", *pictures_of((folder / "README.md").read_text(encoding="utf-8"))}
    names = sorted(path.name for path in folder.iterdir())
    files = [name for name in names if name in wanted]
    lines = [f"  {name:{max(map(len, files))}}  {(folder / name).stat().st_size:,} bytes" for name in files]
    if left_out := [name for name in names if name not in wanted]:
        lines.append(f"left out: {', '.join(left_out)}")
    branch = revision or constants.DEFAULT_REVISION
    where = f"{constants.ENDPOINT}/{repository}, branch {branch}"
    if dry_run:
        made = f"made {'private' if private else 'public'} if it does not exist"
        return "\n".join([f"would upload to {where}, {made}", *lines])
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if branch != constants.DEFAULT_REVISION and not branch.startswith("refs/"):  # pull requests are no branches
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            revision=branch,
            allow_patterns=files,
            commit_message=f"AFV bundle {report.bundle} {report.hash[:12]}",
        )
    except Exception as error:
        # Not only its own errors: the client lets those of its HTTP library and of its storage through.
        raise HubError(_explanation(error, repository, constants.ENDPOINT)) from error
    named = repository if branch == constants.DEFAULT_REVISION else f"{repository}@{branch}"
    lines += [f'use it as AFVDistance("{named}")', f'pinned:   AFVDistance("{repository}@{commit.oid}")']
    return "\n".join([f"uploaded to {where}, commit {commit.oid}", *lines])


def _explanation(error: Exception, repository: str, endpoint: str) -> str:
    """Say in words what went wrong with an upload and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repository} was not uploaded, because the hub client is in offline mode: unset HF_HUB_OFFLINE"
    if isinstance(error, errors.HfHubHTTPError):
        status, said = error.response.status_code, reason_of(error).strip().partition("\n")[0]
        if status == 401:
            return (
                f"the hub at {endpoint} does not know who wants to write to {repository!r}: run 'hf auth login', or "
                "set HF_TOKEN to a token with the right to write"
            )
        if status == 403:
            return (
                f"the token may not write to {repository!r} on {endpoint}: take one with the right to write, or a name "
                f"whose owner is you or a group of yours; 'hf auth whoami' lists them ({said})"
            )
        return f"the hub at {endpoint} refused {repository!r} with status {status}: {said}"
    return (
        f"{repository} could not be uploaded to {endpoint} ({type(error).__name__}: {reason_of(error)}). Check the "
        "connection and HF_ENDPOINT, and try again; what has arrived is not sent twice"
    )
