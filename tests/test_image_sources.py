# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images and captions to score, as other programs leave them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusers_craft import UserError, open_images
from diffusers_craft.core.tables import read_csv, read_text
from diffusers_craft.scoring.run import decode_image


def save(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2)).save(folder / name)


def captions_of(folder, **options):
    images = open_images(str(folder), **options)
    return dict(zip(images.names, images.prompts()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_scored_upright(orientation, form):
    values = np.zeros((16, 32, 3), np.uint8)
    values[:8, :16] = 255
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(values).save(buffer, form, exif=exif, quality=95)
    upright = {  # the tag says where the first row and column of the stored picture belong
        1: values, 2: values[:, ::-1], 3: values[::-1, ::-1], 4: values[::-1],
        5: values.transpose(1, 0, 2), 6: np.rot90(values, -1), 7: np.rot90(values, 2).transpose(1, 0, 2), 8: np.rot90(values),
    }[orientation]  # fmt: skip
    found = np.asarray(decode_image(buffer.getvalue()).convert("RGB")).astype(int)
    assert found.shape == upright.shape and np.abs(found - upright).mean() < 8


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_broken_tags_do_not_break_the_picture(form):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), "red").save(buffer, form, exif=b"Exif\0\0not a TIFF file")
    assert decode_image(buffer.getvalue()).size == (4, 2)
    assert isinstance(decode_image(buffer.getvalue()[:-30]), str), "the picture itself is damaged"


def test_files_of_other_systems_are_no_images(tmp_path):
    save(tmp_path, "a.png", "deep/b.jpg")
    (tmp_path / "._a.png").write_bytes(b"AppleDouble")
    (tmp_path / "a folder.png").mkdir()
    save(tmp_path, ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "__a_drawn_by_b__1.png")
    assert captions_of(tmp_path, prompt="x") == {"__a_drawn_by_b__1.png": "x", "a.png": "x", "deep/b.jpg": "x"}


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    rows = open_images(str(tmp_path), prompt="x").read_rows(range(2))
    assert (
        isinstance(decode_image(rows[0].data), Image.Image)
        and decode_image(rows[1].data) == "no image of a known format"
    )


def test_what_changes_behind_a_link_is_another_image(tmp_path):
    save(tmp_path, "out/b.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "out" / "b.png")
    before = open_images(str(tmp_path / "in"), prompt="x").identity
    assert open_images(str(tmp_path / "in"), prompt="x").identity == before
    Image.new("RGB", (40, 20)).save(tmp_path / "out" / "b.png")
    assert open_images(str(tmp_path / "in"), prompt="x").identity != before


def test_the_mark_of_windows_is_no_letter(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a red circle\r\n", encoding="utf-8-sig")
    assert captions_of(tmp_path) == {"a.png": "a red circle"}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
@pytest.mark.parametrize("file", ["a.txt", "metadata.csv", "metadata.jsonl"])
def test_another_encoding_is_named(encoding, file, tmp_path):
    save(tmp_path, "a.png")
    text = {"a.txt": "größe", "metadata.csv": "file_name,text\na.png,größe"}.get(
        file
    ) or '{"file_name": "a.png", "text": "größe"}'
    (tmp_path / file).write_text(text, encoding=encoding)
    with pytest.raises(UserError, match=rf"expected UTF-8 in .*{file}, found byte 0x"):
        captions_of(tmp_path)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_metadata_of_folders_below_and_of_every_kind(form, tmp_path):
    save(tmp_path, "a/1.png", "b/2.png")
    for name, folder in (("1.png", tmp_path / "a"), ("2.png", tmp_path / "b")):
        record, file = {"file_name": name, "text": f"of {name}"}, folder / f"metadata.{form}"
        if form == "jsonl":
            file.write_text(json.dumps(record))
        elif form == "csv":
            file.write_text(f"file_name,text\n{name},of {name}\n")
        else:
            pq.write_table(pa.Table.from_pylist([record]), file)
    assert captions_of(tmp_path) == {"a/1.png": "of 1.png", "b/2.png": "of 2.png"}


def test_another_programs_metadata_below_is_not_asked(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metadata.csv").write_text("step;loss;größe\n1,0.5,2,3\n", encoding="cp1252")
    assert captions_of(tmp_path) == {"a.png": "a cat"}


def test_a_damaged_table_of_captions_is_named(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="expected a Parquet file, found other bytes in .*metadata.parquet"):
        captions_of(tmp_path)


def test_half_an_emoji_in_a_caption_is_named(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat \\ud83d"}')
    with pytest.raises(UserError, match="expected text that can be written as UTF-8 as the caption of a.png, found"):
        captions_of(tmp_path)


def test_a_record_without_file_name_is_named(tmp_path):
    save(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"text": "y"}')
    with pytest.raises(UserError, match="--captions: expected a file_name in row 2 of .*metadata.jsonl, found none"):
        captions_of(tmp_path)


def test_an_empty_caption_of_a_table_is_known_before_scoring(tmp_path):
    table = {"image": [b"x"] * 200, "text": ["x"] * 150 + [None] + ["x"] * 49}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="expected a text as the caption of row 150, found None"):
        open_images(str(tmp_path / "x.parquet")).prompts()


def test_our_own_table_beside_images_is_not_taken_for_them(tmp_path):
    save(tmp_path, "a.png")
    pq.write_table(pa.table({"image": ["a.png"], "prompt": ["x"], "pickscore": [0.1]}), tmp_path / "scores.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "stats.parquet")
    with pytest.raises(UserError, match="expected encoded images in 'image' of .*scores.parquet, found string"):
        open_images(str(tmp_path / "scores.parquet"))
    assert captions_of(tmp_path, prompt="x") == {"a.png": "x"}
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "deep" / "a.png")
    assert captions_of(tmp_path, prompt="x") == {"deep/a.png": "x"}


def write(tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    return tmp_path / "p.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "prompt\na red circle, on black, detailed\n",
            r"expected 1 cell as in the header in line 2 of .* found 3; quote",
        ),
        ("prompt,category\nx,y\na, b, c\n", r"expected 2 cells as in the header in line 3 of .* found 3; quote"),
        ("prompt;category\na cat, sitting;animals\n", "expected columns divided by ',' in .*p.csv, found ';'"),
        ("prompt\tcategory\na cat\tanimals\n", r"expected columns divided by ',' in .*p.csv, found '\\t'"),
        ('prompt\n"hello" sign\nx\n', r"expected quotes around whole cells in line 2 of"),
        ('prompt\nx\n"welcome\ntwo\na blue star\n', r"expected quotes around whole cells in line 3 of"),
        ('prompt\n"welcome\n' + "two green squares\n" * 100_000, r"expected quotes around whole cells in line 2 of"),
    ],
)
def test_a_csv_row_that_is_not_whole_is_named(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        read_csv(write(tmp_path, text), "--prompts")


def test_what_a_spreadsheet_writes_is_read(tmp_path):
    text = 'prompt,n\r\n"a sign that says ""STOP"", red",1\r\n"two\nlines",2\r\n\r\n007,NA\r\n'
    found = [row["prompt"] for row in read_csv(write(tmp_path, text), "--prompts")]
    assert found == ['a sign that says "STOP", red', "two\nlines", "007"]
    assert read_text(write(tmp_path, "é"), "--prompts") == "é"


@pytest.mark.parametrize("row", ["a red circle,x,,", '"a red circle", "x"', "a red circle,x, ,"])
def test_empty_cells_behind_a_row_are_no_loss(row, tmp_path):
    assert read_csv(write(tmp_path, f"prompt,n\n{row}\n"), "--prompts") == [{"prompt": "a red circle", "n": "x"}]


def test_lines_of_json_end_where_lines_end(tmp_path):
    save(tmp_path, "a.png")
    record = {"file_name": "a.png", "text": "one\u2028two\x85three"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert captions_of(tmp_path) == {"a.png": record["text"]}


def test_images_of_a_configuration(tmp_path, monkeypatch):
    """`NAME:CONFIG:SPLIT`, and the list of configurations where none is named."""
    for name in ("real", "drawn"):
        folder = tmp_path / "hub" / name
        save(folder, "0.png")
        (folder / "metadata.csv").write_text(f"file_name,text\n0.png,{name}\n")
    files = "".join(
        f"- config_name: {n}\n  data_files:\n  - split: test\n    path: {n}/**\n" for n in ("real", "drawn")
    )
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    monkeypatch.chdir(tmp_path)
    images = open_images("hub:drawn:test")
    assert (images.num_rows, images.prompts()) == (1, ["drawn"])
    with pytest.raises(UserError, match="^--images: .* name one of real, drawn as NAME:CONFIG:SPLIT"):
        open_images("hub:test")
