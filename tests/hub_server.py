# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A Hub on loopback for tests: the endpoints that huggingface_hub and datasets call, in memory, with faults on demand.

It refuses what the real Hub refuses: writes without a token or outside the token's namespaces, uploads whose bytes do not
have the announced hash, commits of files that were never uploaded, cards with invalid metadata.

    with HubServer() as hub:
        hub.fail("PUT", "/upload/", 500)      # the next upload fails once
        subprocess.run([...], env=hub.environment(home))

`HF_ENDPOINT` is read when the clients are imported, so they run in processes of their own.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn
from hub_repos import File, Refusal, Repo, card_data, card_errors, entry, folder_entry


TOKEN = "hf_ThisTokenMustNotBeWrittenAnywhere"
USER, NAMESPACES = "user", ("user", "org")
PART_SIZE = 256 * 1024  # larger files are uploaded in parts
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".png", ".jpg", ".pt", ".pkl")
REPO = r"(?P<type>model|dataset)s/(?P<id>[\w.-]+/[\w.-]+)"
WEB = r"/(?P<datasets>datasets/)?(?P<id>[\w.-]+/[\w.-]+?)"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    status: int = 0

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Fault:
    method: str
    pattern: str
    status: int | None  # None cuts the connection
    times: int
    headers: dict[str, str]


class HubServer:
    """Serves in a thread of its own between `with` and the end of the block.

    Attributes:
        repos (`dict[tuple[str, str], Repo]`): (type, id) to repository; type is `model` or `dataset`.
        requests (`list[Request]`): everything received, in order.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        config = uvicorn.Config(
            self.app, port=0, log_level="error", interface="asgi3", http="h11", ws="none", lifespan="off"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.01)
            assert self.thread.is_alive(), "the server did not start"
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *error: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables with which a process talks to this Hub, from caches of its own under `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSF"))}
        own = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_CACHE": str(home / "datasets"), "NO_PROXY": "127.0.0.1"}
        return kept | own | ({"HF_TOKEN": token} if token else {})

    def fail(self, method: str, pattern: str, status: int | None, times: int = 1, **headers: str) -> None:
        """The next `times` requests whose path matches answer `status`; `None` cuts the connection in their body."""
        self.faults.append(Fault(method, pattern, status, times, headers))

    def received(self, method: str, pattern: str) -> list[Request]:
        """Requests that were answered without an error."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path) and r.status < 400]

    async def app(self, scope: dict, receive: Any, send: Any) -> None:
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
        request = Request(scope["method"], unquote(scope["raw_path"].decode()), query, headers, b"")
        fault = self._fault(request)
        more = True
        while more:
            message = await receive()
            request.body += message.get("body", b"")
            more = message.get("more_body", False)
            if fault is not None and fault.status is None:
                send.__self__.transport.abort()  # what a router does that loses the connection
                request.status = 599
                self.requests.append(request)
                return
        try:
            if fault is not None:
                raise Refusal(fault.status, "fault on demand", **fault.headers)
            status, answer, body = 200, *self._answer(request)
            status = int(answer.pop("status", status))
        except Refusal as refusal:
            status, body = refusal.status, json.dumps({"error": refusal.message}).encode()
            answer = {"Content-Type": "application/json", "X-Error-Message": refusal.message, **refusal.headers}
        except Exception as error:  # a request that this server does not understand fails the test that made it
            status, answer, body = 400, {"X-Error-Message": f"not understood: {error!r}"}, repr(error).encode()
        request.status = status
        self.requests.append(request)
        answer.setdefault("Content-Length", str(len(body)))
        raw = [(name.encode(), value.encode()) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})

    def _fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == request.method and re.search(fault.pattern, request.path):
                fault.times -= 1
                return fault
        return None

    def _answer(self, request: Request) -> tuple[dict[str, str], bytes]:
        """Headers and body of the answer."""
        for method, pattern, handler in ROUTES:
            if request.method in method and (match := re.fullmatch(pattern, request.path)):
                answer = handler(self, request, **match.groupdict())
                if isinstance(answer, tuple):
                    return answer
                return {"Content-Type": "application/json"}, json.dumps(answer).encode()
        raise Refusal(404, f"no such endpoint: {request.method} {request.path}")

    def _writer(self, request: Request, repo_id: str | None = None) -> None:
        """Refuses who may not write."""
        given = request.headers.get("authorization")
        if given != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid username or password." if given is None else "Invalid user token.")
        if repo_id is not None and repo_id.split("/")[0] not in NAMESPACES:
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")

    def _repo(self, request: Request, kind: str, repo_id: str) -> Repo:
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and request.headers.get("authorization") != f"Bearer {TOKEN}"):
            raise Refusal(404 if repo is None else 401, "Repository not found", "RepoNotFound")
        return repo

    def whoami(self, request: Request) -> dict:
        self._writer(request)
        orgs = [{"type": "org", "name": name} for name in NAMESPACES if name != USER]
        return {"type": "user", "name": USER, "orgs": orgs, "auth": {"type": "access_token"}}

    def create(self, request: Request) -> dict:
        asked = request.json()
        repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
        self._writer(request, repo_id)
        key = asked.get("type", "model"), repo_id
        url = f"{self.url}/{'datasets/' if key[0] == 'dataset' else ''}{repo_id}"
        if key in self.repos:
            body = json.dumps({"error": "You already created this repo", "url": url, "id": repo_id})
            return {"status": "409", "Content-Type": "application/json"}, body.encode()
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[key] = Repo(private)
        self.repos[key].commit("main", {".gitattributes": File(b"*.parquet filter=lfs\n", False)}, "initial commit")
        return {"url": url, "id": repo_id}

    def validate_yaml(self, request: Request) -> tuple[dict[str, str], bytes]:
        asked = request.json()
        errors = [{"message": error} for error in card_errors(asked["content"], asked["repoType"])]
        headers = {"Content-Type": "application/json", "status": "400" if errors else "200"}
        return headers, json.dumps({"warnings": [], "errors": errors}).encode()

    def info(self, request: Request, type: str, id: str, revision: str = "main") -> dict:
        repo = self._repo(request, type, id)
        sha = repo.resolve(revision)
        card = repo.commits[sha].get("README.md")
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        about = {"_id": "0", "id": id, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}
        about["cardData"] = card and card_data(card.data.decode())
        return about | {"disabled": False, "gated": False, "downloads": 0, "likes": 0, "author": id.split("/")[0]}

    def preupload(self, request: Request, type: str, id: str, revision: str) -> dict:
        self._writer(request, id)
        repo, answers = self._repo(request, type, id), []
        there = repo.commits[repo.resolve(revision)]
        for file in request.json()["files"]:
            assert isinstance(file["size"], int) and len(base64.b64decode(file["sample"])) <= 512
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 else "regular"
            known = there.get(file["path"])
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            answers[-1]["oid"] = known.oid if known else None
        return {"files": answers}

    def lfs_batch(self, request: Request, id: str, datasets: str | None) -> dict:
        self._writer(request, id)
        self._repo(request, "dataset" if datasets else "model", id)
        asked = request.json()
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256" and "basic" in asked["transfers"]
        objects = []
        for one in asked["objects"]:
            assert re.fullmatch(r"[0-9a-f]{64}", one["oid"])
            if one["oid"] not in self.blobs:
                href, header = f"{self.url}/upload/{one['oid']}", {}
                if one["size"] > PART_SIZE and "multipart" in asked["transfers"]:
                    parts = range(1, -(-one["size"] // PART_SIZE) + 1)
                    header = {"chunk_size": str(PART_SIZE), **{f"{n:05d}": f"{href}/{n}" for n in parts}}
                    href += "/complete"
                one |= {"actions": {"upload": {"href": href, "header": header}}}
            objects.append(one)
        return {"transfer": "basic", "objects": objects}

    def upload(self, request: Request, oid: str) -> dict:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "the bytes do not have the announced hash")
        self.blobs[oid] = request.body
        return {}

    def upload_part(self, request: Request, oid: str, part: str) -> tuple[dict[str, str], bytes]:
        self.parts.setdefault(oid, {})[int(part)] = request.body
        return {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}, b""

    def complete(self, request: Request, oid: str) -> dict:
        asked, parts = request.json(), self.parts.pop(oid, {})
        for part in asked["parts"]:
            assert part["etag"].strip('"') == hashlib.md5(parts[part["partNumber"]]).hexdigest()
        request.body = b"".join(parts[number] for number in sorted(parts))
        return self.upload(request, oid)

    def commit(self, request: Request, type: str, id: str, revision: str) -> dict:
        self._writer(request, id)
        repo = self._repo(request, type, id)
        files, summary = dict(repo.commits[repo.resolve(revision)]), None
        for line in request.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                summary = value["summary"]
                if value.get("parentCommit", repo.branches[revision]) != repo.branches[revision]:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"], validate=True), False)
            elif key == "lfsFile":
                if len(self.blobs.get(value["oid"], b"")) != value["size"]:
                    raise Refusal(400, f"LFS object of {value['path']} was not uploaded")
                files[value["path"]] = File(self.blobs[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise ValueError(f"operation {key}")
        assert summary
        if "README.md" in files and (errors := card_errors(files["README.md"].data.decode(), type)):
            raise Refusal(400, f"Invalid metadata in README.md: {errors}")
        sha = repo.commit(revision, files, summary)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{id}/commit/{sha}", "hookOutput": ""}

    def tree(self, request: Request, type: str, id: str, revision: str, path: str = "") -> list:
        files = self._at(request, type, id, revision)
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        inside = {name: file for name, file in files.items() if name.startswith(prefix)}
        if prefix and not inside:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for name, file in sorted(inside.items()):
            steps = name.removeprefix(prefix).split("/")[:-1]
            parents = [prefix + "/".join(steps[: i + 1]) for i in range(len(steps))]
            folders |= set(parents if recursive else parents[:1])
            if recursive or not steps:
                entries.append(entry(name, file))
        return entries + [folder_entry(name) for name in sorted(folders)]

    def paths_info(self, request: Request, type: str, id: str, revision: str) -> list:
        files = self._at(request, type, id, revision)
        form = request.headers.get("content-type", "").startswith("application/x-www-form")
        paths = parse_qs(request.body.decode())["paths"] if form else request.json()["paths"]
        paths = [path.strip("/") for path in paths]
        found = [entry(path, files[path]) for path in paths if path in files]
        return found + [folder_entry(path) for path in paths if any(name.startswith(f"{path}/") for name in files)]

    def refs(self, request: Request, type: str, id: str) -> dict:
        branches = self._repo(request, type, id).branches.items()
        heads = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        return {"branches": heads, "tags": [], "converts": []}

    def branch(self, request: Request, type: str, id: str, branch: str) -> dict:
        self._writer(request, id)
        repo = self._repo(request, type, id)
        if branch in repo.branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = repo.resolve(request.json().get("startingPoint", "main"))
        return {}

    def resolve(self, request: Request, id: str, datasets: str | None, revision: str, path: str) -> tuple:
        kind = "dataset" if datasets else "model"
        files = self._at(request, kind, id, revision)
        commit = self.repos[kind, id].resolve(revision)
        if path not in files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound", **{"X-Repo-Commit": commit})
        file = files[path]
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.data))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(file.data)), len(file.data) - 1)
            headers |= {"status": "206", "Content-Range": f"bytes {first}-{last}/{len(file.data)}"}
            return headers, file.data[first : last + 1]
        return headers, file.data

    def _at(self, request: Request, kind: str, repo_id: str, revision: str) -> dict[str, File]:
        repo = self._repo(request, kind, repo_id)
        return repo.commits[repo.resolve(revision)]


ROUTES = [
    ("GET", r"/api/whoami-v2", HubServer.whoami),
    ("POST", r"/api/repos/create", HubServer.create),
    ("POST", r"/api/validate-yaml", HubServer.validate_yaml),
    ("GET", rf"/api/{REPO}", HubServer.info),
    ("GET", rf"/api/{REPO}/revision/(?P<revision>.+)", HubServer.info),
    ("POST", rf"/api/{REPO}/preupload/(?P<revision>.+)", HubServer.preupload),
    ("POST", rf"{WEB}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
    ("PUT", r"/upload/(?P<oid>\w{64})", HubServer.upload),
    ("PUT", r"/upload/(?P<oid>\w{64})/(?P<part>\d+)", HubServer.upload_part),
    ("POST", r"/upload/(?P<oid>\w{64})/complete", HubServer.complete),
    ("POST", rf"/api/{REPO}/commit/(?P<revision>.+)", HubServer.commit),
    (
        "GET",
        rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?",
        lambda hub, r, path=None, **a: hub.tree(r, path=path or "", **a),
    ),
    ("POST", rf"/api/{REPO}/paths-info/(?P<revision>.+)", HubServer.paths_info),
    ("GET", rf"/api/{REPO}/refs", HubServer.refs),
    ("POST", rf"/api/{REPO}/branch/(?P<branch>.+)", HubServer.branch),
    ("GETHEAD", rf"{WEB}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubServer.resolve),
]
