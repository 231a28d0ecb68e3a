# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Letters in pictures: fonts for what DejaVu lacks, Noto first; lines broken where they must, in linear time."""

import logging
import subprocess

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageFont

from diffusers_craft.figures import fonts
from diffusers_craft.figures.fonts import Typeface
from diffusers_craft.figures.grid import _wrap
from diffusers_craft.scripts import image_grid


CAT, ROCKET = "\u732b", "\U0001f680"


@pytest.fixture(autouse=True)
def forget():
    """What one test finds out about fonts, another must not know."""
    cached = (fonts.installed_fonts, fonts._file_for, fonts._open, fonts._say_missing)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def squares(tmp_path):
    """A font whose letters for a cat and a rocket are solid squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    letters = {ord(CAT): "cat", ord(ROCKET): "rocket"}
    names, glyph = [".notdef", *letters.values()], pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(letters)
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "Squares.ttf")
    return str(tmp_path / "Squares.ttf")


def ink(text):
    """Dark pixels of a line."""
    canvas = Image.new("RGB", (200, 24), "white")
    Typeface(14).draw(canvas, 4, 2, text, "black")
    return int((np.asarray(canvas.convert("L")) < 64).sum())


@pytest.mark.parametrize("letter", [CAT, ROCKET], ids=["cjk", "emoji"])
def test_letters_that_dejavu_lacks_come_from_another_font(squares, monkeypatch, letter, caplog):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [(squares, fonts._Charmap(squares))])
    assert ink(letter) >= 100, "a box, not the font's square"
    latin = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
    assert Typeface(14).getlength(f"a {letter}") == pytest.approx(latin.getlength("a ") + 14, abs=0.1)
    assert Typeface(14).getlength("a red circle") == latin.getlength("a red circle")
    assert caplog.messages == []


def test_marks_and_spaces_stay_in_the_font_of_their_letter(squares, monkeypatch):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [(squares, fonts._Charmap(squares))])
    pieces = [run.text for run in Typeface(14)._runs(f"ab {ROCKET}\ufe0f\u200d{ROCKET} c")]
    assert pieces == ["ab ", f"{ROCKET}\ufe0f\u200d{ROCKET} ", "c"]


def test_letters_of_no_font_are_said_once(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "installed_fonts", lambda: [])
    with caplog.at_level(logging.WARNING):
        for captions in ([CAT], [ROCKET]):
            image_grid([Image.new("RGB", (8, 8))], 1, captions=captions)
    (message,) = caplog.messages
    assert "expected fonts for all letters, found none for some" in message and "fonts-noto-cjk" in message


def test_fontconfig_names_the_fonts_noto_first(monkeypatch):
    listed = [
        "/f/Arial Unicode.ttf\t0\t20-7e 4e00-9fff",
        "/f/NotoSansCJK-Bold.ttc\t0\t4e00-9fff",
        "/f/NotoSansCJK-Regular.ttc\t3\t4e00-9fff",
        "/f/NotoSansCJK-Regular.ttc\t0\t20-7e 732b 1f600-1f64f",
        "a line of another form",
    ]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "\n".join(listed)))
    found = dict(fonts.installed_fonts())
    assert [file.rpartition("/")[2] for file in found] == [
        "NotoSansCJK-Regular.ttc",
        "NotoSansCJK-Bold.ttc",
        "Arial Unicode.ttf",
    ]
    codes = found["/f/NotoSansCJK-Regular.ttc"]
    assert [code in codes for code in (0x1F, 0x20, 0x7E, 0x7F, 0x732B, 0x732C, 0x1F64F, 0x1F650)] == [
        *(False, True, True, False),
        *(True, False, True, False),
    ]


def test_without_fontconfig_matplotlib_names_them(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("fc-list")

    monkeypatch.setattr(subprocess, "run", missing)
    found = dict(fonts.installed_fonts())
    assert ord("a") in found[str(font_manager.findfont("DejaVu Sans"))]
    assert 0x61 not in fonts._Charmap("/no/such/font.ttf")


def test_a_font_of_bitmaps_in_one_size_is_scaled(monkeypatch):
    """As Noto's coloured emoji, which open at 109 pixels only."""
    original, latin = ImageFont.truetype, font_manager.findfont("DejaVu Sans")

    def bitmaps(file, size):
        if file == "emoji.ttf" and size != 109:
            raise OSError("invalid pixel size")
        return original(latin if file == "emoji.ttf" else file, size)

    monkeypatch.setattr(ImageFont, "truetype", bitmaps)
    monkeypatch.setattr(
        fonts, "installed_fonts", lambda: [("broken.ttf", {ord(ROCKET)}), ("emoji.ttf", {ord(ROCKET)})]
    )
    length = original(latin, 109).getlength(ROCKET) * 14 / 109
    assert Typeface(14).getlength(ROCKET) == pytest.approx(length) and ink(ROCKET) > 0


@pytest.mark.parametrize("text", ["x" * 200, CAT * 200, "1girl,solo," * 20, "short " + "y" * 200])
def test_text_without_spaces_wraps(text):
    font = Typeface(14)
    lines = _wrap(text, font, 120, 4)
    assert len(lines) == 4 and lines[-1].endswith("…") and all(font.getlength(line) <= 120 for line in lines)
    whole = "".join(_wrap(text[:30], font, 120, 40))
    assert whole == text[:30].replace(" ", "")


@pytest.mark.parametrize("tags", ["1girl,solo," * 20, "\u5bb6\u3001\u732b\u3001" * 20], ids=["latin", "cjk"])
def test_lists_without_spaces_break_after_their_marks(tags):
    lines = _wrap(tags, Typeface(14), 120, 40)
    assert len(lines) > 3 and all(line.endswith((",", "\u3001")) for line in lines)


def test_an_accent_is_not_cut_from_its_letter():
    lines = _wrap("e\u0301" * 60, Typeface(14), 100, 10)
    assert len(lines) > 3 and not any(line.startswith("\u0301") for line in lines)


@pytest.mark.parametrize("text", ["x" * 100_000, "a word " * 20_000, "line\n" * 20_000])
def test_long_texts_are_cut_in_linear_time(text):
    class Counting:
        measured = 0

        def getlength(self, part):
            self.measured += len(part)
            return 8.0 * len(part)

    font = Counting()
    assert len(_wrap(text, font, 192, 10)) == 10
    assert font.measured < 300_000
