# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Uploads to the Hugging Face Hub: one commit per publication, and one line that says what to do when it fails."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id

from ..core.files import atomic_write_json, read_json
from ..errors import UserError
from .card import License, is_path


logger = logging.getLogger(__name__)

RECORD_FILE = "craft_hub.json"  # in a published folder: where it went
RETRY = "repeat the same command to go on: what the Hub has received is not sent again"
Files = dict[str, Path | bytes]  # path in the repository to a local file or to its content
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_TRANSPORTS = {"httpx", "httpx2", "requests"}  # of the generations of huggingface_hub
_REASONS = {
    401: "no valid token (401); set HF_TOKEN or log in with `hf auth login`",
    402: "the quota of the account used up (402)",
    403: "a name or an organisation that this token may not write to (403)",
    404: "no such repository or branch (404)",
    409: "a conflict with another push or an existing name (409)",
    413: "files larger than the account allows (413)",
    429: "too many requests (429); wait before trying again",
}


def as_hub_id(name: str | Path | None, paths: Mapping[str, str] | None = None) -> str | None:
    """`name` if it can be a Hub id (`org/name`) and is not a path, else `None`.

    `paths` are the record's, for what was given to an earlier run; else a path is what exists from the current folder.
    """
    text = str(name or "")
    return text if _HUB_ID.fullmatch(text) and not is_path(text, paths) else None


def published_id(folder: str | Path | None) -> str | None:
    """The Hub id under which a folder of this machine was published, or `None`."""
    path = Path(folder or "") / RECORD_FILE
    return read_json(path)["repo_id"] if folder and path.is_file() else None


def forget_published(folder: str | Path) -> None:
    """To be called before a folder gets other content than what was published from it."""
    (Path(folder) / RECORD_FILE).unlink(missing_ok=True)


def hub_license(repo_id: str, repo_type: str, token: str | None = None) -> License | None:
    """The licence that the card of a repository states, or `None` if it states none or cannot be read."""
    try:
        card = HfApi(token=token).repo_info(repo_id, repo_type=repo_type).card_data
    except Exception as error:
        if not _is_expected(error):
            raise
        logger.warning("%s %s: its licence could not be read (%s)", repo_type, repo_id, _reason(error, token))
        return None
    place = f"datasets/{repo_id}" if repo_type == "dataset" else repo_id
    return License.stated(card.to_dict(), place) if card else None


@dataclass(frozen=True)
class HubRepo:
    """A repository to publish in, of type `"dataset"` or `"model"`."""

    repo_id: str  # "org/name", or "name" for the user's own
    repo_type: str
    private: bool | None = None  # of a new repository; True refuses one that is public
    token: str | None = field(default=None, repr=False)  # defaults to HF_TOKEN or the login
    revision: str | None = None  # branch; made if missing
    retry: str = RETRY  # what the user shall do after a failure
    license: str | None = None  # for the card

    def open(self) -> str:
        """Makes the repository and the branch if there are none, before any work; the complete id.

        What no repetition can help, an impossible id or licence, is refused first.
        """
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            found = f"found another form ({str(error).split(':')[0]})"
            raise UserError(f"{self.repo_type} {self.repo_id!r}: expected ORG/NAME, {found}") from None
        with self._explained("a repository to write to"):
            self._check_license()
            return self._open()

    def upload(self, folder: str | Path, files: Files, message: str, replaced: Sequence[str] = ()) -> str:
        """Puts all files into the repository in one commit, and returns its address.

        What the Hub has is not sent again; files of an earlier push that match `replaced` are deleted. The published
        `folder` receives `RECORD_FILE`, by which later cards link to it.
        """
        if not files:  # `replaced` would only delete
            raise UserError(f"{self.repo_type} {self.repo_id}: expected files to upload, found none in {folder}")
        with self._explained(f"to upload {len(files)} files"):
            repo_id, api = self._open(), HfApi(token=self.token)
            where = {"repo_type": self.repo_type, "revision": self.revision}
            there = api.list_repo_files(repo_id, **where) if replaced else []
            outdated = [path for path in there if path not in files and any(fnmatch(path, one) for one in replaced)]
            operations = [CommitOperationAdd(path, content) for path, content in files.items()]
            operations += [CommitOperationDelete(path) for path in outdated]
            commit = api.create_commit(repo_id, operations, commit_message=message, **where)
        record = {"repo_id": repo_id, "repo_type": self.repo_type, "commit": commit.commit_url}
        atomic_write_json(Path(folder) / RECORD_FILE, record)
        logger.info("Published %s", commit.commit_url)
        return commit.commit_url

    def _check_license(self) -> None:
        if self.license is None:
            return
        # As RepoCard.validate, which in earlier versions of huggingface_hub knows no other endpoint than the Hub's own.
        card = {"repoType": self.repo_type, "content": f"---\nlicense: {json.dumps(self.license)}\n---\n"}
        response = get_session().post(f"{ENDPOINT}/api/validate-yaml", json=card, headers={"Accept": "text/plain"})
        if response.status_code == 400:
            wanted = f"expected an identifier such as openrail++, apache-2.0 or other (all: {_LICENSES})"
            raise UserError(f"--hub_license: {wanted}, found {self.license!r}")
        hf_raise_for_status(response)

    def _open(self) -> str:
        api = HfApi(token=self.token)
        repo_id = api.create_repo(self.repo_id, repo_type=self.repo_type, private=self.private, exist_ok=True).repo_id
        if self.private and not api.repo_info(repo_id, repo_type=self.repo_type).private:
            raise PermissionError("a public repository of that name, though a private one is wanted")
        if self.revision is not None:
            api.create_branch(repo_id, branch=self.revision, repo_type=self.repo_type, exist_ok=True)
        return repo_id

    @contextmanager
    def _explained(self, expected: str) -> Iterator[None]:
        """Turns what network, Hub or account refuse into one `UserError` without tokens."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if not _is_expected(error):
                raise
            text = f"{self.repo_type} {self.repo_id}: expected {expected}, found {_reason(error, self.token)}"
            # The libraries' own errors may quote headers.
            raise UserError(f"{text}; all files are kept; {self.retry}") from None


def _is_expected(error: BaseException) -> bool:
    """Whether network, Hub or account are at fault rather than this program."""
    return isinstance(error, (OSError, RuntimeError, ValueError)) or _is_transport_error(error)


def _is_transport_error(error: BaseException) -> bool:
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(modules & _TRANSPORTS)


def _reason(error: BaseException, token: str | None) -> str:
    """What went wrong, in words without any token."""
    while error.__cause__ is not None and not _is_transport_error(error):
        error = error.__cause__  # `RuntimeError: Error while uploading` hides why
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REASONS:
        return _REASONS[status]
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if not isinstance(error, PermissionError):
        text = f"{type(error).__name__}: {text}"
    if status is None and _is_transport_error(error):
        text = f"a connection that failed ({text})"
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "***")
    return text
