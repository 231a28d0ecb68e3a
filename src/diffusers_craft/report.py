# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a build leaves for the eye: funnel, reward histograms and a gallery, as PNG and one self-contained HTML page.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every series also differs in its line or fill.
"""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from diffusers_craft.grid import image_grid
from diffusers_craft.records import FUNNEL_LABELS
from diffusers_craft.workdir import atomic_write_bytes


Panel = Callable[[Axes], None]  # draws one chart

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#999999"
LEGEND = {"fontsize": 8, "handlelength": 1.6, "columnspacing": 1.2, "handletextpad": 0.5}
SET_STYLES = {
    "original prompts": {"histtype": "stepfilled", "color": GRAY, "alpha": 0.45},
    "refined prompts": {"histtype": "step", "color": BLUE, "linewidth": 1.6},
    "selected": {"histtype": "step", "color": ORANGE, "linewidth": 1.6, "linestyle": (0, (4, 1.5))},
}
MAX_GALLERY = 100  # images shown; a page with thousands would not open on a phone
THUMBNAIL = 320  # pixels; larger images are embedded at this size


def _png(image: Image.Image | Figure) -> bytes:
    """PNG bytes that depend on the picture alone (no date, no version)."""
    buffer = io.BytesIO()
    if isinstance(image, Figure):
        image.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    else:
        image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _figure(panels: Sequence[Panel], columns: int) -> Figure:
    """Panels side by side under one legend."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.7 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=9)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles, labels = grid[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, **LEGEND)
    return figure


def funnel_panels(funnel: Mapping[str, float]) -> list[Panel]:
    """Two bar charts, images and prompts, each from what came in to what was selected."""
    images = {
        "candidates": "candidates",
        "valid": "valid",
        "kept_candidates": "kept by filter",
        "selected": "selected",
    }
    prompts = {"prompts": "prompts", "kept_groups": "kept by filter", "selected_prompts": "selected"}

    def draw(axes: Axes, unit: str, labels: Mapping[str, str]) -> None:
        counts = [int(funnel.get(key, 0)) for key in labels]
        axes.barh(list(labels.values()), counts, color=[GRAY] * (len(counts) - 2) + [BLUE, ORANGE], height=0.7)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*counts, 1]) * 1.45)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for y, count in enumerate(counts):
            share = f" ({count / max(counts[0], 1):.1%})" if y else ""
            axes.text(count, y, f"  {count:,}{share}", va="center", fontsize=9)
        axes.set_xlabel(f"number of {unit}", fontsize=9)

    return [partial(draw, unit="images", labels=images), partial(draw, unit="prompts", labels=prompts)]


def reward_sets(values: np.ndarray, variants: np.ndarray, selected: np.ndarray) -> dict[str, np.ndarray]:
    """The three sets a report compares: images of original prompts, of refined prompts, and the selected ones.

    Args:
        values (`np.ndarray`): (n,) of any quantity.
        variants (`np.ndarray`): (n,) int; 0 marks the image of the original prompt.
        selected (`np.ndarray`): (k,) row indices.

    Returns:
        `dict[str, np.ndarray]`: name of the set to its values.
    """
    return {
        "original prompts": values[variants == 0],
        "refined prompts": values[variants > 0],
        "selected": values[selected],
    }


def _draw_histogram(axes: Axes, series: Mapping[str, np.ndarray], label: str) -> None:
    """Overlaid histograms, each in percent of its own images, because the sets differ greatly in size."""
    finite = {name: values[np.isfinite(values)] for name, values in series.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins=24)
    for name, values in finite.items():
        if len(values):
            axes.hist(values, edges, weights=np.full(len(values), 100 / len(values)), label=name, **SET_STYLES[name])
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("images of the set (%)", fontsize=9)


def reward_panels(
    rewards: Mapping[str, np.ndarray],
    composite: np.ndarray,
    advantages: np.ndarray,
    variants: np.ndarray,
    selected: np.ndarray,
) -> list[Panel]:
    """Histograms of each raw reward, of the composite reward and the advantages; see `write_build_report`."""
    series = {f"{name} (raw score)": reward_sets(values, variants, selected) for name, values in rewards.items()}
    series["composite reward (normalised, weighted)"] = reward_sets(composite, variants, selected)
    advantage_sets = reward_sets(advantages, variants, selected)
    del advantage_sets["original prompts"]  # they have none
    series["advantage (standard deviations of its group)"] = advantage_sets
    return [partial(_draw_histogram, series=sets, label=label) for label, sets in series.items()]


def _data_uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _thumbnail(image: Image.Image) -> str:
    """An `<img>` source: small images as they are, larger ones as JPEG of at most `THUMBNAIL` pixels."""
    if max(image.size) <= THUMBNAIL:
        return _data_uri(_png(image.convert("RGB")))
    small, buffer = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(buffer, format="JPEG", quality=88)
    return _data_uri(buffer.getvalue(), "jpeg")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def _mean(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    return f"{values.mean():.4g}" if len(values) else "–"


def _funnel_rows(funnel: Mapping[str, float]) -> list[tuple[str, str]]:
    def text(key: str, value: float) -> str:
        return f"{value:.1%}" if key.startswith("share") else f"{int(value):,}"

    return [(label, text(key, funnel[key])) for key, label in FUNNEL_LABELS.items() if funnel.get(key) is not None]


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 0 auto;
 padding: 0 1rem 3rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; }}
.wide {{ overflow-x: auto; }} img {{ max-width: 100%; display: block; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .5rem 1rem;
 margin: 1rem 0; }} .charts img {{ width: 100%; max-width: 27rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }} th {{ font-weight: 600; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} figure img {{ width: 100%; border-radius: 4px; }} img.small {{ image-rendering: pixelated; }}
figcaption {{ font-size: .85rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }}
.muted {{ color: #595959; }} dl {{ display: grid; grid-template-columns: auto auto; justify-content: space-between;
 margin: .2rem 0 0; }} dd {{ margin: 0; text-align: right; font-variant-numeric: tabular-nums; }}
</style></head><body>
<h1>{title}</h1><p class="muted">{summary}</p>
<h2>Funnel</h2><div class="charts">{funnel}</div>{funnel_table}
<h2>Rewards</h2><p class="muted">Every image is scored against its original prompt. Means of each set:</p>{means}
<div class="charts">{rewards}</div>
<h2>Selected images</h2><p class="muted">{shown}</p><div class="gallery">{cards}</div>
</body></html>
"""


def _charts(panels: Sequence[Panel], about: str) -> str:
    """Charts one by one, so that a narrow screen can stack them."""
    return "".join(f'<img alt="{about}" src="{_data_uri(_png(_figure([panel], 1)))}">' for panel in panels)


def _card(image: Image.Image, prompt: str, refined: str, values: Mapping[str, float]) -> str:
    small = ' class="small"' if max(image.size) <= THUMBNAIL // 2 else ""
    numbers = "".join(f"<dt>{html.escape(name)}</dt><dd>{value:.3f}</dd>" for name, value in values.items())
    made_by = f'<div class="muted">{html.escape(refined)}</div>' if refined != prompt else ""
    return (
        f'<figure><img{small} loading="lazy" alt="{html.escape(prompt, quote=True)}" src="{_thumbnail(image)}">'
        f"<figcaption>{html.escape(prompt)}{made_by}<dl>{numbers}</dl></figcaption></figure>"
    )


def write_build_report(
    folder: str | Path,
    funnel: Mapping[str, float],
    rewards: Mapping[str, np.ndarray],
    composite: np.ndarray,
    advantages: np.ndarray,
    variants: np.ndarray,
    selected: np.ndarray,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    refined_prompts: Sequence[str],
    title: str = "CRAFT dataset",
) -> None:
    """Writes `funnel.png`, `rewards.png`, `gallery.png` and `report.html`, which needs no other file.

    Args:
        folder (`str | Path`): where the files go; made if missing.
        funnel (`Mapping[str, float]`): what `filtering.funnel` returns.
        rewards (`Mapping[str, np.ndarray]`): reward name to (n,) raw scores; NaN marks an invalid image.
        composite (`np.ndarray`): (n,) composite reward.
        advantages (`np.ndarray`): (n,) group advantages.
        variants (`np.ndarray`): (n,) int; 0 marks the image of the original prompt.
        selected (`np.ndarray`): (k,) row indices of the selected images.
        images (`Sequence[PIL.Image.Image]`): (k,) images of the selected rows; only the first `MAX_GALLERY` are read.
        prompts (`Sequence[str]`): (k,) original prompts of the selected rows.
        refined_prompts (`Sequence[str]`): (k,) prompts that generated them.
        title (`str`, *optional*, defaults to `"CRAFT dataset"`): heading of the page.
    """
    folder, selected, variants = Path(folder), np.asarray(selected, dtype=int), np.asarray(variants)
    shown = min(len(selected), MAX_GALLERY)
    pictures = [images[i] for i in range(shown)]
    columns = {**rewards, "composite": composite, "advantage": advantages}
    cards = [
        _card(pictures[i], prompts[i], refined_prompts[i], {name: v[selected[i]] for name, v in columns.items()})
        for i in range(shown)
    ]
    captions = [f"reward {composite[selected[i]]:+.2f}\n{prompts[i]}" for i in range(shown)]
    funnel_charts = funnel_panels(funnel)
    reward_charts = reward_panels(rewards, composite, advantages, variants, selected)
    files = {
        "funnel.png": _png(_figure(funnel_charts, 2)),
        "rewards.png": _png(_figure(reward_charts, 3)),
        "gallery.png": _png(image_grid(pictures, columns=10, captions=captions, caption_lines=4)),
    }
    means = [(name, *map(_mean, reward_sets(v, variants, selected).values())) for name, v in columns.items()]
    means[-1] = (means[-1][0], "–", *means[-1][2:])  # images of original prompts have no advantage
    page = _PAGE.format(
        title=html.escape(title),
        summary=f"{len(selected):,} of {len(composite):,} images selected.",
        funnel=_charts(funnel_charts, "Bar chart of the funnel; the table below holds its numbers"),
        funnel_table=_table(("stage", "count"), _funnel_rows(funnel)),
        means=_table(("reward", "original prompts", "refined prompts", "selected"), means),
        rewards=_charts(reward_charts, "Histogram of a reward; the table above holds its means"),
        shown=f"{shown:,} of {len(selected):,} shown, in the order of selection. Grey text: the refined prompt.",
        cards="".join(cards),
    )
    for name, data in {**files, "report.html": page.encode()}.items():
        atomic_write_bytes(folder / name, data)
