# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation found: rows, checks, scores and example pictures; as text and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.files import atomic_write_bytes, atomic_write_json
from .tables import Rows, format_checks, format_csv, format_latex, format_table, markdown_text


RESULTS_FORMAT = 1  # of results.json
Scores = Mapping[str, Mapping[str, np.ndarray]]  # model -> metric -> (n, k)


@dataclass(frozen=True)
class ExampleRow:
    """One prompt with an image and the scores of every model."""

    prompt: str
    images: Mapping[str, Image.Image | None]  # by model; `None` where it is not valid
    scores: Mapping[str, Mapping[str, float]]  # by model and metric, raw


@dataclass(frozen=True)
class EvaluationResults:
    """All that an evaluation found; prompt sets and models in the order in which they were given, the base first.

    Args:
        settings (`Mapping[str, Any]`): all that the numbers depend on: models, prompts, sampler, seed, scorers; `notes`.
        rows (`Sequence[Mapping[str, Any]]`): what `summarize` returns, and a row per model and metric of a set of images,
            each with the prompt set's name as `prompts`.
        checks (`Sequence[Mapping[str, Any]]`): what `run_checks` returns, with `prompts`; all, alarm or not.
        scores (`Mapping`): prompt set to model to metric to (n, k) raw scores of n prompts with k images each.
        examples (`Mapping[str, Sequence[ExampleRow]]`): prompt set to its first prompts with their pictures.
    """

    settings: Mapping[str, Any]
    rows: Rows
    checks: Rows = ()
    scores: Mapping[str, Scores] = field(default_factory=dict)
    examples: Mapping[str, Sequence[ExampleRow]] = field(default_factory=dict)

    @property
    def alarms(self) -> list[Mapping[str, Any]]:
        """The checks that gave an alarm."""
        return [check for check in self.checks if check["fired"]]

    @property
    def text(self) -> str:
        """Tables, checks and alarms for a terminal."""
        parts = [format_table(self.rows, marks=False), *([format_checks(self.checks)] if self.checks else [])]
        return "\n".join([*parts, *(f"Alarm: {alarm['message']}" for alarm in self.alarms)])

    def write(self, folder: str | Path) -> None:
        """Writes what `write_tables` does, and `report.html` and grids of pictures if there are any."""
        folder = Path(folder)
        self.write_tables(folder)
        if self.examples:
            from .report import draw_comparison, write_evaluation_report  # which needs matplotlib

            write_evaluation_report(folder, self)
            for name, rows in self.examples.items():
                draw_comparison(rows).save(folder / ("grid.png" if len(self.examples) == 1 else f"grid_{name}.png"))

    def write_tables(self, folder: str | Path) -> None:
        """Writes `results.json` (`format`, `settings`, `rows`, `alarms`, `checks`; strict JSON), `table.md`, `.csv`, `.tex`."""
        content = {"format": RESULTS_FORMAT, "settings": dict(self.settings), "rows": list(self.rows)}
        content |= {"alarms": self.alarms, "checks": list(self.checks)}
        atomic_write_json(Path(folder) / "results.json", content)
        lines = [*self.settings.get("notes", ()), *(f"Alarm: {alarm['message']}" for alarm in self.alarms)]
        markdown = (
            format_table(self.rows) + "".join(f"\n- {markdown_text(line)}" for line in lines) + "\n" * bool(lines)
        )
        if self.checks:
            markdown += "\n" + format_checks(self.checks)
        for kind, text in {"md": markdown, "csv": format_csv(self.rows), "tex": format_latex(self.rows)}.items():
            atomic_write_bytes(Path(folder) / f"table.{kind}", text.encode())
