# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A `results.json` of whatever hand: an evaluation's own, that of a stranger, or a paper's numbers in that form."""

import json
import math
from pathlib import Path
from typing import Any

from ..core.tables import read_text
from ..errors import UserError
from .tables import STATISTICS


TEXTS = ("model", "metric", "prompts", "category")  # of a row; the first two are needed
SHARES = ("win_rate", "win_rate_low", "win_rate_high")
NUMBERS = tuple(dict.fromkeys(("n", *STATISTICS, *SHARES)))
MAX_NUMBER = 1e300


def load_results(path: str | Path) -> dict[str, Any]:
    """Reads a `results.json` of an evaluation, or that of a folder; numbers of a paper in that form will do."""
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise UserError(f"results: expected finite numbers or null in {file}, found {text}")
        return value

    try:
        found = json.loads(read_text(file, "results"), parse_float=finite, parse_constant=finite)
        json.dumps(found, ensure_ascii=False).encode()  # not half of an emoji, which no file takes
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise UserError(f"results: expected a results.json of an evaluation, found {file} ({reason})") from None
    _check_settings(found, file)
    for number, row in enumerate(found["rows"], 1):
        _check_row(row, number, file)
    return found


def _require(value: Any, kind: type, place: str) -> None:
    if not isinstance(value, kind):
        wanted = {dict: "an object", list: "a list", str: "text"}[kind]
        raise UserError(f"results: expected {wanted} as {place}, found {json.dumps(value):.60}")


def _check_settings(found: Any, file: Path) -> None:
    """What a comparison reads of the settings; a file may say less of them, but not another thing."""
    _require(found, dict, f"the content of {file}")
    for name, kind in (("settings", dict), ("rows", list)):
        _require(found.get(name), kind, f"{name} of {file}")
    settings = found["settings"]
    _require(settings.get("base", ""), str, f"settings.base of {file}")
    for name in ("models", "metrics"):
        _require(settings.get(name, {}), dict, f"settings.{name} of {file}")
    prompts = settings.get("prompts")
    for name, about in {**settings.get("models", {}), **(prompts if isinstance(prompts, dict) else {})}.items():
        _require(about, dict, f"settings of {name} in {file}")
    for name, about in settings.get("models", {}).items():
        weights = about.get("pretrained_model_name_or_path")
        _require("" if weights is None else weights, str, f"pretrained_model_name_or_path of {name} in {file}")


def _check_row(row: Any, number: int, file: Path) -> None:
    place = f"row {number} of {file}"
    if not isinstance(row, dict) or not {"model", "metric"} <= row.keys():
        raise UserError(
            f"results: expected rows with model and metric in {file}, found others ({json.dumps(row):.60})"
        )
    for name in TEXTS:
        if (value := row.get(name)) is not None or name in TEXTS[:2]:
            _require(value, str, f"{name} of {place}")
            if not value.strip():
                raise UserError(f"results: expected text as {name} of {place}, found {value!r}")
    for name in NUMBERS:
        if (value := row.get(name)) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < MAX_NUMBER:
            raise UserError(f"results: expected a number or null as {name} of {place}, found {json.dumps(value):.60}")
        if name in SHARES and not 0 <= value <= 1:
            raise UserError(f"results: expected a share from 0 to 1 as {name} of {place}, found {value}")
