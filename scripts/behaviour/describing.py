# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What is in the files that a run left: content where it can be read, else a hash; no places and no times."""

import hashlib
import json
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]  # the checkout
VOLATILE = {"paths", "_name_or_path", "versions", "speed", "cost"}  # keys in JSON: places, libraries and times


def describe_folder(folder: Path, work: Path) -> dict[str, Any]:
    """Relative name to what is in the file, for every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): describe_file(path, path.parent == folder, work) for path in files}


def describe_file(path: Path, is_record: bool, work: Path) -> Any:
    """Records and tables by their content, all else by a hash; `present` where the bytes say nothing."""
    if path.suffix == ".safetensors":
        return hash_tensors(path)
    if path.suffix == ".parquet":
        return describe_columns(path)
    if path.suffix == ".json":
        content = settled(json.loads(path.read_text(encoding="utf-8")), work)
        return content if is_record else digest(json.dumps(content, sort_keys=True).encode())
    if path.suffix in (".md", ".csv", ".tex"):
        return without_places(path.read_text(encoding="utf-8"), work).splitlines()
    if path.suffix in (".html", ".txt", ".jsonl"):
        return digest(without_places(path.read_text(encoding="utf-8"), work).encode())
    return digest(path.read_bytes()) if path.suffix == ".png" else "present"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def without_places(text: str, work: Path) -> str:
    return text.replace(str(work), "<work>").replace(str(ROOT), "<repository>")


def settled(value: Any, work: Path) -> Any:
    """JSON without places and times; a history becomes a list of numbers per metric."""
    if isinstance(value, dict):
        kept = {without_places(key, work): part for key, part in value.items() if key not in VOLATILE}
        return {key: by_metric(part) if key == "loss_history" else settled(part, work) for key, part in kept.items()}
    if isinstance(value, list):
        return [settled(part, work) for part in value]
    return without_places(value, work) if isinstance(value, str) else value


def by_metric(history: list[dict[str, float]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for entry in history for name in entry)
    return {name: [entry.get(name) for entry in history] for name in names}


def hash_tensors(path: Path) -> str:
    """Over names, types, shapes and bytes, in the order of the names; the file's own metadata do not count."""
    import torch
    from safetensors.torch import load_file

    found, tensors = hashlib.sha256(), load_file(path)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def describe_columns(path: Path) -> dict[str, Any]:
    """A hash of every column's type and rows; numbers with a fraction as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, table = {}, pq.read_table(path)
    for name in table.column_names:
        column = table[name]
        values = column.to_pylist()
        is_number = pa.types.is_floating(column.type)
        columns[name] = values if is_number else digest(f"{column.type} {values!r}".encode())
    return columns
