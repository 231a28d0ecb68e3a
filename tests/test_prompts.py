# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompts from every kind of source, the seeded sample, and one clear line for every bad input."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusers_craft import load_prompt_set, load_prompts, tiny


ROWS = ["  a red circle ", "two stars", "", "a red circle", 'a "blue", small cross', "étoile\u2028verte", "   "]
EXPECTED = ["a red circle", "two stars", 'a "blue", small cross', "étoile\u2028verte"]


def write(folder, suffix: str, column: str = "prompt"):
    path = folder / f"prompts{suffix}"
    records = [{"id": i, column: row} for i, row in enumerate(ROWS)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif suffix == ".csv":
        lines = ['"{}","{}"'.format(r["id"], r[column].replace('"', '""')) for r in records]
        path.write_text(f"id,{column}\n" + "\n".join(lines) + "\n", encoding="utf-8-sig")
    elif suffix == ".json":
        path.write_text(json.dumps(records))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n", encoding="utf-8")
    else:
        path.write_text("\r\n".join(ROWS), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_distinct_prompts(tmp_path, suffix):
    assert load_prompts(write(tmp_path, suffix)) == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_missing_column_names_the_columns(tmp_path, suffix):
    path = write(tmp_path, suffix, "caption")
    assert load_prompts(path, "caption") == EXPECTED
    with pytest.raises(ValueError) as error:
        load_prompts(path)
    assert str(error.value) == f"--prompt_column: expected a column of {path} (id, caption), found 'prompt'"


def test_bare_lists_and_null_values(tmp_path):
    (tmp_path / "a.json").write_text('["one", "two", "one"]')
    assert load_prompts(tmp_path / "a.json") == ["one", "two"]
    (tmp_path / "b.jsonl").write_text('{"prompt": null}\n{"other": 1}\n{"prompt": "one"}\n')
    assert load_prompts(tmp_path / "b.jsonl") == ["one"]


def test_local_dataset_folder(tmp_path):
    write(tmp_path, ".parquet")
    assert load_prompts(tmp_path) == EXPECTED
    assert load_prompts(f"{tmp_path}:train") == EXPECTED
    with pytest.raises(ValueError, match=r"--prompt_column: expected a column of .* \(id, prompt\), found 'text'"):
        load_prompts(tmp_path, "text")


@pytest.fixture
def configs(tmp_path):
    """A dataset folder with two configurations, neither of which is the default."""
    names = {"large_text": "train", "2m_first": "dev"}
    for name, split in names.items():
        pq.write_table(pa.table({"prompt": [f"{name} {i}" for i in range(3)]}), tmp_path / f"{name}.parquet")
    files = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}.parquet\n"
        for name, split in names.items()
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    return tmp_path


def test_a_configuration_is_chosen_by_name(configs):
    assert load_prompts(f"{configs}:2m_first:dev")[0] == "2m_first 0"
    assert load_prompts(f"{configs}:large_text:") == load_prompts(f"{configs}:large_text:train")
    assert load_prompts(f"{configs}:large_text:train[1:2]") == ["large_text 1"]


@pytest.mark.parametrize(("rest", "found"), [("", "no choice of"), (":dev", "no choice"), (":tiny:dev", "'tiny'")])
def test_an_error_lists_the_configurations(configs, rest, found):
    with pytest.raises(ValueError, match=f"{found}.* name one of .*large_text.* as NAME:CONFIG:SPLIT") as error:
        load_prompts(f"{configs}{rest}")
    assert "2m_first" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_may_have_colons_in_its_name(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    write(folder, ".parquet")
    assert load_prompts(folder) == load_prompts(f"{folder}:train") == EXPECTED


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_folder_of_other_formats_gives_its_prompts(tmp_path, suffix):
    write(tmp_path, suffix)
    assert load_prompts(tmp_path) == EXPECTED


def test_sample_is_seeded_ordered_nested_and_independent_of_file_order(tmp_path):
    prompts = [f"prompt {i}" for i in range(200)]
    path = tmp_path / "p.txt"
    path.write_text("\n".join(prompts))
    sample = load_prompts(path, num_prompts=50, seed=1)
    assert len(sample) == 50 and sample == sorted(sample, key=prompts.index)
    assert sample == load_prompts(path, num_prompts=50, seed=1) != load_prompts(path, num_prompts=50, seed=2)
    assert set(sample) < set(load_prompts(path, num_prompts=80, seed=1))
    assert load_prompts(path, num_prompts=200) == prompts
    path.write_text("\n".join(reversed(prompts)))
    assert sorted(load_prompts(path, num_prompts=50, seed=1)) == sorted(sample)


@pytest.mark.parametrize("num_prompts", [0, 5])
def test_sample_size_error(tmp_path, num_prompts):
    path = write(tmp_path, ".txt")
    with pytest.raises(ValueError) as error:
        load_prompts(path, num_prompts=num_prompts)
    assert str(error.value) == f"--num_prompts: expected 1 to 4 (distinct prompts in {path}), found {num_prompts}"


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"\n  \n", "--prompts: expected at least one prompt in .*a.txt, found none"),
        ("a.csv", b"", "--prompts: expected at least one prompt in .*a.csv, found none"),
        ("a.jsonl", b"", "--prompts: expected at least one prompt in .*a.jsonl, found none"),
        ("a.jsonl", b'{"prompt": "x"}\n{oops', "--prompts: expected JSON in line 2 of .*a.jsonl, found Expecting"),
        ("a.json", b'{"prompt": "x"}', "--prompts: expected a JSON list in .*a.json, found dict"),
        ("a.json", b'["x",\n3', "--prompts: expected JSON in .*a.json, found Expecting .* in line 2"),
        ("a.json", b'["x", 3]', "--prompts: expected JSON objects with a column 'prompt' in"),
        ("a.jsonl", b'{"prompt": 3}', "--prompt_column: expected text in column 'prompt' of .*a.jsonl, found 3"),
        ("a.txt", b"\xff\xfe\x00", "--prompts: expected UTF-8 in .*a.txt, found byte 0xff"),
        ("a.parquet", b"nonsense", "--prompts: expected a Parquet file, found other bytes in .*a.parquet"),
        ("a.docx", b"x", r"--prompts: expected a file \(.txt, .*\) or a dataset of the Hub, found the file .*a.docx"),
    ],
)
def test_bad_files(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text) as error:
        load_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("load", [load_prompts, load_prompt_set])
@pytest.mark.parametrize(
    ("file", "text", "lost"),
    [
        ("a.csv", 'prompt,n\na cat,1\n"",2\n,3\nNA,4\n', "2 of 4"),
        ("a.json", '[{"prompt": "a cat"}, {"prompt": null}, {"prompt": " "}, {"prompt": "NA"}]', "2 of 4"),
        ("folder/a.csv", "prompt,n\na cat,1\n,2\n,3\nNA,4\n", "2 of 4"),
        ("a.txt", "a cat\n\n \nNA\n", None),  # empty lines divide
    ],
)
def test_rows_without_a_prompt_are_counted_once(load, file, text, lost, tmp_path, caplog):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    source = str(tmp_path / file.split("/a")[0])
    found = load(source)
    assert (found if isinstance(found, list) else found.prompts) == ["a cat", "NA"]
    said = [record.getMessage() for record in caplog.records if record.name.startswith("diffusers_craft")]
    assert said == ([f"--prompts: {lost} rows of {source} have no prompt and are left out"] if lost else [])


@pytest.mark.parametrize("source", ["nowhere/prompts.txt", "./nowhere", "/nowhere/at/all", "missing.parquet"])
def test_missing_file(source):
    with pytest.raises(ValueError, match="or a dataset of the Hub, found no file at "):
        load_prompts(source)


def test_unreachable_hub_dataset():
    with pytest.raises(ValueError, match="--prompts: expected a file .* or a dataset of the Hub, found 'some/name': "):
        load_prompts("some/name:x")


def test_embedded_prompts(tmp_path, monkeypatch):
    path = write(tmp_path, ".txt")
    monkeypatch.setattr(tiny, "prompt_file", {"tiny-heldout": path}.get)
    assert load_prompts("tiny-heldout") == EXPECTED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt\na red circle, on a black background, highly detailed\n"),
        ("a.csv", 'prompt\n"hello" sign\n"welcome\ntwo green squares\na blue star\n'),
        ("a.csv", 'prompt\n"hello\n' + "two green squares\n" * 20_000),
        ("a.csv", "prompt,category\na cat,animals\na dog, a mat,animals\n"),
    ],
)
def test_prompts_are_not_cut_at_commas_nor_swallowed_by_quotes(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"^--prompts: expected .* in line \d+ of .*a.csv, found"):
        load_prompts(tmp_path / name)


def test_a_tsv_of_a_spreadsheet_and_one_without_quoting(tmp_path):
    (tmp_path / "a.tsv").write_text('prompt\tn\n"a sign that says ""STOP"""\t1\n"two\nlines"\t2\n')
    assert load_prompts(tmp_path / "a.tsv") == ['a sign that says "STOP"', "two\nlines"]
    (tmp_path / "b.tsv").write_text('Prompt\tCategory\n"Hello" on a wall\tText\na 5" disk\tText\n')
    assert load_prompts(tmp_path / "b.tsv", "Prompt") == ['"Hello" on a wall', 'a 5" disk']
    (tmp_path / "c.tsv").write_text('prompt\n"a red" wall\na red\tcircle\n')
    with pytest.raises(ValueError, match="c.tsv, found"):
        load_prompts(tmp_path / "c.tsv")


@pytest.mark.parametrize("half", ["\\ud83d", "\\udc00"])
def test_half_an_emoji_is_refused_by_its_text(half, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a happy cat ' + half + '"}\n')
    with pytest.raises(
        ValueError, match="expected text that can be written as UTF-8 in column 'prompt' .*a happy cat"
    ):
        load_prompts(tmp_path / "a.jsonl")
