# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The tensors of pickled modules are read, and nothing that a pickle names runs."""

import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusers_craft import load_reward
from diffusers_craft.rewards.safe_pickle import Inert, read_pickled_module
from diffusers_craft.scripts import convert_mps_checkpoint


class Block(nn.Module):
    """A module with what pickles hold: parameters, buffers of both kinds, shared and strided tensors, odd state."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("frequencies", torch.arange(6.0).view(2, 3).T)
        self.register_buffer("transient", torch.ones(2), persistent=False)
        self.register_buffer("halved", torch.arange(5).half()[2:])
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("numbers", torch.tensor([1, -2]))
        self.children_too = nn.ModuleList([nn.LayerNorm(2), nn.Sequential(nn.Linear(2, 2, bias=False))])
        self.tied = self.linear
        self.options = {"dtype": torch.bfloat16, "activation": torch.nn.functional.gelu, "names": {"a", "b"}}


def save(module: object, path: Path) -> Path:
    torch.save(module, path)
    return path


def test_module_is_read_like_torch_reads_it(tmp_path: Path):
    module = Block()
    path = save(module, tmp_path / "module.pth")
    found = read_pickled_module("x", path)
    expected = torch.load(path, weights_only=False).state_dict()
    assert found.keys() == expected.keys() and "transient" not in found
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, atol=0, rtol=0)


class Hostile:
    """Unpickling it calls a function; `calls` are tried one after another."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("place", ["attribute", "parameters", "whole", "in a set", "dictionary key"])
@pytest.mark.parametrize(
    "attack",
    [
        lambda file: Hostile(os.system, f"touch {file}"),
        lambda file: Hostile(Path.touch, file),
        lambda file: Hostile(eval, f"open({str(file)!r}, 'w')"),
        lambda file: Hostile(subprocess.check_output, ["touch", str(file)]),
        lambda file: Hostile(exec, f"import os; os.mknod({str(file)!r})"),
        lambda file: Hostile(torch.load, str(file)),
    ],
    ids=["os.system", "Path.touch", "eval", "subprocess", "exec", "torch.load"],
)
def test_nothing_runs(attack, place: str, tmp_path: Path):
    file = tmp_path / "executed"
    hostile = attack(file)
    module = Block()
    if place == "attribute":
        module.extra = hostile
    elif place == "parameters":
        module._parameters["extra"] = hostile
    elif place == "in a set":
        module.extra = [hostile, {"x": (hostile,)}]
    elif place == "dictionary key":
        module.extra = OrderedDict([(1, hostile)])
    path = save(hostile if place == "whole" else module, tmp_path / "module.pth")
    found = read_pickled_module("x", path)
    assert not file.exists()
    assert found.keys() == (set() if place == "whole" else Block().state_dict().keys())


def raw_archive(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(16))
    return path


class Reference:
    """Pickles as `torch._utils._rebuild_tensor_v2(storage 0, ...)`."""

    def __init__(self, *arguments, storage=None):
        self.arguments, self.storage = arguments, storage or Storage()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.arguments, False, OrderedDict())


class Storage:
    pass


class StoragePickler(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Storage) else None


@pytest.mark.parametrize(
    "arguments",
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (2,), (1, 1))],
    ids=["longer", "offset", "stride", "negative offset", "negative stride", "ranks"],
)
def test_tensors_never_reach_beyond_their_storage(arguments: tuple, tmp_path: Path):
    buffer = io.BytesIO()
    StoragePickler(buffer, protocol=2).dump(Reference(*arguments))
    with pytest.raises(
        ValueError, match="found a tensor (that reaches beyond its storage|whose description is not one)"
    ):
        read_pickled_module("x", raw_archive(tmp_path / "x.pth", buffer.getvalue()))


def test_a_view_is_no_storage(tmp_path: Path):
    """A tensor of a billion equal values, by a stride of 0, would let the next one reach as far."""
    buffer = io.BytesIO()
    wide = Reference(0, (10**9,), (0,))
    StoragePickler(buffer, protocol=2).dump(Reference(0, (10**9,), (1,), storage=wide))
    with pytest.raises(ValueError, match="found a tensor whose description is not one"):
        read_pickled_module("x", raw_archive(tmp_path / "x.pth", buffer.getvalue()))


def test_tensor_within_its_storage_is_read(tmp_path: Path):
    buffer = io.BytesIO()
    StoragePickler(buffer, protocol=2).dump(Reference(1, (3,), (1,)))
    assert read_pickled_module("x", raw_archive(tmp_path / "x.pth", buffer.getvalue())) == {}  # a tensor is no module


@pytest.mark.parametrize("content", [b"", b"no archive", pickle.dumps(1)], ids=["empty", "text", "plain pickle"])
def test_other_files_are_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "module.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a module saved by torch 1.6 or later in .*, found") as error:
        read_pickled_module("x", path)
    assert "\n" not in str(error.value)


def test_damaged_pickle_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="expected a module saved by torch 1.6 or later") as error:
        read_pickled_module("x", raw_archive(tmp_path / "x.pth", b"\x80\x02cos\nsystem\n"))
    assert "\n" not in str(error.value)


def test_inert_objects_do_nothing():
    value = Inert(1, key=2)
    value.append(1), value.extend([1]), value.add(1)
    value["a"] = 1
    assert vars(value) == {} and isinstance(value("a method"), Inert)


def test_conversion_refuses_what_is_not_mps(tmp_path: Path):
    path = save(Block(), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="mps: expected MPS's tensors in .*module.pth, found 11 others"):
        convert_mps_checkpoint(path, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="expected an output_path of .safetensors, found .*out.pth"):
        convert_mps_checkpoint(path, tmp_path / "out.pth")
    (tmp_path / "bad.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="convert_mps_checkpoint: expected a module saved by torch"):
        convert_mps_checkpoint(tmp_path / "bad.pth", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="--reward_checkpoint mps: expected MPS_overall_checkpoint.pth or its"):
        load_reward("mps", str(tmp_path / "nowhere"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pth", "module.pth"]
