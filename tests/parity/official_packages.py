# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The official packages `hpsv2` and `image-reward`, in a folder of their own, importable beside today's libraries.

Their wheels do not import as they are: `hpsv2` lacks a file and wants tkinter and clint, `image-reward` wants fairscale
and names that transformers 5 no longer has. The shims below stand in for what no score depends on.
"""

import importlib
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import pytest
import torch


REQUIREMENTS = ("hpsv2==1.2.0", "image-reward==1.5")
ENVIRONMENT = "DIFFUSERS_CRAFT_OFFICIAL_PACKAGES"
FOLDER = Path(__file__).parents[2] / "outputs" / "official_packages"


def locate_packages() -> Path:
    """The folder with the packages, installed on first use; skips the test where pip reaches no index."""
    if ENVIRONMENT in os.environ:
        return _complete(Path(os.environ[ENVIRONMENT]))
    if not FOLDER.exists():
        partial = FOLDER.with_name(f"{FOLDER.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--retries", "0"]
        command += ["--timeout", "10", "--target", str(partial), *REQUIREMENTS]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(
                f"{', '.join(REQUIREMENTS)} could not be installed ({last}); name a folder: {ENVIRONMENT}=PATH"
            )
        os.replace(_complete(partial), FOLDER)
    return FOLDER


def _complete(folder: Path) -> Path:
    """Adds the file that hpsv2's wheel lacks; open_clip_torch ships the same."""
    vocabulary = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    home = folder / "hpsv2" / "src" / "open_clip"
    if not (home / vocabulary.name).exists():
        shutil.copy(vocabulary, home)
    return folder


def _module(name: str, path: Path | None = None, **contents: object) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(contents)
    if path is not None:
        module.__path__ = [str(path)]
    return module


@contextmanager
def _importable(folder: Path, stubs: list[types.ModuleType]) -> Iterator[None]:
    """The folder on the path and the stubs in place, while a package is imported."""
    missing = {stub.__name__: stub for stub in stubs if stub.__name__ not in sys.modules}
    sys.modules.update(missing)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, stub in missing.items():
            if not hasattr(stub, "__path__"):
                sys.modules.pop(name, None)


def import_hpsv2(folder: Path) -> types.ModuleType:
    """`hpsv2.img_score`."""
    stubs = [_module("turtle", forward=None), _module("clint", textui=None), _module("clint.textui", progress=None)]
    if importlib.util.find_spec("requests") is None:
        stubs.append(_module("requests"))
    with _importable(folder, stubs):
        return importlib.import_module("hpsv2.img_score")


def _chunked(function, chunk_size, dimension, *tensors):
    assert chunk_size == 0
    return function(*tensors)


def import_image_reward(folder: Path) -> types.ModuleType:
    """`ImageReward.ImageReward`, without what else its package imports (training code, OpenAI's clip)."""
    import transformers.modeling_utils as modeling_utils

    root = folder / "ImageReward"
    names = {
        "ImageReward": root,
        "ImageReward.models": root / "models",
        "ImageReward.models.BLIP": root / "models/BLIP",
    }
    stubs = [_module(name, path) for name, path in names.items()]
    wrapper = _module("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=None)
    stubs += [_module("fairscale"), _module("fairscale.nn"), _module("fairscale.nn.checkpoint"), wrapper]
    removed = {
        "apply_chunking_to_forward": _chunked,
        "find_pruneable_heads_and_indices": None,
        "prune_linear_layer": None,
    }
    added = {name: value for name, value in removed.items() if not hasattr(modeling_utils, name)}
    vars(modeling_utils).update(added)
    try:
        with _importable(folder, stubs):
            module = importlib.import_module("ImageReward.ImageReward")
            bert = importlib.import_module("ImageReward.models.BLIP.med").BertPreTrainedModel
    finally:
        for name in added:
            delattr(modeling_utils, name)
    # Methods of transformers 4's PreTrainedModel, as its documentation has them. Weights come from the checkpoint.
    bert.init_weights = lambda self: None
    bert.get_head_mask = lambda self, mask, layers, *_: [None] * layers
    bert.invert_attention_mask = lambda self, mask: (
        (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    )
    return module
