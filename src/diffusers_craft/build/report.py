# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a build leaves for the eye: funnel, reward histograms and a gallery, as PNG and one self-contained HTML page."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..core.files import atomic_write_bytes
from ..core.printed import PRINTED_TIMES, metric_label
from ..errors import UserError
from ..figures import page
from ..figures.grid import image_grid
from ..hub.dataset import recipe
from ..selection.pool import ScoredPool, funnel_rows
from ..tiny.world import parse_caption


SET_STYLES = {
    "original prompts": {"histtype": "stepfilled", "color": page.GRAY, "alpha": 0.45},
    "refined prompts": {"histtype": "step", "color": page.BLUE, "linewidth": 1.6},
    "selected": {"histtype": "step", "color": page.ORANGE, "linewidth": 1.6, "linestyle": (0, (4, 1.5))},
}
ROUNDING = 1e-9  # what a mean of numbers that cancel out is smaller than, relative to them
MAX_KINDS = 50  # more, as of free tags, are no kinds
MAX_GALLERY = 100  # images shown; a page with thousands would not open on a phone


def funnel_panels(funnel: Mapping[str, int | float]) -> list[page.Panel]:
    """Two bar charts, images and prompts, each from what came in to what was selected.

    The shares of the last two bars are of what could be kept: images of original prompts are the filter's threshold.
    """
    images = {"candidates": "candidates", "valid": "valid", "trainable": "can be kept"}
    images |= {"kept_candidates": "kept by filter", "selected": "selected"}
    prompts = {"prompts": "prompts", "groups": "can be kept"}
    prompts |= {"kept_groups": "kept by filter", "selected_prompts": "selected"}

    def draw(axes: Axes, unit: str, labels: Mapping[str, str]) -> None:
        counts = [int(funnel.get(key, 0)) for key in labels]
        colors = [page.GRAY] * (len(counts) - 2) + [page.BLUE, page.ORANGE]
        wholes = [counts[0]] * (len(counts) - 2) + [counts[-3]] * 2
        axes.barh(list(labels.values()), counts, color=colors, height=0.7)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*counts, 1]) * 1.45)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for y, count in enumerate(counts):
            share = f" ({count / max(wholes[y], 1):.1%})" if y else ""
            axes.text(count, y, f"  {count:,}{share}", va="center", fontsize=9)
        axes.set_xlabel(f"{unit}\n(kept and selected: % of what can be kept)", fontsize=9)

    return [partial(draw, unit="images", labels=images), partial(draw, unit="prompts", labels=prompts)]


def reward_sets(values: np.ndarray, variants: np.ndarray, selected: np.ndarray) -> dict[str, np.ndarray]:
    """The sets a report compares: name to values of any quantity (n,), by variant and by the selected rows (k,)."""
    return dict(zip(SET_STYLES, (values[variants == 0], values[variants > 0], values[selected])))


def _printed_rewards(pool: ScoredPool) -> dict[str, np.ndarray]:
    """Each reward under its label, in the unit of the papers."""
    return {metric_label(name): PRINTED_TIMES.get(name, 1) * values for name, values in pool.rewards.items()}


def reward_panels(pool: ScoredPool) -> list[page.Panel]:
    """Histograms of each reward as printed, of the composite reward and the advantages."""
    columns = {f"{name} (not normalised)": values for name, values in _printed_rewards(pool).items()}
    columns["composite reward (normalised, weighted)"] = pool.composite
    series = {label: reward_sets(values, pool.variants, pool.selected) for label, values in columns.items()}
    advantages = reward_sets(pool.advantages, pool.variants, pool.selected)
    del advantages["original prompts"]  # they have none
    series["advantage (standard deviations of its group)"] = advantages
    return [
        partial(page.draw_histograms, series=sets, styles=SET_STYLES, label=label, unit="images of the set (%)")
        for label, sets in series.items()
    ]


def _mean(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "–"
    mean = values.mean()
    return f"{0 if abs(mean) < ROUNDING * abs(values).max() else mean:.4g}"


def _card(image: Image.Image, prompt: str, refined: str, values: Mapping[str, float]) -> str:
    numbers = "".join(f"<dt>{html.escape(name)}</dt><dd>{value:.3f}</dd>" for name, value in values.items())
    made_by = f'<div class="muted">{page.clamped(refined)}</div>' if refined != prompt else ""
    caption = f"{page.clamped(prompt)}{made_by}<dl>{numbers}</dl>"
    return f"<figure>{page.image_tag(image, prompt)}<figcaption>{caption}</figcaption></figure>"


def _settings(record: Mapping[str, Any], pool: ScoredPool) -> list[tuple[str, str]]:
    """What the build is of, by name."""
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in pool.weights.items())
    composite = f"{weights}; normalisation {record['options']['reward_normalization']}"
    rows = {**recipe(record), "composite reward": composite, "date": f"{datetime.now(timezone.utc):%Y-%m-%d}"}
    return [(name, str(value)) for name, value in rows.items()]


def kind_rows(
    prompts: Sequence[str], pool: ScoredPool, categories: Sequence[str | None] | None = None
) -> list[tuple[str, str, str]]:
    """Kind of prompt and its share of all prompts and of the selected images; none where prompts have no kinds.

    Kinds are the `categories`, or the tasks of tiny-world captions. Rewards compare pictures of one prompt; a selection
    over all prompts prefers kinds that score high.
    """
    try:
        given = any(categories or ())
        kinds = [kind or "–" for kind in categories] if given else [parse_caption(prompt).task for prompt in prompts]
    except UserError:
        return []
    if len(set(kinds)) > MAX_KINDS:
        return []
    selected = Counter(kinds[group] for group in pool.groups[pool.selected])
    shares = [
        (kind, count / len(kinds), selected[kind] / max(selected.total(), 1)) for kind, count in Counter(kinds).items()
    ]
    return [(kind, f"{before:.1%}", f"{after:.1%}") for kind, before, after in sorted(shares)]


def write_build_report(
    folder: Path,
    record: Mapping[str, Any],
    pool: ScoredPool,
    rows: Mapping,
    all_prompts: Sequence[str],
    categories: Sequence[str | None] | None = None,
) -> None:
    """Writes `funnel.png`, `rewards.png`, `gallery.png` and `report.html`, which needs no other file.

    `record` is what `recipe` reads, `rows` are `image`, `prompt` and `refined_prompt` of the selected rows; no more than
    `MAX_GALLERY` are read.
    """
    funnel = record["funnel"]
    selected, shown = pool.selected, min(len(pool.selected), MAX_GALLERY)
    pictures, prompts, refined = (
        [column[i] for i in range(shown)] for column in (rows["image"], rows["prompt"], rows["refined_prompt"])
    )
    columns = {**_printed_rewards(pool), "composite": pool.composite, "advantage": pool.advantages}
    cards = [
        _card(pictures[i], prompts[i], refined[i], {name: v[selected[i]] for name, v in columns.items()})
        for i in range(shown)
    ]
    captions = [f"reward {pool.composite[selected[i]]:+.2f}\n{prompts[i]}" for i in range(shown)]
    funnel_charts, reward_charts = funnel_panels(funnel), reward_panels(pool)
    files = {
        "funnel.png": page.png_bytes(page.draw_figure(funnel_charts, 2)),
        "rewards.png": page.png_bytes(page.draw_figure(reward_charts, 3)),
        "gallery.png": page.png_bytes(image_grid(pictures, columns=10, captions=captions, caption_lines=4)),
    }
    means = [(name, *map(_mean, reward_sets(v, pool.variants, selected).values())) for name, v in columns.items()]
    means[-1] = (means[-1][0], "–", *means[-1][2:])  # images of original prompts have no advantage
    funnel_images = page.chart_images(funnel_charts, "Bar chart of the funnel; the table below holds its numbers")
    reward_images = page.chart_images(reward_charts, "Histogram of a reward; the table above holds its means")
    funnel_table = page.html_table(("stage", "count"), funnel_rows(funnel))
    means_table = page.html_table(("reward", "original prompts", "refined prompts", "selected"), means)
    hint = "Every image is scored against its original prompt. Means of each set:"
    kinds = kind_rows(all_prompts, pool, categories)
    kinds_table = page.html_table(("kind of prompt", "of all prompts", "of the selected"), kinds) if kinds else ""
    order = f"{shown:,} of {len(selected):,} shown, in the order of selection. Grey text: the refined prompt."
    sections = {
        "What this is": page.html_table(("setting", "value"), _settings(record, pool), "texts"),
        "Funnel": f'<div class="charts">{funnel_images}</div>{funnel_table}',
        "Rewards": f'<p class="muted">{hint}</p>{means_table}<div class="charts">{reward_images}</div>',
        "Kinds of prompts": kinds_table,
        "Selected images": f'<p class="muted">{order}</p><div class="gallery">{"".join(cards)}</div>',
    }
    summary = f"{len(selected):,} of {len(pool.composite):,} images selected."
    base = Path(record["options"]["pretrained_model_name_or_path"].rsplit(" (weights ", 1)[0]).name
    report = page.render_page(f"CRAFT dataset: {base}", summary, sections)
    for name, data in {**files, "report.html": report.encode()}.items():
        atomic_write_bytes(folder / name, data)
