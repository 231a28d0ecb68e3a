# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images side by side with titles and captions, as one picture."""

from bisect import bisect_right
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from .fonts import Typeface, is_mark


INK, FAINT = "#222222", "#999999"
BREAKS = ",;/，、。"  # after which a word that is too long for a line rather ends


def _wrap(text: str, font: Typeface, width: float, max_lines: int) -> list[str]:
    """Breaks `text` at words, too long ones inside, to `width` pixels; the rest after `max_lines` is an ellipsis."""
    lines: list[str] = []
    room = max_lines * int(width) + 1  # letters: none is less than a pixel wide, so more need not be measured
    for paragraph in text.split("\n", max_lines + 1)[: max_lines + 1]:
        line = ""
        for word in paragraph[:room].split():
            candidate = f"{line} {word}".strip()
            if font.getlength(candidate) > width:
                if line:
                    lines.append(line)
                while font.getlength(word) > width and len(lines) <= max_lines:
                    end = _fitting(word, font, width)
                    end = max(word.rfind(mark, end // 2, end) for mark in BREAKS) + 1 or end
                    lines.append(word[:end])
                    word = word[end:]
                candidate = word
            line = candidate
        lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + "…"]
    return [_shorten(line, font, width) for line in lines]


def _fitting(text: str, font: Typeface, width: float) -> int:
    """How many letters fit into `width` pixels, at least one; marks are not cut from their letter."""
    end = max(1, bisect_right(range(len(text) + 1), width, key=lambda count: font.getlength(text[:count])) - 1)
    while 1 < end < len(text) and is_mark(text[end]):
        end -= 1
    return end


def _shorten(line: str, font: Typeface, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.rstrip("…")
    return line[: _fitting(line, font, width - font.getlength("…"))].rstrip() + "…"


def _fit(image: Image.Image, size: int) -> Image.Image:
    """`image` in a square of `size` pixels: small ones enlarged by whole pixels, large ones reduced."""
    factor = size // max(image.size)
    if factor > 1:
        return ImageOps.scale(image.convert("RGB"), factor, Image.Resampling.NEAREST)
    shape = [max(1, round(side * size / max(image.size))) for side in image.size]  # a line keeps one pixel
    return image.convert("RGB").resize(shape, Image.Resampling.LANCZOS)


def image_grid(
    images: Sequence[Image.Image | None],
    columns: int,
    captions: Sequence[str] | None = None,
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    cell_size: int = 192,
    caption_lines: int = 3,
) -> Image.Image:
    """Lays images out row by row, with titles and captions; sizes in pixels, `None` leaves a cell marked as empty."""
    font = Typeface(14)
    pad, line_height = 8, 18
    left = cell_size + pad if row_titles else 0
    top = line_height + pad if column_titles else 0
    step_x = cell_size + pad
    step_y = cell_size + pad + (line_height * caption_lines + 2 if captions else 0)
    height = top + -(-len(images) // columns) * step_y + pad
    canvas = Image.new("RGB", (left + columns * step_x + pad, height), "white")
    draw = ImageDraw.Draw(canvas)

    def write(text: str, x: int, y: int, max_lines: int) -> None:
        for i, line in enumerate(_wrap(text, font, cell_size, max_lines)):
            font.draw(canvas, x, y + i * line_height, line, INK)

    for column, title in enumerate(column_titles or ()):
        write(title, left + pad + column * step_x, pad, 1)
    for row, title in enumerate(row_titles or ()):
        write(title, pad, top + pad + row * step_y, cell_size // line_height)
    for index, image in enumerate(images):
        x, y = left + pad + index % columns * step_x, top + pad + index // columns * step_y
        if image is None:
            draw.rectangle((x, y, x + cell_size - 1, y + cell_size - 1), outline=FAINT)
            write("no valid image", x + pad, y + pad, 1)
        else:
            tile = _fit(image, cell_size)
            canvas.paste(tile, (x + (cell_size - tile.width) // 2, y + (cell_size - tile.height) // 2))
        if captions:
            write(captions[index], x, y + cell_size + 2, caption_lines)
    return canvas
