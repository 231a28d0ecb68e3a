# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Folders as people have them: file names that look like splits, captions beside pictures, tables of other tools."""

import io
import json
import logging
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from diffusers_craft import UserError, load_craft_dataset
from diffusers_craft.data import local
from diffusers_craft.data.pictures import as_pictures, as_rgb, crop_image, read_pictures


def save_images(folder, *names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name)


def png(image=None):
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 8))).save(buffer, "PNG")
    return buffer.getvalue()


NAMES = ["photo of a cat.png", "photo of a train.png", "photo of test tubes.png", "dev/validation.png", "a.JPG"]


@pytest.mark.parametrize("captions", ["jsonl", "csv", "txt", "caption", None])
@pytest.mark.parametrize("place", ["images", "set [v2]/images", "a b*ü"])
def test_every_picture_below_a_folder_is_read_with_its_caption(captions, place, tmp_path):
    folder = tmp_path / place
    save_images(folder, *NAMES)
    if captions == "jsonl":
        lines = [json.dumps({"file_name": name, "text": f"of {name}"}) for name in NAMES]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    elif captions == "csv":
        pd.DataFrame({"file_name": NAMES, "text": [f"of {name}" for name in NAMES]}).to_csv(folder / "metadata.csv")
    elif captions is not None:
        for name in NAMES:
            (folder / name).with_suffix(f".{captions}").write_text(f"of {name}\n", encoding="utf-8-sig")
    for name in (
        "notes1.json",
        "notes2.json",
        "clip.mp4",
        "Thumbs.db",
        "._a.png",
        ".cache/x.png",
    ):  # of other programs
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    dataset = load_craft_dataset(folder)
    found = (
        {image.getpixel((0, 0))[0]: text for image, text in zip(dataset["image"], dataset["text"])} if captions else {}
    )
    assert len(dataset) == len(NAMES)
    assert not captions or {round(red): text for red, text in found.items()} == {
        i: f"of {n}" for i, n in enumerate(NAMES)
    }


def test_pictures_that_are_left_out_are_counted(tmp_path, caplog):
    save_images(tmp_path, *NAMES[:3])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": NAMES[0], "text": "a cat"}))
    with caplog.at_level(logging.WARNING):
        assert len(load_craft_dataset(tmp_path)) == 1
    assert "2 of 3 images have no line in the metadata" in caplog.text


def test_train_beside_test_is_train_and_says_so(tmp_path, caplog):
    save_images(tmp_path, "train/a.png", "train/deep/b.png", "test/c.png", "valid/d.png", "valid/e.png")
    with caplog.at_level(logging.WARNING):
        assert len(load_craft_dataset(tmp_path)) == 2
    assert "leaves out 3 files of valid/, test/" in caplog.text


def test_train_beside_other_folders_is_no_split(tmp_path):
    save_images(tmp_path, "train/a.png", "more/b.png", "10_cat/c.png")
    assert len(load_craft_dataset(tmp_path)) == 3


@pytest.mark.parametrize(
    "names",
    [
        ["part1.parquet", "part2.parquet", "retrain_extra.parquet", "train_extra.parquet"],
        ["train/a.parquet", "more/test_b.parquet"],
        ["test.parquet"],
        ["train.parquet", "more.parquet"],
        ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"],
    ],
)
def test_every_parquet_file_is_read_whatever_it_is_called(names, tmp_path):
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"prompt": [f"{index}"] * (index + 1)}), tmp_path / name)
    assert len(load_craft_dataset(tmp_path)) == sum(range(1, len(names) + 1))
    assert len(load_craft_dataset(tmp_path / names[0])) == 1


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet", "validation.parquet", "test.parquet"],
        ["default/train/0000.parquet", "default/test/0000.parquet"],
        ["train/a.parquet", "test.parquet", "eval-00000-of-00001.parquet"],
    ],
)
def test_test_data_is_not_trained_on(names, tmp_path, caplog):
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"prompt": [f"{index}"] * (index + 1)}), tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert load_craft_dataset(tmp_path)["prompt"][:] == ["0"]
    assert "reads the split train and leaves out the" in caplog.text


def test_a_picture_beside_tables_is_a_preview(tmp_path, caplog):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"prompt": ["x", "y"]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    save_images(tmp_path, "assets/preview.png")
    with caplog.at_level(logging.WARNING):
        assert load_craft_dataset(tmp_path)["prompt"][:] == ["x", "y"]
    assert "leaves out 1 pictures without captions" in caplog.text
    (tmp_path / "assets" / "preview.txt").write_text("a picture to train on")
    assert load_craft_dataset(tmp_path)["text"][:] == ["a picture to train on"]


def test_a_table_of_metadata_beside_tables_is_not_asked_for_pictures(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"prompt": ["x", "y"]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "metadata.csv").write_text("key,value\na,b\n")
    assert load_craft_dataset(tmp_path)["prompt"][:] == ["x", "y"]


def test_home_is_understood_by_all_readers(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"prompt": "x"}')
    assert load_craft_dataset("~/data")["prompt"][:] == ["x"]


def test_words_of_a_csv_stay_as_they_are(tmp_path):
    texts = ["null", "None", "NA", "nan", "", "007"]
    save_images(tmp_path, *(f"{index}.png" for index in range(len(texts))))
    rows = [f"{index}.png,{text},{index}.5" for index, text in enumerate(texts)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,advantage", *rows]))
    dataset = load_craft_dataset(tmp_path)
    reds = [image.getpixel((0, 0))[0] for image in dataset["image"]]
    assert [dataset["text"][reds.index(index)] for index in range(len(texts))] == texts
    assert sorted(dataset["advantage"]) == [index + 0.5 for index in range(len(texts))]


def test_captions_that_are_numbers_are_text(tmp_path):
    save_images(tmp_path, "deep/a.png")
    (tmp_path / "deep" / "metadata.csv").write_text("file_name,text\na.png,0\n")
    assert load_craft_dataset(tmp_path)["text"][:] == ["0"]


def test_a_caption_in_another_encoding_is_named(tmp_path):
    save_images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("größe", encoding="cp1252")
    with pytest.raises(UserError, match=r"^--train_data_dir: expected UTF-8 in .*a\.txt, found byte 0xf6 at 2; save"):
        load_craft_dataset(tmp_path, flag="--train_data_dir")


def test_pictures_that_pillow_does_not_read_are_counted(tmp_path, caplog):
    save_images(tmp_path, "a.png")
    for name in ("b.heic", "c.HEIC", "d.avif"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert len(load_craft_dataset(tmp_path)) == 1
    assert "leaves out 3 pictures that cannot be read, such as b.heic" in caplog.text


def test_pairs_as_a_folder_of_images_are_whole(tmp_path, caplog):
    save_images(tmp_path, "a.png", "b.png")
    row = {"image_0_file_name": "a.png", "image_1_file_name": "b.png", "prompt": "x", "label_0": 1}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with caplog.at_level(logging.WARNING):
        assert len(load_craft_dataset(tmp_path)) == 1
    assert not [record for record in caplog.records if record.name.startswith("diffusers_craft")]


def test_many_pictures_are_few_patterns(tmp_path, monkeypatch):
    """`datasets` compares each pattern with every file, and slowly where the path has brackets."""
    asked = []
    monkeypatch.setattr(local, "load_dataset", lambda kind, data_files, **_: asked.extend(data_files["train"]))
    save_images(tmp_path / "[v2]", *(f"{index}.png" for index in range(20)), "a.JPG")
    (tmp_path / "[v2]" / "metadata.jsonl").write_text("{}")
    with pytest.raises(AttributeError):
        load_craft_dataset(tmp_path / "[v2]")
    assert sorted(pattern.rsplit("/", 1)[-1] for pattern in asked) == ["*.JPG", "*.png", "metadata.jsonl"]


@pytest.mark.parametrize("head", [": [broken", "1: x", "- x"])
def test_a_readme_that_is_no_card_is_notes(head, tmp_path):
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\nnotes")
    assert len(load_craft_dataset(tmp_path)) == 1
    with pytest.raises(UserError, match="^--dataset_config_name: expected none for a folder .*, found 'large'$"):
        load_craft_dataset(tmp_path, "large")


def test_files_named_as_splits_are_splits(tmp_path, caplog):
    for name, rows in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("test-00000-of-00001", 5)):
        pq.write_table(pa.table({"prompt": ["x"] * rows}), tmp_path / f"{name}.parquet")
    with caplog.at_level(logging.WARNING):
        assert len(load_craft_dataset(tmp_path)) == 3
    assert "reads the split train and leaves out the test" in caplog.text
    assert len(load_craft_dataset(tmp_path, split="test")) == 5


@pytest.mark.parametrize("as_dict", [False, True])
def test_what_save_to_disk_wrote_is_read(as_dict, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["x", "y"]})
    (DatasetDict({"train": dataset}) if as_dict else dataset).save_to_disk(tmp_path / "saved")
    assert load_craft_dataset(tmp_path / "saved")["prompt"][:] == ["x", "y"]


def test_tables_that_do_not_fit_each_other_are_one_line_with_the_cause(tmp_path):
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(
        UserError, match="^--train_data_dir: expected a Hub dataset, .*column names don't match"
    ) as error:
        load_craft_dataset(tmp_path, flag="--train_data_dir")
    assert "\n" not in str(error.value)
    save_images(tmp_path / "images", "a.png")
    (tmp_path / "images" / "metadata.jsonl").write_text('{"file_name": "/elsewhere/b.png", "text": "x"}')
    with pytest.raises(UserError, match="expected a Hub dataset, .* found|row 0 .*/elsewhere/b.png") as error:
        list(read_pictures(load_craft_dataset(tmp_path / "images"), "image"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"bytes": png(), "path": None}] * 2),
        pa.array([{"bytes": png()}] * 2),
        pa.array([png()] * 2),
        pa.array([png()] * 2, pa.large_binary()),
    ],
    ids=["struct", "struct of bytes", "binary", "large binary"],
)
def test_pictures_of_other_tools_tables(column, tmp_path):
    pq.write_table(pa.table({"image": column}), tmp_path / "data.parquet")
    dataset = as_pictures(load_craft_dataset(tmp_path), "image")
    assert [image.size for image in read_pictures(dataset, "image")] == [(8, 8)] * 2


def test_pictures_named_by_path(tmp_path):
    save_images(tmp_path / "images", "a.png", "b.png")
    table = pa.table({"image": [str(tmp_path / "images" / f"{name}.png") for name in "ab"]})
    pq.write_table(table, tmp_path / "x.parquet")
    dataset = as_pictures(load_craft_dataset(tmp_path / "x.parquet"), "image")
    assert len(list(read_pictures(dataset, "image"))) == 2


@pytest.mark.parametrize("text", ["A" * 5000, "a caption", None])
def test_texts_of_any_length_are_no_paths(text):
    assert as_pictures(Dataset.from_dict({"image": [text, "x"]}), "image").features["image"].dtype == "string"


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(2, axis=0)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_greys_are_scaled_and_not_cut(mode, tmp_path):
    image = Image.fromarray(RAMP).convert("I") if mode == "I" else Image.fromarray(RAMP)
    if mode == "I;16B":
        image = Image.frombytes("I;16B", image.size, RAMP.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(as_rgb(image))[0, :, 0], np.arange(256))


def test_floats_and_other_integers_are_refused_by_row():
    for image in (Image.fromarray(np.ones((2, 2), np.float32)), Image.fromarray(np.full((2, 2), 70000, np.int32))):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        dataset = as_pictures(Dataset.from_dict({"image": [png(), buffer.getvalue()]}), "image")
        with pytest.raises(UserError, match=r"^--image_column: .* row 1.*expected 8 or 16 bits"):
            list(read_pictures(dataset, "image"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_colour_hides_there(mode):
    image = Image.new("RGBA", (4, 1), (10, 10, 10, 255))
    image.putpixel((1, 0), (200, 200, 200, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "P":
        image = Image.new("P", (4, 1), 0)
        image.putpalette([10, 10, 10, 200, 200, 200])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = 1
    pixels = np.asarray(as_rgb(image.convert(mode)))[0]
    assert pixels[0].tolist() == [10] * 3 and pixels[1].tolist() == [255] * 3
    assert mode == "P" or pixels[2].tolist() == [127] * 3


def test_an_opaque_picture_keeps_its_bytes():
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(as_rgb(Image.fromarray(values).convert("RGBA"))), values)


@pytest.mark.parametrize("size", [(20000, 1), (3, 4000), (700, 60)])
@pytest.mark.parametrize("center", [True, False])
def test_thin_pictures_are_cut_before_they_are_scaled(size, center, monkeypatch):
    """As if scaled as a whole, which needs gigabytes for them."""
    resize, scaled = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, to, *a, **k: (scaled.append(to), resize(image, to, *a, **k))[1]
    )
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels, original, (top, left) = crop_image(Image.fromarray(values), 64, center, seed=12345)
    assert pixels.shape == (64, 64, 3) and original == (size[1], size[0]) and scaled == [(64, 64)]
    if size == (700, 60):
        scale = 64 / 60
        whole = Image.fromarray(values).resize((round(700 * scale), 64), Image.Resampling.LANCZOS)
        expected = np.asarray(whole)[top : top + 64, left : left + 64].astype(int)
        assert np.abs(pixels - expected).max() <= 1 and (top, left)[0] == 0


def test_a_folder_without_pictures_says_so(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.heic", "text": "x"}')
    with pytest.raises(UserError, match="found no picture"):
        load_craft_dataset(tmp_path, flag="--train_data_dir")


def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_data(tmp_path):
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="^--cache_dir: expected a folder that can be written, found '/proc/nothing"):
        load_craft_dataset(tmp_path, cache_dir="/proc/nothing")
    shutil.rmtree(tmp_path)
