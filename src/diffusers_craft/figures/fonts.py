# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Lines of any script in pictures: DejaVu Sans, and for letters that it lacks this machine's fonts, Noto first."""

import logging
import math
import subprocess
import unicodedata
from bisect import bisect_right
from collections.abc import Container
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont


logger = logging.getLogger(__name__)

BITMAP_SIZE = 109  # pixels: the one size of fonts that are bitmaps, as Noto's coloured emoji
_LIST = ["fc-list", "--format", r"%{file}\t%{index}\t%{charset}\n"]
_ODD_STYLES = ("bold", "italic", "oblique", "black", "light", "thin", "medium", "condensed", "mono", "serif")


class _Ranges:
    """Code points as fontconfig prints them, `20-7e a0 4e00-9fff`."""

    def __init__(self, text: str):
        pairs = [part.partition("-") for part in text.split()]
        self._starts = [int(start, 16) for start, _, _ in pairs]
        self._ends = [int(end or start, 16) for start, _, end in pairs]

    def __contains__(self, code: int) -> bool:
        place = bisect_right(self._starts, code) - 1
        return place >= 0 and code <= self._ends[place]


class _Charmap:
    """Code points of a font file, read when they are first asked for; none of a file that matplotlib cannot read."""

    def __init__(self, file: str):
        self._file = file

    @cached_property
    def _codes(self) -> Container[int]:
        try:
            return frozenset(FT2Font(self._file).get_charmap())
        except (OSError, RuntimeError, ValueError):
            return frozenset()

    def __contains__(self, code: int) -> bool:
        return code in self._codes


@cache
def _own() -> tuple[str, Container[int]]:
    file = str(font_manager.findfont("DejaVu Sans"))  # plain, also of newer versions of matplotlib
    return file, _Charmap(file)


@cache
def installed_fonts() -> list[tuple[str, Container[int]]]:
    """Font files with their code points, by fontconfig or else matplotlib: Noto first, plain styles first."""
    try:
        listed = subprocess.run(_LIST, capture_output=True, text=True, errors="replace", timeout=30, check=True).stdout
        rows = [line.split("\t") for line in listed.splitlines()]
        # Of a collection Pillow opens the first face.
        found = {row[0]: _Ranges(row[2]) for row in rows if len(row) == 3 and row[1] == "0"}
    except (OSError, ValueError, subprocess.SubprocessError):
        found = {font.fname: _Charmap(font.fname) for font in font_manager.fontManager.ttflist}

    def rank(file: str) -> tuple[bool, bool, str]:
        name = Path(file).name.lower()
        return "noto" not in name, any(style in name for style in _ODD_STYLES), file

    return [(file, found[file]) for file in sorted(found, key=rank)]


@cache
def _open(file: str, size: int) -> tuple[ImageFont.FreeTypeFont, float] | None:
    """A font and the factor by which its letters are drawn; `None` for a file that Pillow cannot read."""
    for pixels in (size, BITMAP_SIZE):
        try:
            return ImageFont.truetype(file, pixels), size / pixels
        except OSError:
            continue
    return None


@cache
def _file_for(char: str, size: int) -> str:
    """The font file that draws a letter; DejaVu's box where none is known to have it."""
    (own, letters), code = _own(), ord(char)
    if code in letters or not char.isprintable():
        return own
    found = next((file for file, codes in installed_fonts() if code in codes and _open(file, size)), None)
    if found is None:
        _say_missing()
    return found or own


@cache
def _say_missing() -> None:
    """Once in a process."""
    logger.warning(
        "captions of pictures: expected fonts for all letters, found none for some, which show as boxes; Noto's "
        "(fonts-noto-cjk, fonts-noto-color-emoji) have them"
    )


def is_mark(char: str) -> bool:
    """Whether a character changes the letter before it, and stays with it: accents, selectors, joiners."""
    return unicodedata.category(char) in ("Mn", "Me", "Cf")


class _Run(NamedTuple):
    """A piece of a line that one font draws."""

    text: str
    font: ImageFont.FreeTypeFont
    scale: float


class Typeface:
    """Letters of one size in pixels, each from a font that has it."""

    def __init__(self, size: int):
        self.size = size
        self.ascent = ImageFont.truetype(_own()[0], size).getmetrics()[0]

    def _runs(self, text: str) -> list[_Run]:
        pieces: list[list[str]] = []  # of a font file and its letters
        for char in text:
            kept = bool(pieces) and (char == " " or is_mark(char))
            file = pieces[-1][0] if kept else _file_for(char, self.size)
            if pieces and pieces[-1][0] == file:
                pieces[-1].append(char)
            else:
                pieces.append([file, char])
        return [_Run("".join(letters), *_open(file, self.size)) for file, *letters in pieces]

    def getlength(self, text: str) -> float:
        """Pixels."""
        return sum(run.font.getlength(run.text) * run.scale for run in self._runs(text))

    def draw(self, canvas: Image.Image, x: float, y: int, text: str, fill: str) -> None:
        """Writes one line whose top is at `y`; all fonts stand on one baseline."""
        for run in self._runs(text):
            length = run.font.getlength(run.text)
            if run.scale == 1:
                place = (x, y + self.ascent)
                ImageDraw.Draw(canvas).text(place, run.text, fill=fill, font=run.font, anchor="ls")
            else:
                ascent, descent = run.font.getmetrics()
                tile = Image.new("RGBA", (max(1, math.ceil(length)), ascent + descent), (255, 255, 255, 0))
                ImageDraw.Draw(tile).text((0, 0), run.text, fill=fill, font=run.font, embedded_color=True)
                size = (max(1, round(side * run.scale)) for side in tile.size)
                tile = tile.resize(tuple(size), Image.Resampling.LANCZOS)
                canvas.paste(tile, (round(x), y + self.ascent - round(ascent * run.scale)), tile)
            x += length * run.scale
