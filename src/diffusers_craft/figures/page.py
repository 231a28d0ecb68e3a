# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Building blocks of the reports: charts, tables and pictures of one self-contained HTML page."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image


Panel = Callable[[Axes], None]  # draws one chart
# Okabe and Ito's, which colour-blind readers can tell apart; every series also differs in its line or fill.
BLUE, ORANGE, GREEN, PINK, GRAY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"
LEGEND = {"fontsize": 8, "handlelength": 1.6, "columnspacing": 1.2, "handletextpad": 0.5}
EMBEDDED = 512  # pixels; larger images are embedded at this size unless told otherwise
SMALL = 160  # pixels; images up to this size are enlarged without smoothing
LOSSLESS = 320  # pixels; images up to this size are embedded as PNG
LONG_TEXT = 300  # letters of a text that are shown at once


def png_bytes(image: Image.Image | Figure) -> bytes:
    """PNG bytes that depend on the picture alone (no date, no version)."""
    buffer = io.BytesIO()
    if isinstance(image, Figure):
        image.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    else:
        image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def draw_figure(panels: Sequence[Panel], columns: int) -> Figure:
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
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, **LEGEND)
    return figure


def data_uri(data: bytes, kind: str = "png") -> str:
    """An image file as the source of an `<img>`."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_tag(image: Image.Image, about: str, size: int = EMBEDDED) -> str:
    """A picture in the page, which a click shows as large as the window; JPEG of at most `size` pixels if large."""
    picture, buffer = image.convert("RGB"), io.BytesIO()
    picture.thumbnail((size, size))  # leaves small ones as they are
    kind, options = ("png", {"optimize": True}) if max(image.size) <= LOSSLESS else ("jpeg", {"quality": 88})
    picture.save(buffer, kind, **options)
    small = ' class="small"' if max(image.size) <= SMALL else ""
    about = about if len(about) <= LONG_TEXT else about[:LONG_TEXT] + "…"
    source = data_uri(buffer.getvalue(), kind)
    shown = f'<img{small} loading="lazy" alt="{html.escape(about)}" src="{source}">'
    # A checkbox needs no script and no second copy of the picture, and works from the keyboard.
    return f'<label class="view"><input type="checkbox" aria-label="larger view" />{shown}</label>'


def clamped(text: str, tag: str = "span") -> str:
    """A text in a tag; a long one shows its beginning, and the rest unfolds."""
    if len(text) <= LONG_TEXT:
        return f"<{tag}>{html.escape(text)}</{tag}>"
    space = text.rfind(" ", LONG_TEXT // 2, LONG_TEXT)
    cut = LONG_TEXT if space < 0 else space
    start, rest = text[:cut], text[cut:]
    more = f'<span class="more"> … {len(rest):,} letters more</span>'
    head = f"<{tag}>{html.escape(start)}{more}</{tag}>"
    return f"<details><summary>{head}</summary>{html.escape(rest)}</details>"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]], kind: str = "numbers") -> str:
    """A table that scrolls sideways on a narrow screen; a cell is plain text, or text and the tag around it.

    Columns of `"numbers"` end at the right, those of `"texts"` begin at the left.
    """

    def line(cells: Sequence[str | tuple[str, str]], tag: str) -> str:
        pairs = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
        texts = [f"<{mark}>{html.escape(text)}</{mark}>" if mark else html.escape(text) for text, mark in pairs]
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def draw_histograms(
    axes: Axes, series: Mapping[str, np.ndarray], styles: Mapping[str, Mapping[str, Any]], label: str, unit: str
) -> None:
    """Overlaid histograms on common bins, each in percent of its own finite values: sets differ greatly in size."""
    finite = {name: values[np.isfinite(values)] for name, values in series.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins=24)
    for name, values in finite.items():
        if len(values):
            axes.hist(values, edges, weights=np.full(len(values), 100 / len(values)), label=name, **styles[name])
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel(unit, fontsize=9)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 0 auto;
 padding: 0 1rem 3rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; }}
h1, h2, h3, p, li, summary, details {{ overflow-wrap: anywhere; }} img {{ max-width: 100%; display: block; }}
/* A shadow on the side where a table goes on: sheets of the page's colour, which move with it, cover its ends. */
.wide {{ overflow-x: auto; background: linear-gradient(to right, #fff 40%, #fff0) 0 0,
 linear-gradient(to left, #fff 40%, #fff0) 100% 0, linear-gradient(to right, #0004, #0000) 0 0,
 linear-gradient(to left, #0004, #0000) 100% 0;
 background-repeat: no-repeat; background-size: 2.5rem 100%, 2.5rem 100%, .8rem 100%, .8rem 100%;
 background-attachment: local, local, scroll, scroll; }}
.view {{ display: block; position: relative; cursor: zoom-in; }} .view input {{ position: absolute; opacity: 0; }}
figure .view input:checked + img {{ position: fixed; inset: 0; z-index: 1; width: 100vw; height: 100vh;
 max-width: none; object-fit: contain; background: #000d; border-radius: 0; cursor: zoom-out; }}
.view input:focus-visible + img {{ outline: 3px solid #0072B2; }}
summary {{ cursor: pointer; }} summary > * {{ display: inline; }} .more {{ color: #595959; font-weight: 400; }}
details[open] .more {{ display: none; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .5rem 1rem;
 margin: 1rem 0; }} .charts img {{ width: 100%; max-width: 27rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child, .texts th, .texts td {{ text-align: left; }} th {{ font-weight: 600; }}
.gallery {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} figure img {{ width: 100%; border-radius: 4px; }} img.small {{ image-rendering: pixelated; }}
figcaption {{ font-size: .85rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }}
.muted {{ color: #595959; }} dl {{ display: grid; grid-template-columns: auto auto; justify-content: space-between;
 margin: .2rem 0 0; }} dd {{ margin: 0; text-align: right; font-variant-numeric: tabular-nums; }}
</style></head><body>
<h1>{title}</h1><p class="muted">{summary}</p>
{sections}
</body></html>
"""


def render_page(title: str, summary: str, sections: Mapping[str, str]) -> str:
    """The whole page: HTML by heading, in order, empty sections left out; title and summary are plain text."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections.items() if content)
    return _PAGE.format(title=html.escape(title), summary=html.escape(summary), sections=body)


def chart_images(panels: Sequence[Panel], about: str) -> str:
    """Charts one by one, so that a narrow screen can stack them."""
    return "".join(f'<img alt="{about}" src="{data_uri(png_bytes(draw_figure([panel], 1)))}">' for panel in panels)
