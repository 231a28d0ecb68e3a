# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hugging Face Hub: one commit a publication, and one line that says what to do when it fails.

A failed upload loses nothing: the files are on disk, and what the Hub has received it keeps, so that the same call later
sends only what is missing.
"""

import logging
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token


logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TRANSPORTS = {"httpx", "httpx2", "requests"}  # of the generations of huggingface_hub
_REASONS = {
    401: "no valid token (401); set HF_TOKEN or log in with `hf auth login`",
    402: "the quota of the account is used up (402)",
    403: "a token that may not write there (403)",
    404: "no such repository or branch (404)",
    409: "a conflict with another push or an existing name (409)",
    413: "files larger than the account allows (413)",
    429: "too many requests (429); wait before trying again",
}


def as_hub_id(name: str | Path | None) -> str | None:
    """`name` if it can be a Hub id (`org/name`) and is not a path of this machine, else `None`."""
    text = str(name or "")
    return text if _HUB_ID.fullmatch(text) and not Path(text).exists() else None


def without_paths(value: Any) -> Any:
    """A copy of JSON-like data whose local paths are cut to their last part, for publication."""
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(part) for part in value]
    if isinstance(value, Path) or (isinstance(value, str) and _is_path(value)):
        return Path(value).name
    return value


def _is_path(text: str) -> bool:
    try:
        return text.startswith(("/", "~", "./", "../")) or ("/" in text and Path(text).exists())
    except OSError:  # a long text
        return False


def check_hub_id(flag: str, repo_id: str | None) -> None:
    """Raises a `ValueError` that names `flag` if `repo_id` is no `ORG/NAME` or `NAME`."""
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo_id or ""):
        raise ValueError(f"{flag}: expected ORG/NAME, found {'none' if repo_id is None else repr(repo_id)}")


def upload_files(
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    replaced: tuple[str, ...] = (),
) -> str:
    """Makes the repository if there is none and puts all files into it, in one commit.

    Args:
        repo_id (`str`): `"org/name"`, or `"name"` for the user's own.
        repo_type (`str`): `"dataset"` or `"model"`.
        files (`Mapping[str, Path | bytes]`): path in the repository to a local file or to its content.
        message (`str`): of the commit.
        private (`bool`, *optional*): whether a new repository is private; `True` refuses one that is public.
        token (`str`, *optional*): defaults to `HF_TOKEN` or the login.
        revision (`str`, *optional*): branch; made if missing.
        replaced (`tuple[str, ...]`, *optional*): patterns of files of an earlier push to delete if not in `files`.

    Returns:
        `str`: address of the commit.

    Raises:
        ValueError: if the Hub cannot be reached or refuses; says why and how to go on.
    """
    api = HfApi(token=token)
    try:
        repo = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        repo_id = repo.repo_id
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise PermissionError("a public repository of that name, though a private one is wanted")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        there = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision) if replaced else []
        outdated = [path for path in there if path not in files and any(fnmatch(path, one) for one in replaced)]
        operations += [CommitOperationDelete(path) for path in outdated]
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision)
    except Exception as error:
        if not _is_expected(error):
            raise
        raise ValueError(
            f"{repo_type} {repo_id}: expected to upload {len(files)} files, found {_reason(error, token)}. All files are"
            " kept; repeat the same call or command to go on: what the Hub has received is not sent again"
        ) from None  # the libraries' own errors may quote headers
    logger.info("Published %s", commit.commit_url)
    return commit.commit_url


def _is_expected(error: Exception) -> bool:
    """Whether network, Hub or account are at fault rather than this program."""
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, (OSError, RuntimeError, ValueError)) or bool(modules & _TRANSPORTS)


def _reason(error: BaseException, token: str | None) -> str:
    """What went wrong, in words without any token."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__  # `RuntimeError: Error while uploading` hides why
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REASONS:
        return _REASONS[status]
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if not isinstance(error, PermissionError):
        text = f"{type(error).__name__}: {text}"
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "***")
    return text
