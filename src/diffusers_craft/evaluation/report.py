# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`report.html` of an evaluation: alarms, tables, win rates, distributions, pictures side by side, settings; one file."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from ..core.files import atomic_write_bytes
from ..figures import page
from ..figures.grid import image_grid
from .results import EvaluationResults, ExampleRow
from .tables import (
    PRINTED_TIMES,
    Rows,
    Table,
    all_tables,
    check_table,
    distinct,
    metric_label,
    printed_score,
    unchecked_notes,
)


MODEL_STYLES = [
    (page.BLUE, "o", "-"),
    (page.ORANGE, "s", (0, (4, 1.5))),
    (page.GREEN, "^", (0, (1, 1))),
    (page.PINK, "D", "-."),
]


def win_rate_panel(rows: Rows, axes: Axes) -> None:
    """Win rates with their intervals, one line per metric, one mark per model; the base is the line at 50 % (Figure 5)."""
    won = [row for row in rows if row["win_rate"] is not None]
    metrics, models = distinct(won, "metric"), distinct(won, "model")
    axes.axvline(50, color=page.GRAY, linewidth=1)
    for row in won:
        index = models.index(row["model"])
        color, marker, _ = MODEL_STYLES[index % len(MODEL_STYLES)]
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
    styles: dict[str, dict[str, Any]] = {base: {"color": page.GRAY, "alpha": 0.45, "histtype": "stepfilled"}}
    for model, (color, _, line) in zip(tuned, cycle(MODEL_STYLES)):
        styles[model] = {"color": color, "linestyle": line, "histtype": "step", "linewidth": 1.6}
    scaled = {model: PRINTED_TIMES.get(metric, 1) * values for model, values in scores.items()}
    page.draw_histograms(axes, scaled, styles, metric_label(metric), "images (%)")


def _html(table: Table) -> str:
    """A table with the best value bold and the second best underlined."""
    rows = [[line, *((cell.text, ("", "b", "u")[cell.rank]) for cell in cells)] for line, cells in table.lines]
    return page.html_table(table.header, rows)


def _alarms(results: EvaluationResults) -> str:
    items = "".join(f'<li class="alarm">{html.escape(check["message"])}</li>' for check in results.alarms)
    made = sum(check["value"] is not None for check in results.checks)
    head = f"<ul>{items}</ul>" if items else f"<p>No alarm in {made} checks.</p>"
    about = "From the base's value to the tuned model's. The limits leave room for honest improvement."
    table = re.sub(r"<td>([^<]*ALARM)</td>", r'<td class="alarm">\1</td>', _html(check_table(results.checks)))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in unchecked_notes(results.checks))
    return f'{head}<p class="muted">{about}</p>{table}' + (f'<ul class="muted">{notes}</ul>' if notes else "")


def _charts(panels: Sequence[page.Panel], about: str) -> str:
    return f'<div class="charts">{page.chart_images(panels, about)}</div>'


def _win_rates(rows: Rows) -> str:
    if all(row["win_rate"] is None for row in rows):
        return ""
    return _charts([partial(win_rate_panel, rows)], "Win rates; the table above holds the numbers")


def _distributions(scores: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    panels = [
        partial(distribution_panel, {model: by[metric] for model, by in scores.items()}, metric)
        for metric in next(iter(scores.values()))
        if any(np.isfinite(by[metric]).any() for by in scores.values())
    ]
    return _charts(panels, "Histogram of a metric; the tables above hold its mean and median")


def _side_by_side(rows: Sequence[ExampleRow]) -> str:
    """One prompt under the other, its models beside each other; the best score of a metric is bold."""
    parts = []
    for row in rows:
        best: dict[str, float] = {}
        for metric, value in (pair for by in row.scores.values() for pair in by.items() if np.isfinite(pair[1])):
            best[metric] = max(value, best.get(metric, value))
        figures = []
        for model, image in row.images.items():
            numbers = ""
            for metric, value in row.scores[model].items():
                text = printed_score(metric, value) if np.isfinite(value) else "–"
                text = f"<b>{text}</b>" if value == best.get(metric) else text
                numbers += f"<dt>{html.escape(metric_label(metric))}</dt><dd>{text}</dd>"
            missing = '<div class="muted">no valid image</div>'
            picture = missing if image is None else page.image_tag(image, f"{model}: {row.prompt}")
            caption = f"<figcaption><b>{html.escape(model)}</b><dl>{numbers}</dl></figcaption>"
            figures.append(f"<figure>{picture}{caption}</figure>")
        parts.append(f'<h3>{html.escape(row.prompt)}</h3><div class="row">{"".join(figures)}</div>')
    return "".join(parts)


def _by_set(content: Mapping[str, str]) -> str:
    """HTML of prompt sets, each under its name if there are several."""
    heads = {name: f"<h3>{html.escape(name)}</h3>" if len(content) > 1 else "" for name in content}
    return "".join(heads[name] + part for name, part in content.items() if part)


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
    """Writes `report.html`, which needs no other file; settings are shown as JSON, their `notes` above the scores."""
    settings, scores = results.settings, results.scores
    whole = [row for row in results.rows if row.get("category") is None]
    tables = all_tables(results.rows)
    by_category = [table for table in tables if " by category" in table.title]
    notes = "".join(f'<p class="muted">{html.escape(note)}</p>' for note in settings.get("notes", ()))
    pictures = _by_set({name: _side_by_side(found) for name, found in results.examples.items()})
    sections = {
        "Alarms": _alarms(results) if results.checks else "",
        "Scores": notes + "".join(_html(table) for table in tables if table not in by_category),
        "Win rates": _by_set({name: _win_rates([r for r in whole if r.get("prompts") == name]) for name in scores}),
        "Distributions": _by_set({name: _distributions(by_model) for name, by_model in scores.items()}),
        "By category": "".join(map(_html, by_category)),
        "Side by side": '<p class="muted">Same prompt, same noise.</p>' + pictures,
        "Settings": f"{_STYLE}<pre>{html.escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre>",
    }
    counts = {name: len(next(iter(next(iter(by_model.values())).values()))) for name, by_model in scores.items()}
    sizes = ", ".join(f"{name} ({count} prompts)" for name, count in counts.items())
    summary = f"{', '.join(settings.get('models', {}))} on {sizes}; best value bold, second best underlined."
    atomic_write_bytes(Path(folder) / "report.html", page.render_page("CRAFT evaluation", summary, sections).encode())
