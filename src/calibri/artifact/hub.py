"""Transfer of a calibration to and from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from calibri.artifact import folder_format as files
from calibri.errors import CalibrationError, first_line

# Which HTTP client the hub's library uses depends on its version. Its own error inherits from the
# client's. The root of those errors is that of a connection that fails, too.
_CLIENT_ERROR: type[Exception] = [
    kind for kind in HfHubHTTPError.__bases__[0].__mro__ if kind.__module__ != "builtins"
][-1]


def download(
    repo_id: str,
    *,
    revision: str | None,
    token: str | bool | None,
    subfolder: str | None,
    local_files_only: bool,
) -> Path:
    """Download the two files of a calibration into the hub's cache and return their folder.

    Raises:
        CalibrationError: they are not there, too large, or the hub cannot be reached.
    """
    if _problem_of_name(repo_id):
        raise CalibrationError(
            f"The calibration '{repo_id}' was not loaded: it is neither a folder here nor a "
            "repository, which would be called user/name. Check the path."
        )
    api = HfApi(token=token)
    folders = set()
    with _plain_errors(repo_id, "loaded"):
        for name in (files.JSON_NAME, files.TENSORS_NAME):
            # The size is asked for first, so that an oversized file is never downloaded.
            place: dict[str, Any] = {"revision": revision, "subfolder": subfolder}
            if not local_files_only:
                files.checked_size(name, _announced_size(api, repo_id, name, place))
            path = api.hf_hub_download(repo_id, name, local_files_only=local_files_only, **place)
            folders.add(Path(path).parent)
    if len(folders) > 1:
        raise CalibrationError(
            f"The calibration '{repo_id}' was not loaded: its repository changed during the "
            "download. Load it again."
        )
    return folders.pop()


def check_repository_name(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository of a user, without asking anyone.

    Raises:
        CalibrationError: it is no ``user/name``.
    """
    if problem := _problem_of_name(repo_id):
        raise CalibrationError(
            f"'{repo_id}' cannot be the name of a repository: {problem}. Pass user/name, such as "
            "me/flux-15-steps."
        )


def _problem_of_name(repo_id: str) -> str:
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return "names have letters, digits, '-', '_' and '.' on both sides of one '/'"
    return "" if repo_id.count("/") == 1 else "it has no user or organisation before a '/'"


def check_token(token: str | bool | None) -> None:
    """Refuse to upload without a token, without asking anyone.

    Raises:
        CalibrationError: none was given and nobody is logged in.
    """
    if not token and (token is False or get_token() is None):
        raise CalibrationError(
            "Uploading needs an access token of the Hugging Face Hub that may write, and there is "
            "none. Log in once with `hf auth login`, or set HF_TOKEN."
        )


def _announced_size(api: HfApi, repo_id: str, name: str, place: dict[str, Any]) -> int:
    """Bytes of a file as the hub says; 0 where it says nothing or a cached file will do."""
    if "dry_run" in signature(api.hf_hub_download).parameters:
        return api.hf_hub_download(repo_id, name, dry_run=True, **place).file_size or 0
    # huggingface_hub before 1.0 asks for it apart, and on requests, whose errors are OSErrors.
    try:
        url = hf_hub_url(repo_id, name, endpoint=api.endpoint, **place)
        return api.get_hf_file_metadata(url=url).size or 0
    except HfHubHTTPError:
        raise
    except OSError:
        return 0  # not to be reached: the download takes what is cached, or says what is wrong


def upload(
    repo_id: str,
    contents: Mapping[str, bytes],
    *,
    private: bool | None,
    token: str | bool | None,
    commit_message: str,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Commit files to a model repository, creating it if needed; return the commit's address.

    Raises:
        CalibrationError: the hub refused, or could not be reached.
    """
    with _plain_errors(repo_id, "uploaded"):
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, data) for name, data in contents.items()],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


@contextmanager
def _plain_errors(repo_id: str, action: str) -> Iterator[None]:
    try:
        yield
    except CalibrationError:
        raise
    except (HfHubHTTPError, HFValidationError, _CLIENT_ERROR, OSError, ValueError) as error:
        raise CalibrationError(
            f"The calibration '{repo_id}' was not {action}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    # Ordered from special to general: the hub's errors inherit from each other.
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (HFValidationError, "it is neither a folder here nor a repository name (user/repo)."),
        (GatedRepoError, "its repository asks for access first. Request it on the hub's page."),
        (
            RepositoryNotFoundError,
            "it is neither a folder here nor a repository that you can see. Check the spelling, "
            "and pass a token if it is private.",
        ),
        (RevisionNotFoundError, "the repository has no such revision. Check its branches."),
        (
            LocalEntryNotFoundError,
            "the hub could not be reached and there is no earlier download. Check the "
            "connection, or pass a folder.",
        ),
        (
            EntryNotFoundError,
            f"the repository has no {files.JSON_NAME} with a {files.TENSORS_NAME} beside it. "
            "Check the subfolder and the revision.",
        ),
    )
    if isinstance(error, _CLIENT_ERROR | ConnectionError) and not isinstance(error, HfHubHTTPError):
        return (
            f"the hub could not be reached ({first_line(error)}). Check the connection, the proxy "
            "and HF_ENDPOINT, then try again."
        )
    known = (text for kind, text in reasons if isinstance(error, kind))
    return next(known, f"{error} Check the connection, the token and its permissions.")
