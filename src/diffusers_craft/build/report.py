# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a build leaves for the eye: funnel, reward histograms and a gallery, as PNG and one self-contained HTML page."""

import html
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..core.files import atomic_write_bytes
from ..figures import page
from ..figures.grid import image_grid
from ..selection.pool import ScoredPool, funnel_rows


SET_STYLES = {
    "original prompts": {"histtype": "stepfilled", "color": page.GRAY, "alpha": 0.45},
    "refined prompts": {"histtype": "step", "color": page.BLUE, "linewidth": 1.6},
    "selected": {"histtype": "step", "color": page.ORANGE, "linewidth": 1.6, "linestyle": (0, (4, 1.5))},
}
MAX_GALLERY = 100  # images shown; a page with thousands would not open on a phone


def funnel_panels(funnel: Mapping[str, int | float]) -> list[page.Panel]:
    """Two bar charts, images and prompts, each from what came in to what was selected."""
    images = {"candidates": "candidates", "valid": "valid"}
    images |= {"kept_candidates": "kept by filter", "selected": "selected"}
    prompts = {"prompts": "prompts", "kept_groups": "kept by filter", "selected_prompts": "selected"}

    def draw(axes: Axes, unit: str, labels: Mapping[str, str]) -> None:
        counts = [int(funnel.get(key, 0)) for key in labels]
        colors = [page.GRAY] * (len(counts) - 2) + [page.BLUE, page.ORANGE]
        axes.barh(list(labels.values()), counts, color=colors, height=0.7)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*counts, 1]) * 1.45)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for y, count in enumerate(counts):
            share = f" ({count / max(counts[0], 1):.1%})" if y else ""
            axes.text(count, y, f"  {count:,}{share}", va="center", fontsize=9)
        axes.set_xlabel(f"number of {unit}", fontsize=9)

    return [partial(draw, unit="images", labels=images), partial(draw, unit="prompts", labels=prompts)]


def reward_sets(values: np.ndarray, variants: np.ndarray, selected: np.ndarray) -> dict[str, np.ndarray]:
    """The sets a report compares: name to values of any quantity (n,), by variant and by the selected rows (k,)."""
    return dict(zip(SET_STYLES, (values[variants == 0], values[variants > 0], values[selected])))


def reward_panels(pool: ScoredPool) -> list[page.Panel]:
    """Histograms of each raw reward, of the composite reward and the advantages."""
    columns = {f"{name} (raw score)": values for name, values in pool.rewards.items()}
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
    return f"{values.mean():.4g}" if len(values) else "–"


def _card(image: Image.Image, prompt: str, refined: str, values: Mapping[str, float]) -> str:
    numbers = "".join(f"<dt>{html.escape(name)}</dt><dd>{value:.3f}</dd>" for name, value in values.items())
    made_by = f'<div class="muted">{page.clamped(refined)}</div>' if refined != prompt else ""
    caption = f"{page.clamped(prompt)}{made_by}<dl>{numbers}</dl>"
    return f"<figure>{page.image_tag(image, prompt)}<figcaption>{caption}</figcaption></figure>"


def write_build_report(folder: Path, funnel: Mapping[str, int | float], pool: ScoredPool, rows: Mapping) -> None:
    """Writes `funnel.png`, `rewards.png`, `gallery.png` and `report.html`, which needs no other file.

    `rows` are `image`, `prompt` and `refined_prompt` of the selected rows; no more than `MAX_GALLERY` are read.
    """
    selected, shown = pool.selected, min(len(pool.selected), MAX_GALLERY)
    pictures, prompts, refined = (
        [column[i] for i in range(shown)] for column in (rows["image"], rows["prompt"], rows["refined_prompt"])
    )
    columns = {**pool.rewards, "composite": pool.composite, "advantage": pool.advantages}
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
    order = f"{shown:,} of {len(selected):,} shown, in the order of selection. Grey text: the refined prompt."
    sections = {
        "Funnel": f'<div class="charts">{funnel_images}</div>{funnel_table}',
        "Rewards": f'<p class="muted">{hint}</p>{means_table}<div class="charts">{reward_images}</div>',
        "Selected images": f'<p class="muted">{order}</p><div class="gallery">{"".join(cards)}</div>',
    }
    summary = f"{len(selected):,} of {len(pool.composite):,} images selected."
    report = page.render_page("CRAFT dataset", summary, sections)
    for name, data in {**files, "report.html": report.encode()}.items():
        atomic_write_bytes(folder / name, data)
