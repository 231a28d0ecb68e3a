# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`report.html` of an evaluation: alarms, tables, win rates, distributions, pictures side by side, settings; one file."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from ..core.files import atomic_write_bytes
from ..figures.grid import image_grid
from ..figures.page import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    Panel,
    chart_images,
    draw_histograms,
    html_table,
    image_tag,
    render_page,
)
from .results import EvaluationResults, ExampleRow
from .tables import PRINTED_TIMES, Rows, Table, all_tables, check_table, metric_label, unchecked_notes


MODEL_STYLES = [(BLUE, "o", "-"), (ORANGE, "s", (0, (4, 1.5))), (GREEN, "^", (0, (1, 1))), (PINK, "D", "-.")]


def _style(index: int) -> tuple[Any, ...]:
    return MODEL_STYLES[index % len(MODEL_STYLES)]


def win_rate_panel(rows: Rows, axes: Axes) -> None:
    """Win rates with their intervals, one line per metric, one mark per model; the base is the line at 50 % (Figure 5)."""
    won = [row for row in rows if row["win_rate"] is not None]
    metrics, models = (list(dict.fromkeys(row[key] for row in won)) for key in ("metric", "model"))
    axes.axvline(50, color=GRAY, linewidth=1)
    for row in won:
        index = models.index(row["model"])
        color, marker, _ = _style(index)
        place = metrics.index(row["metric"]) + 0.5 * ((index + 0.5) / len(models) - 0.5)
        rate, low, high = (100 * row[key] for key in ("win_rate", "win_rate_low", "win_rate_high"))
        label = row["model"] if row["metric"] == metrics[0] else None
        spread = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
        axes.errorbar(rate, place, xerr=spread, color=color, marker=marker, markersize=5, capsize=2, label=label)
    axes.set_yticks(range(len(metrics)), metrics)
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("win rate against the base (%)", fontsize=9)


def distribution_panel(scores: Mapping[str, np.ndarray], metric: str, axes: Axes) -> None:
    """A metric's histogram of every model; the base, which comes first, is filled."""
    base, *tuned = scores
    styles: dict[str, dict[str, Any]] = {base: {"color": GRAY, "alpha": 0.45, "histtype": "stepfilled"}}
    for index, model in enumerate(tuned):
        color, _, line = _style(index)
        styles[model] = {"color": color, "linestyle": line, "histtype": "step", "linewidth": 1.6}
    scaled = {model: PRINTED_TIMES.get(metric, 1) * values for model, values in scores.items()}
    draw_histograms(axes, scaled, styles, metric_label(metric), "images (%)")


def _html(table: Table) -> str:
    """A table with the best value bold and the second best underlined."""
    tags = {1: "b", 2: "u"}
    rows = [[line, *((cell.text, tags.get(cell.rank, "")) for cell in cells)] for line, cells in table.lines]
    return html_table((table.title, *table.header), rows)


def _alarms(checks: Rows) -> str:
    fired = [check for check in checks if check["fired"]]
    items = "".join(f'<li class="alarm">{html.escape(check["message"])}</li>' for check in fired)
    made = sum(check["value"] is not None for check in checks)
    head = f"<ul>{items}</ul>" if fired else f"<p>No alarm in {made} checks.</p>"

    about = "From the base's value to the tuned model's. The limits leave room for honest improvement."
    table = re.sub(r"<td>([^<]*ALARM)</td>", r'<td class="alarm">\1</td>', _html(check_table(checks)))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in unchecked_notes(checks))
    return f'{head}<p class="muted">{about}</p>{table}' + (f'<ul class="muted">{notes}</ul>' if notes else "")


def _score(metric: str, value: float, best: bool) -> str:
    text = f"{value * PRINTED_TIMES.get(metric, 1):.4g}" if np.isfinite(value) else "–"
    return f"<b>{text}</b>" if best else text


def _side_by_side(rows: Sequence[ExampleRow]) -> str:
    """One prompt under the other, its models beside each other; the best score of a metric is bold."""
    parts = []
    for row in rows:
        best = {
            metric: max((by[metric] for by in row.scores.values() if np.isfinite(by[metric])), default=None)
            for metric in next(iter(row.scores.values()))
        }
        figures = []
        for model, image in row.images.items():
            numbers = "".join(
                f"<dt>{html.escape(metric_label(metric))}</dt><dd>{_score(metric, value, value == best[metric])}</dd>"
                for metric, value in row.scores[model].items()
            )
            about = f"{model}: {row.prompt}"
            picture = '<div class="muted">no valid image</div>' if image is None else image_tag(image, about)
            figures.append(
                f"<figure>{picture}<figcaption><b>{html.escape(model)}</b><dl>{numbers}</dl></figcaption></figure>"
            )
        parts.append(f'<h3>{html.escape(row.prompt)}</h3><div class="row">{"".join(figures)}</div>')
    return "".join(parts)


def draw_comparison(rows: Sequence[ExampleRow]) -> Image.Image:
    """The same as one picture: prompts as rows, models as columns, raw scores under each image."""
    models = list(rows[0].images)
    captions = ["\n".join(f"{m} {v:.4g}" for m, v in row.scores[name].items()) for row in rows for name in models]
    return image_grid(
        [row.images[name] for row in rows for name in models],
        columns=len(models),
        captions=captions,
        column_titles=models,
        row_titles=[row.prompt for row in rows],
        caption_lines=captions[0].count("\n") + 1,
    )


_STYLE = """<style>.alarm { color: #B00020; font-weight: 600; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(8rem, 12rem); gap: .8rem; overflow-x: auto; }
.row dl { grid-template-columns: 1fr auto; gap: 0 .4rem; font-size: .78rem; } dt { overflow-wrap: normal; } pre { overflow-x: auto; font-size: .8rem; }
.wide { margin: 0 0 1.6rem; } td { white-space: nowrap; } th { min-width: 3.5rem; } th:first-child { min-width: 5.5rem; }</style>"""


def write_evaluation_report(folder: str | Path, results: EvaluationResults) -> None:
    """Writes `report.html`, which needs no other file.

    Args:
        folder (`str | Path`): where it goes; made if missing.
        results (`EvaluationResults`): its settings are shown as JSON, their `notes` on top.
    """
    settings, rows, checks, scores = results.settings, results.rows, results.checks, results.scores
    tables = all_tables(rows)
    by_category = [table for table in tables if " by category" in table.title]
    wins, histograms = "", ""
    for name, by_model in scores.items():
        own = [row for row in rows if row.get("prompts") == name and row.get("category") is None]
        heading = f"<h3>{html.escape(name)}</h3>" if len(scores) > 1 else ""
        if any(row["win_rate"] is not None for row in own):
            charts = chart_images([partial(win_rate_panel, own)], "Win rates; the table above holds the numbers")
            wins += f'{heading}<div class="charts">{charts}</div>'
        panels: list[Panel] = [
            partial(distribution_panel, {model: by[metric] for model, by in by_model.items()}, metric)
            for metric in next(iter(by_model.values()))
            if any(np.isfinite(by[metric]).any() for by in by_model.values())
        ]
        about = "Histogram of a metric; the tables above hold its mean and median"
        histograms += f'{heading}<div class="charts">{chart_images(panels, about)}</div>'
    pictures = "".join(
        (f"<h3>{html.escape(name)}</h3>" if len(results.examples) > 1 else "") + _side_by_side(found)
        for name, found in results.examples.items()
    )
    notes = "".join(f'<p class="muted">{html.escape(note)}</p>' for note in settings.get("notes", ()))
    sections = {
        "Alarms": _alarms(checks) if checks else "",
        "Scores": notes + "".join(_html(table) for table in tables if table not in by_category),
        "Win rates": wins,
        "Distributions": histograms,
        "By category": "".join(map(_html, by_category)),
        "Side by side": '<p class="muted">Same prompt, same noise.</p>' + pictures,
        "Settings": f"{_STYLE}<pre>{html.escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre>",
    }
    models = list(settings.get("models", {}))
    sizes = ", ".join(
        f"{name} ({len(next(iter(next(iter(s.values())).values())))} prompts)" for name, s in scores.items()
    )
    summary = f"{', '.join(models)} on {sizes}; best value bold, second best underlined."
    page = render_page(
        "CRAFT evaluation", summary, {heading: content for heading, content in sections.items() if content}
    )
    atomic_write_bytes(Path(folder) / "report.html", page.encode())
