# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The training set: columns, round trip through Parquet, and what loading refuses."""

import errno
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from diffusers_craft import UserError, load_craft_dataset
from diffusers_craft.core.records import CANDIDATE_SCHEMA, SCORE_SCHEMA, pack_latent
from diffusers_craft.data.dataset import assemble_dataset, save_dataset, take_rows
from diffusers_craft.scripts import WorkDir


COLUMNS = ["image", "prompt", "refined_prompt", "group", "variant", "seed", "hps_v2.1", "aesthetic"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def candidates(tiny_images: list[Image.Image]) -> pa.Table:
    rows = [
        {
            "row": i,
            "group": i // 4,
            "variant": i % 4,
            "prompt": f"prompt {i // 4}",
            "refined_prompt": f"prompt {i // 4}, v{i}",
            "seed": 2**62 + i,
            "image": {"bytes": png(image), "path": None},
            "valid": True,
            "latent": pack_latent(np.full((4, 2, 2), i / 8, np.float16)),
        }
        for i, image in enumerate(tiny_images)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA)


def make_dataset(candidates: pa.Table):
    k = len(candidates)
    scores = {"hps_v2.1": np.arange(k) / 7, "aesthetic": np.arange(k) - 1.0}
    scores |= {"reward": np.linspace(1, 0, k), "advantage": np.linspace(-1, 1, k)}
    return assemble_dataset(candidates, scores, "a VAE")


def without_latents(candidates: pa.Table) -> pa.Table:
    index = candidates.column_names.index("latent")
    return candidates.set_column(index, "latent", pa.nulls(len(candidates), pa.binary()))


def test_columns_and_values(candidates: pa.Table, tiny_images: list[Image.Image]) -> None:
    dataset = make_dataset(candidates)
    assert dataset.column_names == [*COLUMNS, "reward", "advantage", "latent", "latent_vae"]
    row = dataset[5]
    assert row["image"].tobytes() == tiny_images[5].tobytes()
    assert (row["prompt"], row["refined_prompt"]) == ("prompt 1", "prompt 1, v5")
    assert (row["group"], row["variant"], row["seed"]) == (1, 1, 2**62 + 5)
    assert row["hps_v2.1"] == np.float32(5 / 7) and row["advantage"] == np.float32(-1 + 10 / 7)
    assert dataset.features["latent"].dtype == "float16" and dataset.features["latent"].shape == (4, 2, 2)
    assert np.array_equal(row["latent"], np.full((4, 2, 2), 5 / 8))


def test_no_latent_column_without_latents(candidates: pa.Table) -> None:
    assert make_dataset(without_latents(candidates)).column_names == [*COLUMNS, "reward", "advantage"]


@pytest.mark.parametrize("rows_per_file", [500, 3])
def test_round_trip(candidates: pa.Table, tmp_path: Path, monkeypatch, rows_per_file: int) -> None:
    monkeypatch.setattr("diffusers_craft.data.dataset.ROWS_PER_FILE", rows_per_file)
    dataset = make_dataset(candidates)
    folder = save_dataset(dataset, tmp_path / "work")
    assert folder == tmp_path / "work" / "dataset"
    sources = [
        load_craft_dataset(tmp_path / "work"),
        load_craft_dataset(str(folder)),
        load_dataset(str(folder), split="train"),
        load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train"),
    ]
    for loaded in sources:
        assert loaded.features == dataset.features
        assert [row["image"].tobytes() for row in loaded] == [row["image"].tobytes() for row in dataset]
        for name in ("prompt", "seed", "hps_v2.1", "reward", "latent", "latent_vae"):
            assert loaded[name][:] == dataset[name][:]


def test_saving_again_replaces_the_whole_set_with_the_same_bytes(candidates: pa.Table, tmp_path: Path) -> None:
    folder = save_dataset(make_dataset(candidates), tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_dataset(make_dataset(candidates.slice(0, 2)), tmp_path)
    assert load_craft_dataset(tmp_path)["group"][:] == [0, 0]
    (tmp_path / "dataset.new").mkdir()  # left by a kill
    save_dataset(make_dataset(candidates), tmp_path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("name", ["dataset", "dataset.new", "dataset.old", "report"])
@pytest.mark.parametrize("kind", ["a file", "a symbolic link"])
def test_what_stands_in_the_way_of_a_dataset_is_named_and_stays(candidates, tmp_path, name, kind):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("")
    place = tmp_path / "out" / name
    place.parent.mkdir()
    if kind == "a file":
        place.write_text("mine")
    else:  # one that leads nowhere is refused for the report, too
        place.symlink_to(tmp_path / ("nowhere" if name == "report" else "elsewhere"))
    with pytest.raises(UserError) as error:
        save_dataset(make_dataset(candidates), tmp_path / "out")
    assert str(error.value) == f"--output_dir: expected a folder or nothing at {place}, found {kind}; move it away"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]


def test_a_report_may_lie_behind_a_link(candidates, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report").symlink_to(tmp_path / "elsewhere")
    assert save_dataset(make_dataset(candidates), tmp_path).is_dir()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_earlier_dataset(candidates, tmp_path, monkeypatch, code):
    folder = save_dataset(make_dataset(candidates.slice(0, 2)), tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(dataset, path):
        path.write_bytes(b"PAR1")
        raise OSError(code, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "to_parquet", full)
        with pytest.raises(UserError, match=r"^disk full: expected .*B free for dataset/, found .*B in .*$"):
            save_dataset(make_dataset(candidates), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    save_dataset(make_dataset(candidates), tmp_path)
    assert len(load_craft_dataset(tmp_path)) == len(candidates)


@pytest.mark.parametrize("rows", [[6, 0, 3, 2, 5], [4], [], list(range(7))])
def test_take_rows_across_shards(tmp_path: Path, rows: list[int]) -> None:
    stage = WorkDir(tmp_path).stage("scores", {}, 7, 3)
    scores = np.arange(7, dtype=np.float32) * 10
    for shard in range(stage.num_shards):
        index = np.array(stage.rows(shard))
        stage.write(shard, pa.table({"row": index, "score": scores[index]}, schema=SCORE_SCHEMA))
    taken = take_rows(stage, rows)
    assert taken["row"].to_pylist() == rows
    assert taken["score"].to_pylist() == [10.0 * row for row in rows]


def test_folder_of_images_with_metadata(tiny_images: list[Image.Image], tmp_path: Path) -> None:
    lines = []
    for i, image in enumerate(tiny_images[:2]):
        image.save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "prompt": f"text {i}", "advantage": i - 0.5}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = load_craft_dataset(tmp_path)
    assert dataset["prompt"][:] == ["text 0", "text 1"] and dataset["advantage"][:] == [-0.5, 0.5]
    assert dataset[1]["image"].convert("RGB").tobytes() == tiny_images[1].tobytes()


def test_refuses_an_unfinished_build(tmp_path: Path) -> None:
    (tmp_path / "candidates").mkdir()
    with pytest.raises(ValueError) as error:
        load_craft_dataset(tmp_path)
    assert str(error.value) == f"--dataset_name: expected a finished build, found {tmp_path} without dataset/"


@pytest.mark.parametrize("name", ["nobody/has-this", "./not-there", ""])
def test_refuses_what_is_no_dataset(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load_craft_dataset(name or tmp_path)  # an empty folder
    assert str(error.value).startswith("--dataset_name: expected a Hub dataset, a folder written by ")
    assert f"found {name or str(tmp_path)!r}" in str(error.value) and "\n" not in str(error.value)


def test_refuses_an_unknown_split(candidates: pa.Table, tmp_path: Path) -> None:
    save_dataset(make_dataset(candidates), tmp_path)
    with pytest.raises(ValueError, match="no files of the split test, only of train"):
        load_craft_dataset(tmp_path, split="test")
