# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The public names exist, keep their signatures and load lazily."""

import inspect
import subprocess
import sys

import pytest

import diffusers_craft
from diffusers_craft import scripts


# The interface that users write code against: names and leading parameters may be added to, never renamed.
SIGNATURES = {
    "CRAFTDatasetBuilder": ["pipeline", "rewards", "refiner", "filter_rule"],
    "load_reward": ["name", "checkpoint", "device", "dtype", "batch_size"],
    "register_reward": ["name", "factory"],
    "composite_reward": ["rewards", "weights", "normalization"],
    "crf_filter": ["rewards", "groups", "variants", "rule"],
    "group_advantages": ["composite", "groups", "variants"],
    "select_samples": ["composite", "mask", "groups", "variants", "strategy", "k", "max_per_prompt", "seed"],
    "craft_loss": ["model_pred", "target", "advantages"],
    "load_prompts": ["source", "column", "num_prompts", "seed"],
    "generate_images": ["pipeline", "prompts", "seeds", "settings"],
    "exact_score": ["prompts", "images"],
}
DEFAULTS = {
    "load_reward": {"checkpoint": None, "device": None, "dtype": None, "batch_size": 16},
    "composite_reward": {"normalization": "zscore"},
    "crf_filter": {"rule": "hpa"},
    "select_samples": {"strategy": "top", "k": 100, "max_per_prompt": 1, "seed": 0},
}


@pytest.mark.parametrize("name", diffusers_craft.__all__)
def test_every_public_name_exists(name):
    value = getattr(diffusers_craft, name)
    assert name in dir(diffusers_craft)
    if inspect.isfunction(value) or inspect.isclass(value):
        assert value.__doc__, f"{name} has no docstring"
        assert value.__name__ == name


@pytest.mark.parametrize("name", scripts.__all__)
def test_every_name_of_the_scripts_exists(name):
    assert getattr(scripts, name) is not None and name not in diffusers_craft.__all__


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = inspect.signature(getattr(diffusers_craft, name)).parameters
    assert list(parameters)[: len(SIGNATURES[name])] == SIGNATURES[name]
    for parameter, default in DEFAULTS.get(name, {}).items():
        assert parameters[parameter].default == default


def test_names_load_on_first_use():
    code = (
        "import sys, diffusers_craft as d; before = set(sys.modules)\n"
        "assert not {'torch', 'diffusers', 'numpy'} & before, 'import'\n"
        "assert 'crf_filter' in dir(d) and not hasattr(d, 'no_such_name')\n"
        "assert set(sys.modules) == before, 'dir'\n"
        "f = d.crf_filter; assert 'torch' not in sys.modules, 'crf_filter'\n"
        "assert vars(d)['crf_filter'] is f\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'diffusers_craft' has no attribute 'crf_filters'"):
        diffusers_craft.crf_filters
    with pytest.raises(ImportError, match="cannot import name 'crf_filters'"):
        from diffusers_craft import crf_filters  # noqa: F401
