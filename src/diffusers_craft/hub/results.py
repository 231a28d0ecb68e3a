# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What `evaluate_craft.py` found out about one model, as a card shows it: a table and the Hub's `model-index`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from ..core.files import read_json
from ..errors import UserError
from .card import table, without_paths
from .upload import as_hub_id


class Results(NamedTuple):
    """One tuned model against its base; rows over all prompts of a set, not over its categories."""

    base: str  # name of the base in the table
    rows: list[dict[str, Any]]  # one per prompt set and metric: summarize's columns, `base_mean`, `prompts`, `unit`
    alarms: list[str]
    grids: dict[str, Path]  # path in the repository -> picture


def read_results(evaluation: str | Path, folder: Path, repo_id: str) -> Results:
    """Reads `results.json`.

    Args:
        evaluation (`str` or `Path`): `--output_dir` of `evaluate_craft.py`.
        folder (`Path`): the training run's `--output_dir`; the model is found by it, or by `repo_id`.
        repo_id (`str`): the model's Hub id.

    Raises:
        UserError: if there is none, or the model was not evaluated.
    """
    path = Path(evaluation) / "results.json"
    if not path.is_file():
        raise UserError(f"--evaluation_dir: expected the --output_dir of evaluate_craft.py, found no {path}")
    content = read_json(path)
    run = Path(evaluation) / "craft_evaluate.json"
    paths = read_json(run).get("paths", {}) if run.is_file() else {}
    models = {name: paths.get(about["model"], about["model"]) for name, about in content["settings"]["models"].items()}
    base, *others = models
    name = next((n for n in others if models[n] == repo_id or Path(models[n]).resolve() == folder.resolve()), None)
    if name is None:
        found = ", ".join(without_paths([models[n] for n in others])) or "none"
        raise UserError(f"--evaluation_dir: expected an evaluation of {folder}, found one of {found} in {path}")
    grids = {f"images/evaluation_{grid.stem}.png": grid for grid in sorted(Path(evaluation).glob("grid*.png"))}
    alarms = [alarm["message"] for alarm in content["alarms"] if alarm["model"] == name]
    return Results(base, list(_rows(content, base, name)), alarms, grids)


def _rows(content: Mapping[str, Any], base: str, name: str) -> list[dict[str, Any]]:
    sets, metrics = content["settings"]["prompts"], content["settings"]["metrics"]
    only = sets if isinstance(sets, str) else next(iter(sets))
    rows = [row for row in content["rows"] if row.get("category") is None]
    means = {(row.get("prompts", only), row["metric"]): row["mean"] for row in rows if row["model"] == base}
    found = []
    for row in rows:
        if row["model"] == name:
            prompts = row.get("prompts", only)
            own = {"prompts": without_paths(prompts), "base_mean": means[prompts, row["metric"]]}
            found.append(row | own | {"unit": metrics.get(row["metric"], {}).get("unit", "raw score")})
    return found


def eval_results(results: Results) -> list[EvalResult]:
    """Means and win rates, in the form of the Hub's `model-index`."""
    found = []
    for row in results.rows:
        metric, prompts = row["metric"], row["prompts"]
        dataset = {"dataset_type": as_hub_id(prompts) or prompts, "dataset_name": f"{prompts}, {row['n']} prompts"}
        entries = [(metric, f"{metric}, mean ({row['unit']})", row["mean"])]
        entries.append((f"{metric}_win_rate", f"{metric}, win rate against {results.base}", row["win_rate"]))
        found += [
            EvalResult(task_type="text-to-image", metric_type=kind, metric_name=name, metric_value=value, **dataset)
            for kind, name, value in entries
            if value is not None
        ]
    return found


def results_text(results: Results) -> str:
    """Markdown: how it was measured, the table, the alarms, the pictures."""
    header = ("prompts", "n", "metric", f"{results.base}, mean", "this model, mean", "win rate")
    rows = [
        (f"`{row['prompts']}`", row["n"], row["metric"], _number(row["base_mean"]), _number(row["mean"]), _rate(row))
        for row in results.rows
    ]
    parts = [
        "Both models drew each of n prompts from the same seeds. Win rate against"
        f" `{results.base}` with its 95 % interval; a tie counts half.",
        table(header, rows),
        "\n".join(f"- Alarm: {message}" for message in results.alarms),
        "\n".join(f"![base and tuned models]({path})" for path in results.grids),
    ]
    return "\n\n".join(filter(None, parts))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _rate(row: Mapping[str, Any]) -> str:
    if row["win_rate"] is None:
        return "-"
    return f"{row['win_rate']:.1%} [{row['win_rate_low']:.1%}, {row['win_rate_high']:.1%}]"
