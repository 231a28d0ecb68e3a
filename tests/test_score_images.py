# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`score_images.py`: every kind of source, the same table by one rank and two, resuming, refusals."""

import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import diffusers_craft
from diffusers_craft import RewardSettings, load_reward, open_images
from diffusers_craft.core import workdir
from diffusers_craft.scripts import run_script
from diffusers_craft.tiny import reward_checkpoint


SCRIPT = Path(__file__).parents[1] / "examples" / "craft" / "score_images.py"
CAPTIONS = [f"{count} {color} circles" for count in ("two", "three") for color in ("red", "blue", "green")]
NUM_IMAGES = 7
TINY = ["--rewards", "pickscore", "aesthetic", "--reward_checkpoint", "pickscore=tiny"]
TINY += ["--reward_checkpoint", "aesthetic=tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score_images_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers_craft.scoring.table.ROWS_PER_SHARD", 3)
        yield module


@pytest.fixture(scope="module")
def names() -> list[str]:
    """Sorted, as a folder is read; some in a subfolder."""
    return sorted(f"{'sub/' if i % 3 == 0 else ''}{i}.{'jpg' if i % 2 else 'png'}" for i in range(NUM_IMAGES))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [CAPTIONS[i % len(CAPTIONS)] for i in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def files(names, make_images) -> list[bytes]:
    encoded = []
    for name, image in zip(names, make_images(NUM_IMAGES)):
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if name.endswith("png") else "JPEG")
        encoded.append(buffer.getvalue())
    return encoded


@pytest.fixture
def folder(tmp_path, names, files) -> Path:
    """Images without captions."""
    for name, data in zip(names, files):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "images"


@pytest.fixture
def captioned(folder, names, prompts) -> Path:
    lines = [json.dumps({"file_name": name, "text": prompt}) for name, prompt in zip(names, prompts)]
    (folder / "metadata.jsonl").write_text("\n".join(reversed(lines)))
    return folder


@pytest.fixture(scope="module")
def expected(files, prompts) -> dict[str, np.ndarray]:
    """The rewards' own scores, one image at a time."""
    images = [Image.open(io.BytesIO(data)) for data in files]
    found = {}
    for name in ("pickscore", "aesthetic"):
        reward = load_reward(name, reward_checkpoint(name), device="cpu")
        found[name] = np.concatenate([reward.score([p], [image]) for p, image in zip(prompts, images)])
    return found


def run(script, *arguments: object) -> None:
    run_script(script.main, script.parse_args([*map(str, arguments), *TINY]))


def error_of(script, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_script(script.main, script.parse_args(list(map(str, arguments))))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def check_table(table: pa.Table, names: list[str], prompts: list[str], expected: dict[str, np.ndarray]) -> None:
    assert table.column_names == ["image", "prompt", "pickscore", "aesthetic"]
    assert table["image"].to_pylist() == names and table["prompt"].to_pylist() == prompts
    for name, scores in expected.items():
        np.testing.assert_allclose(table[name].to_numpy(), scores, rtol=1e-4, atol=1e-4)


def test_a_reward_that_reads_no_captions_needs_none(script, folder, files, tmp_path, names, expected, capsys, caplog):
    """A folder, and Parquet files without such a column or with an empty cell."""
    alone = ["--rewards", "aesthetic", "--reward_checkpoint", "aesthetic=tiny", "--device", "cpu"]
    rows = {"image": files, "prompt": [*["a"] * (len(files) - 1), None]}
    for name, columns in (("bare", ["image"]), ("holes", ["image", "prompt"])):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(rows).select(columns), tmp_path / name / "x.parquet")
    for source in (folder, tmp_path / "bare", tmp_path / "holes"):
        caplog.clear()
        output = tmp_path / f"out-{source.name}"
        script.main(script.parse_args(["--images", str(source), "--output_dir", str(output), *alone]))
        table = pq.read_table(output / "scores.parquet")
        np.testing.assert_allclose(table["aesthetic"].to_numpy(), expected["aesthetic"], rtol=1e-4, atol=1e-4)
        assert set(table["prompt"].to_pylist()) == {""}
        assert [m for m in caplog.messages if m.endswith("scored without, for aesthetic reads no captions")]
        capsys.readouterr()
        both = ["--images", source, "--output_dir", tmp_path / "both", *TINY]
        assert "caption" in error_of(script, capsys, *both)
    capsys.readouterr()
    asked = ["--images", folder, "--output_dir", tmp_path / "asked", "--captions", tmp_path / "no.csv", *alone]
    assert "--captions: expected a .csv" in error_of(script, capsys, *asked), "what is asked for is needed"


def test_captions_are_kept_where_they_are(script, captioned, tmp_path, prompts):
    alone = ["--rewards", "aesthetic", "--reward_checkpoint", "aesthetic=tiny", "--device", "cpu"]
    script.main(script.parse_args(["--images", str(captioned), "--output_dir", str(tmp_path / "out"), *alone]))
    assert pq.read_table(tmp_path / "out" / "scores.parquet")["prompt"].to_pylist() == prompts


def test_an_image_folder_with_metadata(script, captioned, tmp_path, names, prompts, expected, capsys):
    output = tmp_path / "out"
    run(script, "--images", captioned, "--output_dir", output)
    table = pq.read_table(output / "scores.parquet")
    check_table(table, names, prompts, expected)
    sources = json.loads(table.schema.metadata[b"rewards"])
    assert sources["pickscore"]["unit"] == "logit_scale.exp() * cosine"
    record = json.loads((output / "score_images.json").read_text())
    assert record["reward_sources"] == sources and record["options"]["images"] == str(captioned)
    summary = record["summary"]["aesthetic"]
    assert summary["mean"] == pytest.approx(expected["aesthetic"].mean(), rel=1e-5)
    assert summary["median"] == pytest.approx(np.median(expected["aesthetic"]), rel=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["reward", "images", "mean", "median"]
    assert lines[2].split() == ["aesthetic", "7", f"{summary['mean']:.5g}", f"{summary['median']:.5g}"]


def test_the_extension_decides_over_the_format(script, captioned, tmp_path, names, expected):
    tables = [tmp_path / "a.csv", tmp_path / "b.parquet"]
    run(script, "--images", captioned, "--output_dir", tmp_path / "out", "--output_file", *tables)
    with open(tables[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names
    np.testing.assert_allclose([float(row["pickscore"]) for row in rows], expected["pickscore"], rtol=1e-4, atol=1e-4)
    assert pq.read_table(tables[1])["pickscore"].to_pylist() == [np.float32(row["pickscore"]) for row in rows]


def test_captions_beside_the_images_in_a_file_or_one_prompt(script, folder, tmp_path, names, prompts):
    def found(**options: object) -> list[str]:
        source = open_images(str(folder), **options)
        assert [row.prompt for row in source.read_rows(range(NUM_IMAGES))] == source.prompts()
        return source.prompts()

    table = tmp_path / "captions.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(
            [["file_name", "text", "german"], *([n, p, f"{p}, bitte"] for n, p in zip(names, prompts))]
        )
    assert found(captions=str(table)) == prompts
    assert found(captions=str(table), caption_column="german") == [f"{prompt}, bitte" for prompt in prompts]
    assert found(prompt="a cat") == ["a cat"] * NUM_IMAGES
    for name, prompt in zip(names, prompts):
        (folder / name).with_suffix(".txt").write_text(f"{prompt}\n")
    assert found() == prompts


@pytest.mark.parametrize("kind", ["struct", "binary"])
@pytest.mark.parametrize("rows_per_group", [2, 100])
def test_parquet_files(script, tmp_path, files, prompts, expected, kind: str, rows_per_group: int):
    """Of several row groups, in one file or in a folder of two."""
    images = [{"bytes": data, "path": None} for data in files] if kind == "struct" else files
    table = pa.table({"image": images, "caption": prompts, "other": range(NUM_IMAGES)})
    (tmp_path / "data").mkdir()
    for part, rows in enumerate((table.slice(0, 4), table.slice(4))):
        pq.write_table(rows, tmp_path / "data" / f"{part}.parquet", row_group_size=rows_per_group)
    run(script, "--images", tmp_path / "data", "--output_dir", tmp_path / "out")
    check_table(pq.read_table(tmp_path / "out" / "scores.parquet"), [f"row {i}" for i in range(7)], prompts, expected)
    single = open_images(str(tmp_path / "data" / "1.parquet"))
    assert [row.data for row in single.read_rows(range(1, 3))] == files[5:]


def test_a_dataset_of_the_hub(script, monkeypatch, tmp_path, files, prompts, expected):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": data, "path": None} for data in files]
    dataset = datasets.Dataset.from_dict({"image": images, "text": prompts}, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: asked.append((name, split)) or dataset)
    run(script, "--images", "org/pictures:test", "--output_dir", tmp_path / "out", "--dataloader_num_workers", 1)
    assert asked == [("org/pictures", "test")]
    check_table(pq.read_table(tmp_path / "out" / "scores.parquet"), [f"row {i}" for i in range(7)], prompts, expected)


def test_a_second_run_scores_only_what_is_missing(script, captioned, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(script, "--images", captioned, "--output_dir", output)
    table = (output / "scores.parquet").read_bytes()
    lost = output / "scores" / "pickscore" / "part-00001.parquet"
    shard = lost.read_bytes()
    lost.unlink()
    (output / "scores.parquet").unlink()
    asked = []
    real = diffusers_craft.rewards.pickscore.PickScoreReward._score
    monkeypatch.setattr(
        "diffusers_craft.rewards.pickscore.PickScoreReward._score",
        lambda self, prompts, images: asked.append(len(images)) or real(self, prompts, images),
    )
    monkeypatch.setattr("diffusers_craft.rewards.aesthetic.AestheticReward._score", None)
    run(script, "--images", captioned, "--output_dir", output)
    assert asked == [3] and lost.read_bytes() == shard
    assert (output / "scores.parquet").read_bytes() == table


def test_other_images_are_refused(script, captioned, tmp_path, names, capsys):
    run(script, "--images", captioned, "--output_dir", tmp_path / "out")
    capsys.readouterr()
    (captioned / names[2]).write_bytes((captioned / names[3]).read_bytes())
    message = error_of(script, capsys, "--images", captioned, "--output_dir", tmp_path / "out", *TINY)
    assert "was built with other options: --images (7 images, hash" in message.replace('"', "")


def test_a_damaged_image_has_no_score_and_is_counted(script, captioned, tmp_path, names, capsys, caplog):
    (captioned / names[1]).write_bytes(b"no image")
    run(script, "--images", captioned, "--output_dir", tmp_path / "out")
    scores = pq.read_table(tmp_path / "out" / "scores.parquet")["aesthetic"].to_pylist()
    assert [i for i, score in enumerate(scores) if score is None] == [1]
    assert caplog.messages == [f"image of {names[1]} cannot be read and gets no score (no image of a known format)"]
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "1 of 7 images have no score: they cannot be read, or a reward gave none"
    )


class Abstaining:
    """Knows red pictures only."""

    abstains = True

    def score(self, prompts: list[str], images: list[Image.Image]) -> np.ndarray:
        return np.array([1.0 if "red" in prompt else np.nan for prompt in prompts])


def test_images_of_which_a_reward_says_nothing_are_counted(script, captioned, tmp_path, prompts, capsys):
    arguments = ["--images", captioned, "--output_dir", tmp_path / "out", "--rewards", f"{__name__}:Abstaining"]
    run_script(script.main, script.parse_args([*map(str, arguments), "--device", "cpu"]))
    silent = sum("red" not in prompt for prompt in prompts)
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"{silent} of 7 images have no score: they cannot be read, or a reward gave none"
    )


def test_one_flag_takes_several_checkpoints_and_backends(script):
    arguments = ["--images", "x", "--output_dir", "y", "--reward_checkpoint", "pickscore=tiny", "aesthetic=b"]
    arguments += ["--reward_backend", "hps_v2.1=package", "image_reward=package", "--reward_checkpoint", "hps_v2.1=c"]
    args = script.parse_args(arguments)
    settings = RewardSettings.from_args(args, ["pickscore", "aesthetic", "hps_v2.1", "image_reward"])
    assert settings.checkpoints == {"pickscore": "tiny", "aesthetic": "b", "hps_v2.1": "c"}
    assert settings.backends == {"hps_v2.1": "package", "image_reward": "package"}


@pytest.mark.parametrize("damage", ["swapped", "cut", "infinite"])
def test_damaged_scores_are_named_and_mended(script, captioned, tmp_path, capsys, damage):
    where = ("--images", captioned, "--output_dir", tmp_path / "out")
    run(script, *where)
    first, second = (tmp_path / "out" / "scores" / "aesthetic" / f"part-0000{shard}.parquet" for shard in range(2))
    before, table = [first.read_bytes(), second.read_bytes()], tmp_path / "out" / "scores.parquet"
    scores = table.read_bytes()
    if damage == "swapped":
        first.write_bytes(before[1])
        second.write_bytes(before[0])
    elif damage == "cut":
        first.write_bytes(before[0][:-20])
    else:
        columns = pq.read_table(first).replace_schema_metadata()
        pq.write_table(columns.set_column(1, columns.schema.field(1), pa.array([1, np.inf, 0], pa.float32())), first)
    words = {
        "swapped": "the rows 0 to 2 in order",
        "cut": "a Parquet file",
        "infinite": "finite scores, found inf in row 1",
    }
    capsys.readouterr()
    found = error_of(script, capsys, *where, *TINY)
    assert found.startswith(f"{first}: expected {words[damage]}") and found.endswith(
        "the command that wrote it makes it anew"
    )
    for path in (first, second):
        path.unlink()
    run(script, *where)
    assert [first.read_bytes(), second.read_bytes()] == before and table.read_bytes() == scores


def test_two_ranks_make_the_same_bytes(script, captioned, tmp_path, monkeypatch):
    """One process with all rewards in memory; two ranks, one after the other, one reward at a time and with workers."""
    run(script, "--images", captioned, "--output_dir", tmp_path / "one", "--reward_residency", "together")
    arguments = ["--images", captioned, "--output_dir", tmp_path / "two", "--dataloader_num_workers", "1"]
    monkeypatch.setattr(workdir, "rank_and_world", lambda: (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(workdir.Stage, "finish", lambda stage: None)  # where it would wait for the first rank
        run(script, *arguments)
    assert not (tmp_path / "two" / "scores.parquet").exists()
    assert [path.name for path in (tmp_path / "two" / "scores" / "pickscore").glob("part-*")] == ["part-00001.parquet"]
    monkeypatch.setattr(workdir, "rank_and_world", lambda: (0, 2))
    run(script, *arguments)

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys() and len([name for name in one if "part-" in name]) == 6
    assert [name for name in one if one[name] != two[name]] == ["score_images.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--images", "nowhere.parquet"],
            "--images: expected a folder, a Parquet file or a dataset of the Hub, found nothing",
        ),
        (
            ["--images", "notes.txt"],
            "--images: expected a folder, a Parquet file or a dataset of the Hub, found the file",
        ),
        (
            ["--images", "empty"],
            "--images: expected images (.png, .jpg, .jpeg, .webp, .bmp, .gif, .tif, .tiff) in empty",
        ),
        (
            ["--images", "images"],
            "--images: expected a caption for 1.jpg in its text file, found none; give --captions FILE",
        ),
        (
            ["--images", "images", "--captions", "no.csv"],
            "--captions: expected a .csv, .jsonl or .parquet file, found 'no.csv'",
        ),
        (
            ["--images", "images", "--captions", "bad.csv"],
            "--captions: expected a column file_name in bad.csv, found none",
        ),
        (["--images", "images", "--captions", "bad.jsonl"], "--captions: expected JSON in line 2 of bad.jsonl, found"),
        (
            ["--images", "images", "--captions", "few.csv"],
            "--images: expected a caption for 2.png in few.csv, found none",
        ),
        (
            ["--images", "images", "--captions", "few.csv", "--prompt", "x"],
            "--captions: expected without --prompt and with",
        ),
        (
            ["--images", "images", "--captions", "few.csv", "--caption_column", "german"],
            "--caption_column: expected one of the columns of few.csv (prompt), found 'german'",
        ),
        (
            ["--images", "x.parquet"],
            "--image_column: expected the column of images in x.parquet, found no 'image' among a, b",
        ),
        (
            ["--images", "y.parquet", "--image_column", "picture"],
            "--caption_column: expected the column of y.parquet with the captions (b), found none named prompt, caption, text",
        ),
        (
            ["--images", "x.parquet", "--image_column", "a", "--prompt", "x"],
            "--image_column: expected encoded images in 'a' of x.parquet, found int64",
        ),
        (["--images", "bytes.parquet"], "--images: expected a Parquet file, found other bytes in bytes.parquet"),
        (
            ["--images", "images", "--prompt", "x", "--output_file", "a.xlsx"],
            "--output_file: expected a name that ends in",
        ),
        (
            ["--images", "images", "--prompt", "x", "--rewards", "beauty"],
            "--rewards: expected one of hps_v2.1, pickscore,",
        ),
        (
            ["--images", "images", "--prompt", "x", "--reward_batch_size", "0"],
            "--reward_batch_size: expected at least 1",
        ),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(script, folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / "bytes.parquet").write_bytes(b"no table")
    (tmp_path / "bad.csv").write_text("name,prompt\n1.jpg,a cat\n")
    (tmp_path / "few.csv").write_text("file_name,prompt\n1.jpg,a cat\n")
    (tmp_path / "bad.jsonl").write_text('{"file_name": "1.jpg", "text": "a"}\n{"file_name"\n')
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"picture": [b"x"], "b": ["x"]}), tmp_path / "y.parquet")
    rewards = [] if "--rewards" in arguments else TINY
    assert error_of(script, capsys, *arguments, "--output_dir", "out", *rewards).startswith(message)


def test_flags_are_frozen(script):
    flags = vars(script.parse_args(["--images", "i", "--output_dir", "o"]))
    assert sorted(flags) == sorted(
        "images image_column caption_column captions prompt rewards reward_checkpoint reward_backend reward_batch_size"
        " reward_precision reward_residency dataloader_num_workers output_dir output_file device".split()
    )
