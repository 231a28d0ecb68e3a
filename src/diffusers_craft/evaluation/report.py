# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`report.html` of an evaluation: alarms, tables, win rates, distributions, pictures side by side, settings."""

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
from ..core.printed import PRINTED_TIMES, metric_label, printed_score
from ..figures import page
from ..figures.grid import image_grid
from .results import EvaluationResults, ExampleRow
from .tables import Rows, Table, all_tables, check_table, distinct


COLORS, MARKERS = (page.BLUE, page.ORANGE, page.GREEN, page.PINK), "os^D"  # of tuned models in turn
LINES = ("-", (0, (4, 1.5)), (0, (1, 1)), "-.")
LARGE, MANY = 768, 60  # pixels at which pictures are embedded, unless there are many: a phone opens the page, too


def win_rate_panel(rows: Rows, axes: Axes) -> None:
    """Win rates with intervals, one line per metric, one mark per model; the base is the line at 50 % (Figure 5)."""
    won = [row for row in rows if row["win_rate"] is not None]
    metrics, models = distinct(won, "metric"), distinct(won, "model")
    axes.axvline(50, color=page.GRAY, linewidth=1)
    for row in won:
        index = models.index(row["model"])
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        place = metrics.index(row["metric"]) + 0.5 * ((index + 0.5) / len(models) - 0.5)
        rate, low, high = (100 * row[key] for key in ("win_rate", "win_rate_low", "win_rate_high"))
        label = row["model"] if row["metric"] == metrics[0] else None
        spread = [[max(0.0, rate - low)], [max(0.0, high - rate)]]
        axes.errorbar(rate, place, xerr=spread, color=color, marker=marker, markersize=5, capsize=2, label=label)
    axes.set_yticks(range(len(metrics)), metrics)
    axes.set(xlim=(0, 100), ylim=(len(metrics) - 0.5, -0.5))
    axes.set_xlabel("win rate against the base (%)", fontsize=9)


def distribution_panel(scores: Mapping[str, np.ndarray], metric: str, axes: Axes) -> None:
    """A metric's histogram of every model; the base, which comes first, is filled."""
    base, *tuned = scores
    styles: dict[str, dict[str, Any]] = {base: {"color": page.GRAY, "alpha": 0.45, "histtype": "stepfilled"}}
    for model, color, line in zip(tuned, cycle(COLORS), cycle(LINES)):
        styles[model] = {"color": color, "linestyle": line, "histtype": "step", "linewidth": 1.6}
    scaled = {model: PRINTED_TIMES.get(metric, 1) * values for model, values in scores.items()}
    page.draw_histograms(axes, scaled, styles, metric_label(metric), "images (%)")


def _html(table: Table) -> str:
    """A table with the best value bold and the second best underlined."""
    rows = [[line, *((cell.text, ("", "b", "u")[cell.rank]) for cell in cells)] for line, cells in table.lines]
    return page.html_table(table.header, rows)


def _alarms(results: EvaluationResults) -> str:
    table, unchecked = check_table(results.checks)
    items = "".join(f'<li class="alarm">{html.escape(check["message"])}</li>' for check in results.alarms)
    made = sum(check["value"] is not None for check in results.checks)
    head = f"<ul>{items}</ul>" if items else f"<p>No alarm in {made} checks.</p>"
    about = "From the base's value to the tuned model's. The limits leave room for honest improvement."
    marked = re.sub(r"<td>([^<]*ALARM)</td>", r'<td class="alarm">\1</td>', _html(table))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in unchecked)
    return f'{head}<p class="muted">{about}</p>{marked}' + (f'<ul class="muted">{notes}</ul>' if notes else "")


def _side_by_side(rows: Sequence[ExampleRow], size: int) -> str:
    """One prompt under the other, its models beside each other; the best score of a metric is bold."""
    parts = []
    for row in rows:
        best = {
            metric: max((by[metric] for by in row.scores.values() if np.isfinite(by[metric])), default=None)
            for metric in next(iter(row.scores.values()))
        }
        figures = []
        for model, image in row.images.items():
            numbers = ""
            for metric, value in row.scores[model].items():
                text = printed_score(metric, value)
                text = f"<b>{text}</b>" if value == best[metric] else text
                numbers += f"<dt>{html.escape(metric_label(metric))}</dt><dd>{text}</dd>"
            missing = '<div class="muted">no valid image</div>'
            picture = missing if image is None else page.image_tag(image, f"{model}: {row.prompt}", size)
            caption = f"<figcaption><b>{html.escape(model)}</b><dl>{numbers}</dl></figcaption>"
            figures.append(f"<figure>{picture}{caption}</figure>")
        parts.append(f'{page.clamped(row.prompt, "h3")}<div class="row">{"".join(figures)}</div>')
    return "".join(parts)


def _charts(panels: Sequence[page.Panel], about: str) -> str:
    return f'<div class="charts">{page.chart_images(panels, about)}</div>'


def _by_set(content: Mapping[str, str]) -> str:
    """HTML of prompt sets, each under its name if there are several."""
    heads = {name: f"<h3>{html.escape(name)}</h3>" if len(content) > 1 else "" for name in content}
    return "".join(heads[name] + part for name, part in content.items() if part)


def draw_comparison(rows: Sequence[ExampleRow]) -> Image.Image:
    """The same as one picture: prompts as rows, models as columns, scores under each image as the report has them."""
    models = list(rows[0].images)
    scores = [row.scores[name] for row in rows for name in models]
    captions = ["\n".join(f"{metric_label(m)} {printed_score(m, v)}" for m, v in one.items()) for one in scores]
    pictures, prompts = [row.images[name] for row in rows for name in models], [row.prompt for row in rows]
    return image_grid(pictures, len(models), captions, models, prompts, caption_lines=captions[0].count("\n") + 1)


_STYLE = """<style>.alarm { color: #B00020; font-weight: 600; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(8rem, 22rem); gap: .8rem; overflow-x: auto; }
.row dl { grid-template-columns: 1fr auto; gap: 0 .4rem; font-size: .78rem; } dt { overflow-wrap: normal; } pre { overflow-x: auto; font-size: .8rem; }
details { margin: 1.6rem 0 .4rem; } .wide { margin: 0 0 1.6rem; } td { white-space: nowrap; } th { min-width: 3.5rem; } th:first-child { min-width: 5.5rem; }</style>"""


def write_evaluation_report(folder: str | Path, results: EvaluationResults) -> None:
    """Writes `report.html`, which needs no other file; settings are shown as JSON, their `notes` above the scores."""
    settings, scores = results.settings, results.scores
    whole = [row for row in results.rows if row.get("category") is None]
    wins, histograms = dict.fromkeys(scores, ""), {}
    for name, by_model in scores.items():
        if won := [row for row in whole if row.get("prompts") == name and row["win_rate"] is not None]:
            wins[name] = _charts([partial(win_rate_panel, won)], "Win rates; the table above holds the numbers")
        panels = [
            partial(distribution_panel, {model: by[metric] for model, by in by_model.items()}, metric)
            for metric in next(iter(by_model.values()))
            if any(np.isfinite(by[metric]).any() for by in by_model.values())
        ]
        histograms[name] = _charts(panels, "Histogram of a metric; the tables above hold its mean and median")
    tables = all_tables(results.rows)
    by_category = [table for table in tables if " by category" in table.title]
    notes = "".join(f'<p class="muted">{html.escape(note)}</p>' for note in settings.get("notes", ()))
    number = sum(len(row.images) for rows in results.examples.values() for row in rows)
    size = LARGE if number <= MANY else page.EMBEDDED
    pictures = _by_set({name: _side_by_side(found, size) for name, found in results.examples.items()})
    sections = {
        "Alarms": _alarms(results) if results.checks else "",
        "Scores": notes + "".join(_html(table) for table in tables if table not in by_category),
        "Win rates": _by_set(wins),
        "Distributions": _by_set(histograms),
        "By category": "".join(map(_html, by_category)),
        "Side by side": '<p class="muted">Same prompt, same noise. A click enlarges.</p>' + pictures,
        "Settings": f"{_STYLE}<pre>{html.escape(json.dumps(settings, indent=2, ensure_ascii=False))}</pre>",
    }
    counts = {name: len(next(iter(next(iter(by_model.values())).values()))) for name, by_model in scores.items()}
    sizes = ", ".join(f"{name} ({count} prompts)" for name, count in counts.items())
    summary = f"{', '.join(settings.get('models', {}))} on {sizes}; best value bold, second best underlined."
    atomic_write_bytes(Path(folder) / "report.html", page.render_page("CRAFT evaluation", summary, sections).encode())
