# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Merges the results of several evaluations into one table.

Another guidance, sampler, scorer, prompt, seed, statistic or (for win rates) base is an error unless allowed by name;
the table then says so.
"""

import json
import re
from collections import ChainMap
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import atomic_write_bytes, atomic_write_json
from ..errors import UserError
from .tables import (
    STATISTICS,
    category_tables,
    distinct,
    format_csv,
    markdown_text,
    model_table,
    one_line,
    to_latex,
    to_markdown,
)


MODEL_SETTINGS = ("scheduler", "num_inference_steps", "guidance_scale", "resolution", "seed", "dtype")


def flat_settings(results: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two results to compare, one level deep; what a file does not say is left out."""
    settings = results["settings"]
    models, prompts = settings.get("models", {}), settings.get("prompts")
    known = ChainMap(*models.values(), settings)  # a file's models have the same sampler settings
    flat = {name: known[name] for name in MODEL_SETTINGS if name in known}
    flat |= {f"metric {name}": source for name, source in settings.get("metrics", {}).items()}
    for name, about in prompts.items() if isinstance(prompts, dict) else ():
        flat[f"prompts {name}"] = about.get("prompts")
        flat[f"images_per_prompt {name}"] = about.get("images_per_prompt")
    if base := models.get(settings.get("base", "")):
        flat["base"] = base.get("pretrained_model_name_or_path")
    return flat


def _weights(results: Mapping[str, Any], model: str) -> str | None:
    """What a file says about the weights of one of its models: their hash, whatever their folder is called."""
    text = results["settings"].get("models", {}).get(model, {}).get("pretrained_model_name_or_path")
    found = re.search(r"\(weights (\w+)\)$", text or "")
    return found[1] if found else text


def _detail(*values: Any) -> list[str]:
    """Two different values as text; of dictionaries only the entries that differ."""
    if all(isinstance(value, dict) for value in values):
        one, other = values
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        values = tuple({name: value.get(name) for name in names} for value in values)
    return [value if isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]


def find_differences(results: Mapping[str, Mapping[str, Any]], statistic: str) -> dict[str, str]:
    """Setting to what differs, `5.0 in a, 7.5 in b`. Each file is compared with the first that knows the setting."""
    flat = {name: flat_settings(one) for name, one in results.items()}
    differences: dict[str, str] = {}
    for setting in dict.fromkeys(key for one in flat.values() for key in one):
        (first, value), *others = [(name, one[setting]) for name, one in flat.items() if setting in one]
        others = [(name, other) for name, other in others if other != value]
        if others and (setting != "base" or statistic == "win_rate"):  # other numbers do not depend on the base
            name, other = others[0]
            here, there = _detail(value, other)
            differences[setting] = f"{here} in {first}, {there} in {name}"
    for name, one in results.items():
        rows = [row for row in one["rows"] if row.get("category") is None]
        has = [key for key in STATISTICS if any(row.get(key) is not None for row in rows)]
        if statistic not in has:
            differences["statistic"] = f"{statistic} asked for, {' and '.join(has) or 'none'} in {name}"
    return differences


def compare_results(
    results: Mapping[str, Mapping[str, Any]], statistic: str = "mean", allow: Collection[str] = ()
) -> dict[str, Any]:
    """Merges evaluations, and refuses those that do not compare.

    A model that several files hold with the same weights and numbers (the base, mostly) appears once. One of the same
    name with other weights or numbers is another model, `model (file)`; a file that names no weights goes by numbers.

    Args:
        results (`Mapping[str, Mapping[str, Any]]`): name of the file to what `load_results` returns, at least one.
        statistic (`str`, *optional*, defaults to `"mean"`): `mean`, `median`, `mean_of_categories` or `win_rate`.
        allow (`Collection[str]`, *optional*): settings that may differ, by the names of the error text; `all` for any.

    Returns:
        `dict`: `rows` of all files, `statistic`, and `differences`, setting to text, that were allowed.

    Raises:
        UserError: if settings differ that are not allowed; names each of them and both values.
    """
    if statistic not in STATISTICS:
        raise UserError(f"--statistic: expected one of {', '.join(STATISTICS)}, found {statistic!r}")
    differences = find_differences(results, statistic)
    refused = [f"{name} ({text})" for name, text in differences.items() if not {"all", name} & set(allow)]
    if refused:
        hint = "--allow NAME merges them all the same"
        raise UserError(f"results: expected settings that compare, found {'; '.join(refused)}; {hint}")
    rows: list[dict[str, Any]] = []
    lines: dict[str, list[_Line]] = {}  # name of a model -> those that bear it
    for name, one in results.items():
        for model in distinct(one["rows"], "model"):
            own = [row for row in one["rows"] if row["model"] == model]
            own = {(row.get("prompts"), row.get("category"), row["metric"]): row for row in own}
            known, weights = lines.setdefault(model, []), _weights(one, model)
            line = next((line for line in known if line.agrees(weights, own)), None)
            if line is None:
                line = _Line(f"{model} ({name})" if known else model)
                known.append(line)
            line.weights = line.weights or weights
            new = {place: {**row, "model": line.label} for place, row in own.items() if place not in line.rows}
            line.rows |= new
            rows += new.values()
    return {"rows": rows, "statistic": statistic, "differences": differences}


@dataclass
class _Line:
    """One model of the merged table; `rows` by prompt set, category and metric, `weights` where a file says them."""

    label: str
    rows: dict[tuple[Any, ...], Mapping[str, Any]] = field(default_factory=dict)
    weights: str | None = None

    def agrees(self, weights: str | None, rows: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> bool:
        """Whether rows of another file are this model's: the same weights, where both say, and the same numbers."""
        if None not in (weights, self.weights) and weights != self.weights:
            return False
        pairs = [(self.rows[place], rows[place]) for place in self.rows.keys() & rows.keys()]
        return all(a.get(key) == b.get(key) for a, b in pairs for key in ("n", "mean"))


def write_comparison(folder: str | Path, merged: Mapping[str, Any]) -> str:
    """Writes `comparison.json`, `.md`, `.csv` and `.tex` and returns the Markdown."""
    rows, statistic = merged["rows"], merged["statistic"]
    models = distinct([row for row in rows if row.get(statistic) is not None], "model")
    tables = [model_table(rows, statistic, models), *(category_tables(rows) if statistic == "mean" else [])]
    notes = [f"Not comparable, {name} differs: {text}" for name, text in merged["differences"].items()]
    text = "\n\n".join([*map(to_markdown, tables), *(f"- {markdown_text(note)}" for note in notes)]) + "\n"
    latex = "\n".join(f"% {one_line(note)}" for note in notes) + "\n\n".join(["", *map(to_latex, tables)]) + "\n"
    atomic_write_json(Path(folder) / "comparison.json", dict(merged))
    for kind, content in {"md": text, "csv": format_csv(rows), "tex": latex}.items():
        atomic_write_bytes(Path(folder) / f"comparison.{kind}", content.encode())
    return text
