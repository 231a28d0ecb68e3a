# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The tensors of a pickled `torch.nn.Module`, which `torch.load(weights_only=True)` refuses; what it names never runs.

What rebuilds tensors is replaced by functions of this file; all else becomes inert objects that keep their state.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError


class Inert:
    """Stands for an object of a class that is not on the allow-list: takes any arguments and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        # A pickle's state may be (attributes, slots); only the attributes can hold a module's tensors.
        attributes = state[0] if isinstance(state, tuple) and state else state
        if isinstance(attributes, dict):
            self.__dict__.update({str(name): value for name, value in attributes.items()})

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return Inert()  # methods are pickled as the result of a call, and then called

    append = extend = add = __setitem__ = __call__  # pickles may fill lists, dictionaries and sets of unknown classes


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """`torch._utils._rebuild_tensor_v2` on checked arguments: a view of the stored values, never beyond them."""
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    plain = isinstance(storage, torch.Tensor) and storage.ndim == 1 and storage.is_contiguous()  # no view of a view
    if not plain or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor whose description is not one")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if len(size) != len(stride) or (0 not in size and last >= storage.numel()):
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return torch.as_strided(storage, size, stride, offset)


# What the names of storage classes start with.
_DTYPES = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64}
_DTYPES |= {"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8}
_DTYPES |= {"Byte": torch.uint8, "Bool": torch.bool}

# The allow-list. Nothing else that a pickle names is looked up or imported.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    **{("torch", f"{name}Storage"): dtype for name, dtype in _DTYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES.values()},
}


class _TensorUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, torch.Tensor] = {}  # one-dimensional, uint8 for an untyped storage

    def find_class(self, module: str, name: str) -> Any:
        # A class of its own for every name, so that nothing a pickle does to one shows in another.
        return _ALLOWED.get((module, name)) or type("Inert", (Inert,), {})

    def persistent_load(self, saved_id: Any) -> torch.Tensor:
        kind, dtype, key = saved_id[:3] if isinstance(saved_id, tuple) and len(saved_id) == 5 else (None, None, None)
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage whose description is not one")
        if key not in self._storages:
            dtype = dtype if isinstance(dtype, torch.dtype) else torch.uint8
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _state_dict(module: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers of a module and its children, under their names in its `state_dict()`."""
    fields = vars(module) if isinstance(module, Inert) else {}
    transient = fields.get("_non_persistent_buffers_set") or ()
    tensors = {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in dict(fields.get(kind) or {}).items():
            if isinstance(tensor, torch.Tensor) and name not in transient:
                tensors[f"{prefix}{name}"] = tensor
    for name, child in dict(fields.get("_modules") or {}).items():
        tensors |= _state_dict(child, f"{prefix}{name}.")
    return tensors


def read_pickled_module(flag: str, path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict, in the file's precision, of what `torch.save(module, path)` of torch 1.6 or later saved whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise pickle.UnpicklingError("no data.pkl")
            module = _TensorUnpickler(archive, pickles[0].split("/")[0]).load()
        return _state_dict(module)
    except Exception as error:  # a hostile pickle may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{flag}: expected a module saved by torch 1.6 or later in {path}, found {reason}") from None
