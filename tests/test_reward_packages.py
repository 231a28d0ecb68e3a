# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The official packages as backends: what is wrong with them is said in one line. Missing files of the new rewards too."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusers_craft import load_reward
from diffusers_craft.rewards import packages


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`fake(name, source)`: a package of that name on the path, in place of an installed one."""

    def write(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)

    for name in [name for name in sys.modules if name.split(".")[0] in ("hpsv2", "ImageReward")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return write


@pytest.mark.parametrize(
    "reward, package, module",
    [("hps_v2.1", "hpsv2", "hpsv2"), ("image_reward", "image-reward", "ImageReward")],
)
def test_broken_package_says_which_import_failed(reward: str, package: str, module: str, fake, tmp_path: Path):
    fake(module, "import no_such_library")
    with pytest.raises(ValueError) as error:
        load_reward(reward, str(tmp_path), backend="package")
    assert str(error.value) == (
        f"reward {reward}: backend 'package' needs the package {package}, and its import failed (ModuleNotFoundError: "
        "No module named 'no_such_library'); the built-in backend needs no package"
    )


@pytest.mark.parametrize("reward, package", [("hps_v2.1", "hpsv2"), ("image_reward", "image-reward")])
def test_missing_package_says_how_to_install_it(reward: str, package: str, monkeypatch: pytest.MonkeyPatch):
    class Nothing:
        def find_spec(self, name: str, *_):
            if name.split(".")[0] in ("hpsv2", "ImageReward"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

    for name in [name for name in sys.modules if name.split(".")[0] in ("hpsv2", "ImageReward")]:
        monkeypatch.delitem(sys.modules, name)  # of another test
    monkeypatch.setattr(sys, "meta_path", [Nothing(), *sys.meta_path])
    with pytest.raises(ValueError) as error:
        load_reward(reward, backend="package")
    found = f"needs the package {package}, and it is not installed (pip install --no-deps {package})"
    assert found in str(error.value) and "\n" not in str(error.value)


def test_package_that_cannot_load_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def initialize_model():
        raise OSError("no route\nto the Hub")

    monkeypatch.setattr(packages, "import_package", lambda *_: SimpleNamespace(initialize_model=initialize_model))
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"x")
    with pytest.raises(ValueError) as error:
        load_reward("hps_v2.1", str(tmp_path), backend="package").score(["a"], [Image.new("RGB", (4, 4))])
    assert str(error.value) == (
        "reward hps_v2.1: backend 'package': hpsv2 could not load its model (OSError: no route); "
        "the built-in backend needs no package"
    )


def test_package_scores_keep_the_order_of_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """hpsv2 takes many images of one prompt: pairs are grouped by prompt and put back, images made RGB."""
    calls = []

    def score(images, prompt, cp, hps_version):
        calls.append((prompt, len(images), {image.mode for image in images}, Path(cp).name, hps_version))
        return [image.getpixel((0, 0))[0] + 1000 * len(prompt) for image in images]

    code = SimpleNamespace(initialize_model=lambda: None, score=score)
    monkeypatch.setattr(packages, "import_package", lambda *_: code)
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"x")
    images = [Image.new("L", (2, 2), i) for i in range(4)]
    scores = load_reward("hps_v2.1", str(tmp_path), backend="package").score(["a", "bb", "a", "bb"], images)
    assert scores.tolist() == [1000, 2001, 1002, 2003]
    assert calls == [(p, 2, {"RGB"}, "HPS_v2.1_compressed.pt", "v2.1") for p in ("a", "bb")]


@pytest.mark.parametrize(
    "name, words",
    [
        ("image_reward", ["ImageReward.pt of THUDM/ImageReward", "1.79 GB", "huggingface.co/THUDM/ImageReward"]),
        ("mps", ["MPS_overall_checkpoint.pth", "2.2 GB", "drive.google.com"]),
        ("clip_score", ["openai/clip-vit-large-patch14", "1.71 GB"]),
    ],
)
def test_missing_checkpoint_is_one_line(name: str, words: list[str]):
    with pytest.raises(ValueError) as error:
        load_reward(name)
    text = str(error.value)
    assert all(word in text for word in [*words, f"reward {name}: needs", f"--reward_checkpoint {name}=PATH"]), text
    assert "\n" not in text


def test_published_hash_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.pt"
    path.write_bytes(b"weights")
    found = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr("diffusers_craft.rewards.checkpoints.hf_hub_download", lambda *_, **__: str(path))
    with pytest.raises(
        ValueError, match=f"reward hps_v2.1: expected sha256 c57a38f.* of .*file.pt, found {found}; del"
    ):
        load_reward("hps_v2.1").score(["a"], [Image.new("RGB", (4, 4))])
    monkeypatch.setattr("diffusers_craft.rewards.hps.HPS_SHA256", found)
    with pytest.raises(ValueError, match="--reward_checkpoint hps_v2.1: expected tensors only in .*file.pt"):
        load_reward("hps_v2.1").score(["a"], [Image.new("RGB", (4, 4))])
