"""The two hubs: which files a repository of a model or a data set has, and bringing some here."""

import errno
import glob
import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

HubName = Literal["modelscope", "huggingface"]
RepoKind = Literal["model", "dataset"]
HUBS: tuple[str, ...] = get_args(HubName)
AT_ONCE = 4
PAGE = 200  # entries of a listing that comes in pages
TIMEOUT = 30.0  # seconds for a listing
REFUSALS = (401, 403, 404)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class UndeliveredError(Exception):
    """A hub that did not deliver, and why, in words that hold no secret."""


@dataclass(frozen=True)
class Remote:
    """One file of a repository: its size, and, where the hub tells, which content it has."""

    size: int
    revision: str = ""
    content: str = ""


def listing(hub: HubName, repo_id: str, kind: RepoKind = "model") -> dict[str, Remote]:
    """Every file of the repository, by its path."""
    match hub:
        case "modelscope":
            files = _modelscope_listing(repo_id, kind)
        case "huggingface":
            files = _huggingface_listing(repo_id, kind)
    outside = [path for path in files if path.startswith("/") or ".." in path.split("/")]
    if outside:
        raise UndeliveredError(f"it lists paths that lead out of the folder: {outside[0]}")
    return files


def download(
    hub: HubName,
    repo_id: str,
    wanted: Mapping[str, Remote],
    folder: Path,
    kind: RepoKind = "model",
) -> None:
    """Bring these files to their places under `folder`; each appears whole or not at all.

    What an earlier attempt left is continued.
    """
    match hub:
        case "modelscope":
            _modelscope_download(repo_id, wanted, folder, kind)
        case "huggingface":
            _huggingface_download(repo_id, wanted, folder, kind)


def _modelscope_listing(repo_id: str, kind: RepoKind) -> dict[str, Remote]:
    from modelscope.hub.api import HubApi
    from modelscope.hub.errors import HubError

    try:
        if kind == "model":
            files = HubApi().get_model_files(repo_id, recursive=True)
        else:
            files = list(_modelscope_pages(HubApi(), repo_id))
    except (OSError, HubError) as error:
        raise UndeliveredError(_why(error)) from error
    sizes = {file["Path"]: int(file["Size"]) for file in files}
    folders = {str(parent) for path in sizes for parent in PurePosixPath(path).parents}
    return {path: Remote(size) for path, size in sizes.items() if path not in folders}


def _modelscope_pages(api: Any, repo_id: str) -> Iterator[dict[str, Any]]:
    """A data set's files; a page that is not full is the last."""
    number = 1
    while True:
        page = api.get_dataset_files(
            repo_id, dataset_hub_id=repo_id, page_number=number, page_size=PAGE
        )
        yield from (entry for entry in page if entry.get("Type") != "tree")
        if len(page) < PAGE:
            return
        number += 1


def _modelscope_download(
    repo_id: str, wanted: Mapping[str, Remote], folder: Path, kind: RepoKind
) -> None:
    from modelscope.hub.errors import HubError
    from modelscope.hub.snapshot_download import dataset_snapshot_download, snapshot_download

    bring = snapshot_download if kind == "model" else dataset_snapshot_download
    try:
        bring(
            repo_id,
            local_dir=str(folder),
            allow_patterns=[glob.escape(path) for path in wanted],
            max_workers=AT_ONCE,
        )
    except (OSError, HubError) as error:
        raise UndeliveredError(_why(error)) from error


def _huggingface_listing(repo_id: str, kind: RepoKind) -> dict[str, Remote]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's

    try:
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        info = ask(repo_id, files_metadata=True, timeout=TIMEOUT)
    except (OSError, HTTPError) as error:
        raise UndeliveredError(_why(error)) from error
    return {
        file.rfilename: Remote(int(file.size or 0), info.sha or "main", file.blob_id or "")
        for file in info.siblings or ()
    }


def _huggingface_download(
    repo_id: str, wanted: Mapping[str, Remote], folder: Path, kind: RepoKind
) -> None:
    """The library's own snapshot throws a cut file away, so its transfer is called by file."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    def bring(path: str, remote: Remote) -> None:
        final = folder / path
        if final.is_file() and final.stat().st_size == remote.size:
            return
        name = hashlib.sha256(f"{path} {remote.content}".encode()).hexdigest()
        part = folder / ".fluxmill" / f"{name}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as out:
            if out.tell() > remote.size:
                out.seek(0)
                out.truncate()
            http_get(
                hf_hub_url(repo_id, path, repo_type=kind, revision=remote.revision),
                out,
                resume_size=out.tell(),
                headers=build_hf_headers(),
                expected_size=remote.size,
            )
        final.parent.mkdir(parents=True, exist_ok=True)
        part.replace(final)

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(bring, wanted, wanted.values()))
    except (OSError, HTTPError) as error:
        raise UndeliveredError(_why(error)) from error


def _why(error: Exception) -> str:
    """What went wrong, without addresses' query strings, which may carry signatures."""
    failed: Mapping[str, Exception] = getattr(error, "failed_files", None) or {}
    cause = next(iter(failed.values()), error)
    if isinstance(cause, OSError) and (cause.filename or cause.errno in DISK):
        return f"the files cannot be written ({cause})"
    response = getattr(cause, "response", None)
    status = getattr(cause, "status_code", None) or getattr(response, "status_code", None)
    reason = f"{type(cause).__name__}: {_without_secrets(str(cause))}"
    if status in REFUSALS:
        return f"there is no such repository, or it wants a login or an accepted licence ({reason})"
    return f"the hub is out of reach ({reason})"


def _without_secrets(text: str) -> str:
    first = text.strip().split("\n")[0][:300]
    first = re.sub(r"\?[^\s'\")]*", "", first)
    return re.sub(r"(?i)(bearer\s+|\bhf_|\bms-)[\w.-]+", "…", first)
