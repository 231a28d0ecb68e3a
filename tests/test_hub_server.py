# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The local Hub against the real clients: what huggingface_hub and datasets push comes back, faults reach the user."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import PART_SIZE, TOKEN, HubServer


NEW_CLIENT = pytest.mark.skipif(int(huggingface_hub.__version__.split(".")[0]) < 1, reason="does not wait after 429")


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run(hub: HubServer, home: Path, code: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(home, token), capture_output=True, text=True, timeout=240
    )


UPLOAD = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("org/thing", exist_ok=True)
api.upload_folder(repo_id="org/thing", folder_path=FOLDER)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "weights.safetensors").write_bytes(bytes(range(256)) * (PART_SIZE // 100))  # several parts
    (path / "small.bin").write_bytes(b"small")
    (path / "config.json").write_text("{}")
    return path


def upload(hub: HubServer, home: Path, folder: Path, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    return run(hub, home, UPLOAD.replace("FOLDER", repr(str(folder))), token)


def test_huggingface_hub_gets_back_what_it_uploads(hub, folder, tmp_path):
    assert upload(hub, tmp_path / "a", folder).returncode == 0
    code = """
from huggingface_hub import HfApi, snapshot_download, get_hf_file_metadata, hf_hub_url
print(snapshot_download("org/thing"))
assert HfApi().whoami()["name"] == "user"
assert get_hf_file_metadata(hf_hub_url("org/thing", "config.json")).size == 2
"""
    result = run(hub, tmp_path / "b", code)
    assert result.returncode == 0, result.stderr
    snapshot = Path(result.stdout.strip().splitlines()[-1])
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert (snapshot / file.relative_to(folder)).read_bytes() == file.read_bytes()
    assert len(hub.received("PUT", "/upload/")) > 2  # parts


def test_datasets_pushes_loads_and_streams(hub, tmp_path):
    push = "from datasets import Dataset; Dataset.from_dict({'x': [1, 2, 3]}).push_to_hub('org/numbers')"
    assert run(hub, tmp_path / "a", push).returncode == 0
    load = """
from datasets import load_dataset
print(load_dataset("org/numbers", split="train")["x"][:])
print([row["x"] for row in load_dataset("org/numbers", split="train", streaming=True)])
"""
    result = run(hub, tmp_path / "b", load)
    assert result.stdout.split("\n")[:2] == ["[1, 2, 3]", "[1, 2, 3]"], result.stderr
    assert any(request.headers.get("range") for request in hub.requests)


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("PUT", "/upload/", 500, {}),
        pytest.param("POST", "objects/batch", 429, {"Retry-After": "1"}, marks=NEW_CLIENT),
        ("PUT", "/upload/", None, {}),
    ],
)
def test_clients_overcome_a_fault_that_passes(hub, folder, tmp_path, method, path, status, headers):
    hub.fail(method, path, status, **headers)
    assert upload(hub, tmp_path, folder).returncode == 0
    assert not hub.faults[0].times
    assert "unet/weights.safetensors" in hub.repos["model", "org/thing"].files


@pytest.mark.parametrize(
    ("token", "faults", "message"),
    [
        (None, [], "401"),
        ("hf_wrong", [], "401"),
        (TOKEN, [("POST", "/preupload/", 403)], "403"),
        (TOKEN, [("POST", "/commit/", 409)], "409"),
    ],
)
def test_refusals_reach_the_user(hub, folder, tmp_path, token, faults, message):
    for fault in faults:
        hub.fail(*fault)
    result = upload(hub, tmp_path, folder, token)
    assert result.returncode == 1 and message in result.stderr.splitlines()[-1] + result.stderr
    assert ("model", "org/thing") not in hub.repos or "config.json" not in hub.repos["model", "org/thing"].files


def test_private_repositories_need_a_token(hub, tmp_path):
    code = "from huggingface_hub import HfApi; HfApi().create_repo('org/secret', private=True)"
    assert run(hub, tmp_path / "a", code).returncode == 0
    read = "from huggingface_hub import HfApi; HfApi().model_info('org/secret')"
    assert run(hub, tmp_path / "b", read).returncode == 0
    assert "RepositoryNotFoundError" in run(hub, tmp_path / "c", read, token=None).stderr


def test_invalid_cards_and_foreign_bytes_are_refused(hub, folder, tmp_path):
    (folder / "README.md").write_text("---\nbase_model: /home/me/model\n---\n# Thing\n")
    result = upload(hub, tmp_path / "a", folder)
    assert result.returncode == 1 and "base_model" in result.stderr
    assert "README.md" not in hub.repos["model", "org/thing"].files
    request = urllib.request.Request(f"{hub.url}/upload/{'0' * 64}", b"other bytes", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
