# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images side by side with titles and captions, as one picture."""

from collections.abc import Sequence

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps


INK, FAINT = "#222222", "#999999"


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int) -> list[str]:
    """Breaks each line of `text` at words to `width` pixels; what exceeds `max_lines` ends in an ellipsis."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            candidate = f"{line} {word}".strip()
            if line and font.getlength(candidate) > width:
                lines.append(line)
                candidate = word
            line = candidate
        lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + "…"]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.rstrip("…")
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


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
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
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
            draw.text((x, y + i * line_height), line, fill=INK, font=font)

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
