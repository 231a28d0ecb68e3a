# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the local Hub of the tests stores, and which cards it refuses."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import yaml


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
TASKS = {"text-to-image", "unconditional-image-generation", "image-to-image"}
LICENSES = {"apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "cc-by-4.0", "cc0-1.0", "other"}


class Refusal(Exception):
    """An HTTP error: status, message, and the code by which the client picks its exception class."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass
class File:
    data: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else self.git_oid


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # sha -> path -> file
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        about = [len(self.commits), message, sorted((path, file.oid) for path, file in files.items())]
        sha = hashlib.sha1(json.dumps(about).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    @property
    def files(self) -> dict[str, File]:
        return self.commits[self.branches["main"]]


def entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.data), "oid": file.git_oid}
    if file.lfs:
        entry["lfs"] = {"oid": file.oid, "size": len(file.data), "pointerSize": 130}
    return entry


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(quote(path).encode()).hexdigest()}


def card_data(card: str) -> Any:
    """The metadata of a card, `None` if it has none."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    return None if match is None else yaml.safe_load(match[1])


def card_errors(card: str, kind: str) -> list[str]:
    """What the Hub's check of a card's metadata would refuse; a subset of its rules."""
    data, errors = card_data(card), []
    if data is None:
        return []
    if not isinstance(data, dict):
        return ["metadata: expected a mapping"]
    bases = data.get("base_model", [])
    errors += [f"base_model: {b!r}" for b in ([bases] if isinstance(bases, str) else bases) if not HUB_ID.fullmatch(b)]
    errors += [f"datasets: {d!r}" for d in data.get("datasets", []) if not HUB_ID.fullmatch(d)]
    errors += [f"tags: {tag!r}" for tag in data.get("tags", []) if not isinstance(tag, str)]
    errors += [f"task: {task!r}" for task in data.get("task_categories", []) if task not in TASKS]
    licenses = data.get("license", "other")
    for license in licenses if isinstance(licenses, list) else [licenses]:
        errors += [] if license in LICENSES else [f"license: {license!r}"]
    errors += ["license_name: without license: other"] if "license_name" in data and licenses != "other" else []
    for model in data.get("model-index", []):
        for result in model["results"]:
            errors += [f"metric: {m}" for m in result["metrics"] if not m.get("type") or m.get("value") is None]
            errors += [] if result["task"].get("type") in TASKS else [f"task: {result['task']}"]
            errors += [] if {"name", "type"} <= set(result["dataset"]) else [f"dataset: {result['dataset']}"]
    return errors
