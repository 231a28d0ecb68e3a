# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Rewards of users: registered, from entry points of installed packages, from modules; and what is refused."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffusers_craft import RewardSettings, load_reward, register_reward
from diffusers_craft.core.records import CANDIDATE_SCHEMA, pack_latent
from diffusers_craft.data.dataset import assemble_dataset, assemble_scores
from diffusers_craft.rewards import settings as registry
from diffusers_craft.scripts import load_rewards, parse_reward_weights, reward_source


OWN = """
import numpy as np

class Length:
    def __init__(self, batch_size=1):
        self.batch_size = batch_size
    def score(self, prompts, images):
        return np.array([len(prompt) for prompt in prompts], np.float32)

class Named(Length):
    name = "words"
    def __init__(self, checkpoint=None, **options):
        self.checkpoint, self.options = checkpoint, options

class PickScore(Length):
    name = "pickscore"

class Spaced(Length):
    name = "my reward"

class Image(Length):
    name = "image"

def make():
    return Length(7)

ready = Length(3)
number = 5
class NoScore: pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`own_rewards.py` in the current directory."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    (tmp_path / "broken.py").write_text("raise KeyError('a defect of the module')\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("own_rewards", "needs_more", "broken"):
        sys.modules.pop(name, None)


def score_of(reward: object) -> list[float]:
    return np.asarray(reward.score(["ab", "c"], [None, None])).tolist()


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("spec", "name", "batch_size"),
    [("Length", "Length", 4), ("make", "make", 7), ("ready", "ready", 3)],
)
def test_a_class_a_function_or_an_object_of_a_module(spec: str, name: str, batch_size: int):
    """Each takes what its signature has of the options; the object is taken as it is."""
    assert parse_reward_weights([f"own_rewards:{spec}=0.4"]) == {name: 0.4}
    reward = load_reward(name, batch_size=4)
    assert score_of(reward) == [2, 1] and reward.batch_size == batch_size
    assert load_reward(f"own_rewards:{spec}").__class__ is reward.__class__


@pytest.mark.usefixtures("own_module")
def test_the_class_s_own_name_and_all_options():
    assert parse_reward_weights(["own_rewards:Named", "aesthetic=2"]) == {"words": 1.0, "aesthetic": 2.0}
    reward = load_reward("words", "here", device="cpu", batch_size=4)
    assert reward.checkpoint == "here" and reward.options == {"device": "cpu", "dtype": None, "batch_size": 4}
    assert parse_reward_weights(["own_rewards:Named=3"]) == {"words": 3.0}, "the same class may be named again"


def test_a_script_imports_from_the_current_directory(tmp_path: Path):
    """A script's sys.path starts with its own folder; the path is as before afterwards."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "own_rewards.py").write_text(OWN)
    script = tmp_path / "scripts" / "script.py"
    script.write_text(
        "import sys\nfrom diffusers_craft.scripts import parse_reward_weights\nbefore = list(sys.path)\n"
        "print(parse_reward_weights(['own_rewards:Length=2']), sys.path == before)\n"
    )
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "{'Length': 2.0} True\n"


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere:X", "--rewards: expected MODULE:CLASS that can be imported, found 'nowhere:X' (no module 'nowhere'"),
        (
            "own_rewards:X",
            "--rewards: expected MODULE:CLASS that can be imported, found 'own_rewards:X' (module 'own_re",
        ),
        ("own_rewards:", "--rewards: expected MODULE:CLASS that can be imported, found 'own_rewards:'"),
        (":X", "--rewards: expected MODULE:CLASS that can be imported, found ':X'"),
        (
            "own_rewards:PickScore",
            "--rewards: expected own_rewards:PickScore to have a name of its own, found that of the",
        ),
        (
            "own_rewards:Spaced",
            "register_reward: expected a name of letters, digits, '.', '_' and '-', found 'my reward'",
        ),
        ("own_rewards:Image", "register_reward: expected another name, found 'image', a column of the dataset"),
        ("own_rewards:Length=x", "--rewards: expected Length=NUMBER, found 'own_rewards:Length=x'"),
    ],
)
def test_specs_that_are_refused(value: str, message: str):
    with pytest.raises(ValueError) as error:
        parse_reward_weights([value])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.usefixtures("own_module")
def test_a_module_s_own_failure_is_not_the_user_s_spelling():
    with pytest.raises(ValueError) as error:
        parse_reward_weights(["needs_more:X"])
    message = "--rewards: expected MODULE:CLASS that can be imported, found 'needs_more:X' (No module named 'no_such_package')"
    assert str(error.value) == message
    with pytest.raises(KeyError, match="a defect of the module"):
        parse_reward_weights(["broken:X"])


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("NoScore", {}, "reward NoScore: expected an object with score(prompts, images), found NoScore"),
        ("number", {}, "reward number: expected a class or function, found int"),
        ("Length", {"checkpoint": "x"}, "--reward_checkpoint: expected none for Length, which takes no checkpoint"),
        (
            "Length",
            {"backend": "package"},
            "--reward_backend: expected one of hps_v2.1=package, image_reward=package,",
        ),
    ],
)
def test_what_is_no_reward(attribute: str, options: dict, message: str):
    with pytest.raises(ValueError) as error:
        load_reward(f"own_rewards:{attribute}", **options)
    assert str(error.value).startswith(message)


def test_an_entry_point_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A real installation record on the path; a name of this package stays this package's."""
    (tmp_path / "their_rewards.py").write_text(OWN)
    record = tmp_path / "their_rewards-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rewards\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(
        "[diffusers_craft.rewards]\nlength = their_rewards:Length\npickscore = their_rewards:Length\n"
    )
    assert "length" not in registry.reward_factories()
    monkeypatch.syspath_prepend(tmp_path)
    assert [*registry.reward_factories()][-1] == "length"
    assert parse_reward_weights(["length=0.5"]) == {"length": 0.5}
    assert score_of(load_reward("length")) == [2, 1]
    with pytest.raises(ValueError, match="reward pickscore: needs yuvalkirstain/PickScore_v1"):
        load_reward("pickscore")
    sys.modules.pop("their_rewards")


def test_register_reward_adds_a_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_FACTORIES", {})

    class Constant:
        def __init__(self, **options):
            self.options = options

        def score(self, prompts, images):
            return np.zeros(len(images), np.float32)

    register_reward("constant", Constant)
    assert [*registry.reward_factories()] == ["constant"]
    options = {"checkpoint": None, "device": None, "dtype": None, "batch_size": 4}
    assert load_reward("constant", batch_size=4).options == options


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch):
    register_reward("theirs", "no_such_package.rewards:X")
    with pytest.raises(ValueError) as error:
        load_reward("theirs")
    message = "reward theirs: needs the package no_such_package; install it with: pip install no_such_package"
    assert str(error.value) == message


def test_backends_of_other_names_are_refused():
    for name, backend in (("pickscore", "package"), ("hps_v2.1", "docker")):
        with pytest.raises(ValueError) as error:
            load_reward(name, backend=backend)
        assert str(error.value) == (
            f"--reward_backend: expected one of hps_v2.1=package, image_reward=package, found {name}={backend}"
        )


@pytest.mark.parametrize("place", [*registry._FACTORIES.values(), *registry._PACKAGE_FACTORIES.values()])
def test_every_name_of_this_package_has_its_class(place: str):
    module, _, kind = place.partition(":")
    assert callable(getattr(importlib.import_module(module), kind).score)


def test_a_wrong_entry_of_this_package_is_a_defect(monkeypatch: pytest.MonkeyPatch):
    """And no package that the user can install."""
    monkeypatch.setitem(registry._FACTORIES, "mps", "diffusers_craft.rewards.moved:MPSReward")
    with pytest.raises(ModuleNotFoundError, match="diffusers_craft.rewards.moved"):
        load_reward("mps")


OUTSIDE = """
import numpy as np, torch
from diffusers_craft import Reward

class Redness(Reward):
    name, unit = "redness", "mean of the red channel, 0 to 255"

    def _load(self):
        return None

    def _score(self, prompts, images):
        return torch.tensor([float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images])
"""


def test_a_subclass_outside_this_package_needs_nothing_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The example of `Reward`: named on the command line, loaded, checked and recorded like one of this package."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    weights = parse_reward_weights(["outside:Redness=2"])
    reward = load_rewards(list(weights), RewardSettings(batch_size=3), "cpu")["redness"]
    assert weights == {"redness": 2.0} and reward.batch_size == 3
    assert reward.score(["a", "b"], [Image.new("RGB", (4, 4), color) for color in ("red", "black")]).tolist() == [
        255,
        0,
    ]
    with pytest.raises(ValueError, match="images of reward redness: expected one for each of 1 prompts, found 0"):
        reward.score(["a"], [])
    unit = "mean of the red channel, 0 to 255"
    assert reward_source(reward) == {"checkpoint": "outside:Redness", "unit": unit, "dtype": "float32"}
    sys.modules.pop("outside")


def test_no_reward_takes_the_name_of_a_column():
    """Those of the training set and of the table of all candidates."""
    row = {field.name: 0 if pa.types.is_integer(field.type) else None for field in CANDIDATE_SCHEMA}
    row |= {
        "prompt": "a",
        "refined_prompt": "a",
        "valid": True,
        "latent": pack_latent(np.zeros((4, 2, 2), np.float16)),
    }
    one = pa.Table.from_pylist([row], schema=CANDIDATE_SCHEMA)
    scores = dict.fromkeys(("reward", "advantage"), np.zeros(1))
    columns = set(assemble_dataset(one, scores).column_names)
    columns |= set(assemble_scores(one, scores, np.ones(1), np.zeros(1, int)).column_names)
    assert len(columns) > 10
    for name in columns:
        with pytest.raises(ValueError, match=f"register_reward: expected another name, found '{name}', a column"):
            register_reward(name, object)
