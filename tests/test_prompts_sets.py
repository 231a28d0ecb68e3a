# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompt sets: the shapes of their Hub files, local files in their place, categories, repeated prompts, samples."""

import json

import datasets
import huggingface_hub
import pytest

from diffusers_craft import load_prompt_set, load_prompts
from diffusers_craft.scripts import PROMPT_SETS, load_build_prompts, parse_caption


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the Hub that knows the files and datasets given to it, and records what was asked for."""
    files, tables, asked = {}, {}, []

    def download(repository, file, repo_type=None):
        asked.append((repository, file, repo_type))
        path = tmp_path / file.replace("/", "_")
        path.write_text(json.dumps(files[file]))
        return str(path)

    def load(name, config=None, split=None):
        asked.append((name, split))
        return datasets.Dataset.from_list(tables[name])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return files, tables, asked


def test_hpdv2_by_style_with_its_repeated_prompts(hub):
    files, _, asked = hub
    for style in ("anime", "concept-art", "paintings", "photo"):
        files[f"benchmark/{style}.json"] = [f"{style} {i // 2}" for i in range(800)]
    found = load_prompt_set("hpdv2")
    assert len(found.rows) == 3200 and found.name == "hpdv2"
    assert found.categories == [s for s in ("anime", "concept-art", "paintings", "photo") for _ in range(800)]
    assert found.prompts[:3] == ["anime 0", "anime 0", "anime 1"] and found.rows[1].details == {"index": 1}
    assert asked[0] == ("zhwang/HPDv2", "benchmark/anime.json", "dataset")
    sample = load_prompt_set("hpdv2", num_prompts=7, seed=1)
    assert len(sample.rows) == 7, "one of two equal prompts brought the other one with it"


def test_the_prompts_of_a_build_have_the_categories_of_their_first_rows(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,category\na cat,animals\na cat ,pets\na red circle,\n")
    found = load_build_prompts(path)
    assert found.prompts == load_prompts(path) == ["a cat", "a red circle"]
    assert found.categories == ["animals", None]
    assert set(load_build_prompts("tiny-heldout").categories) == {None}, "the report reads them in the captions"


def test_partiprompts_and_pickapic_columns(hub):
    _, tables, asked = hub
    tables["nateraw/parti-prompts"] = [
        {"Prompt": f"p{i}", "Category": "Arts", "Challenge": "Basic", "Note": ""} for i in range(1632)
    ]
    tables["yuvalkirstain/pickapic_v1_no_images"] = [{"caption": f"c{i}", "other": i} for i in range(500)]
    parti = load_prompt_set("partiprompts")
    assert (parti.prompts[1], parti.categories[1]) == ("p1", "Arts")
    pick = load_prompt_set("pickapic")
    assert (pick.prompts[499], pick.categories[0]) == ("c499", None)
    assert asked == [
        ("nateraw/parti-prompts", "train"),
        ("yuvalkirstain/pickapic_v1_no_images", "validation_unique"),
    ]


def test_drawbench_has_no_style(hub):
    files, _, _ = hub
    files["benchmark/drawbench.json"] = [f"d{i}" for i in range(200)]
    found = load_prompt_set("drawbench")
    assert len(found.rows) == 200 and set(found.categories) == {None}


def test_a_set_of_another_size_is_refused(hub):
    files, _, _ = hub
    files["benchmark/drawbench.json"] = ["one"]
    with pytest.raises(ValueError, match="--prompts drawbench: expected 200 prompts from the Hub, found 1"):
        load_prompt_set("drawbench")


@pytest.mark.parametrize("name", [name for name in PROMPT_SETS if name not in ("geneval", "t2i_compbench")])
def test_an_unreachable_hub_names_the_way_out(name):
    with pytest.raises(ValueError, match=f"--prompts {name}: .* a local file works too: {name}=FILE") as error:
        load_prompt_set(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["geneval", "t2i_compbench"])
def test_sets_that_have_no_hub_dataset_ask_for_their_file(name):
    assert name in PROMPT_SETS
    with pytest.raises(ValueError, match=f"--prompts {name}: expected {name}=FILE with its own file"):
        load_prompt_set(name)


def test_genevals_own_lines_and_those_with_metadata_alike(tmp_path):
    line = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    row = {"prompt": line["prompt"], "category": "counting", "metadata": line}
    (tmp_path / "with.jsonl").write_text(json.dumps(row))
    own, other = (load_prompt_set(f"geneval={tmp_path / name}.jsonl") for name in ("own", "with"))
    assert own.name == other.name == "geneval"
    assert own.categories == other.categories == ["counting"] and own.prompts == other.prompts
    assert own.rows[0].details["include"] == other.rows[0].details["metadata"]["include"]


def write_compbench(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f"prompt one of {name}\nprompt two of {name}\n")
    return folder


COMPBENCH = [f"{category}{split}.txt" for category in ("color", "shape", "texture", "spatial", "non_spatial", "complex")
             for split in ("", "_train", "_val")]  # fmt: skip
COMPBENCH += [f"complex_val_{label}.txt" for label in ("action", "spatial", "spatialaction")]
COMPBENCH += ["color_val_seen.txt", "numeracy_val.txt", "3d_spatial_val.txt", "new_objects.txt"]


def test_compbench_s_own_folder_is_its_validation_prompts(tmp_path):
    found = load_prompt_set(f"t2i_compbench={write_compbench(tmp_path / 'all', *COMPBENCH)}")
    assert found.name == "t2i_compbench" and len(found.rows) == 16
    labels = {(row.category, row.details.get("three_in_one")) for row in found.rows}
    assert labels == {(c, None) for c in ("color", "shape", "texture", "spatial", "non_spatial")} | {
        ("complex", label) for label in ("action", "spatial", "spatialaction")
    }
    assert not any("train" in prompt or "seen" in prompt or "complex_val.txt" in prompt for prompt in found.prompts)
    some = load_prompt_set(f"t2i_compbench={write_compbench(tmp_path / 'some', 'complex_val.txt', 'shape_val.txt')}")
    assert some.categories == ["shape"] * 2 + ["complex"] * 2
    with pytest.raises(ValueError, match="--prompts t2i_compbench: expected color_val.txt, .* found none of them"):
        load_prompt_set(f"t2i_compbench={write_compbench(tmp_path / 'none', 'color_train.txt', 'notes.txt')}")


@pytest.mark.parametrize(
    ("name", "category", "label"),
    [
        ("color_val.txt", "color", None),
        ("complex_val_action.txt", "complex", "action"),
        ("complex_train_spatialaction.txt", "complex", "spatialaction"),
        ("non_spatial.txt", "non_spatial", None),
        ("texture_val_unseen.txt", "texture", None),
    ],
)
def test_a_file_of_compbench_tells_its_category_by_its_name(tmp_path, name, category, label):
    folder = write_compbench(tmp_path / "own", name)
    found = load_prompt_set(f"t2i_compbench={folder / name}")
    assert found.prompts == [f"prompt one of {name}", f"prompt two of {name}"]
    assert [(row.category, row.details.get("three_in_one")) for row in found.rows] == [(category, label)] * 2


@pytest.mark.parametrize("name", ["mine.txt", "numeracy_val.txt", "shape_val_action.txt"])
def test_a_text_file_without_a_category_is_no_compbench(tmp_path, name):
    folder = write_compbench(tmp_path / "own", name)
    with pytest.raises(ValueError, match=f"--prompts t2i_compbench: expected a file named as .* found .*{name}"):
        load_prompt_set(f"t2i_compbench={folder / name}")


def test_compbench_as_jsonl_keeps_its_columns(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "category": "complex", "three_in_one": "action"}\n')
    row = load_prompt_set(f"t2i_compbench={tmp_path / 'own.jsonl'}").rows[0]
    assert (row.category, row.details["three_in_one"]) == ("complex", "action")


def test_partis_own_tsv_is_read_without_quoting(tmp_path):
    (tmp_path / "PartiPrompts.tsv").write_text(
        'Prompt\tCategory\tChallenge\tNote\na sign "Hi\tArts\tBasic\t\nb\tArts\tBasic\t\n'
    )
    found = load_prompt_set(f"partiprompts={tmp_path / 'PartiPrompts.tsv'}")
    assert found.prompts == ['a sign "Hi', "b"] and found.categories == ["Arts", "Arts"]


def test_files_of_ones_own(tmp_path):
    """A prompt counts once per category; a name may be given; the column is --prompt_column."""
    path = tmp_path / "mine.csv"
    path.write_text("text,category\na,x\na,y\na,x\n,x\nb,\n")
    found = load_prompt_set(str(path), column="text")
    assert (found.name, found.prompts, found.categories) == ("mine", ["a", "a", "b"], ["x", "y", None])
    assert load_prompt_set(f"own={path}", column="text").name == "own"
    with pytest.raises(ValueError, match="--prompt_column: expected a column of .*mine.csv"):
        load_prompt_set(str(path))
    with pytest.raises(ValueError, match="--num_prompts: expected 1 to 3"):
        load_prompt_set(str(path), column="text", num_prompts=4)


def test_a_plain_list_gives_the_same_prompts_as_for_a_build():
    found = load_prompt_set("tiny-heldout", num_prompts=20, seed=3)
    assert found.prompts == load_prompts("tiny-heldout", num_prompts=20, seed=3)
    assert found.categories == [parse_caption(prompt).task for prompt in found.prompts]
