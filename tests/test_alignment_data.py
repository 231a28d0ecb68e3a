# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pairs, labels and prompts out of builds and datasets of pairs."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from diffusers_craft import UserError
from diffusers_craft.data.encoding import read_captions
from diffusers_craft.data.preferences import best_pairs, labels_of_pairs, prompts_of_build, random_rows
from diffusers_craft.data.rows import PairData
from diffusers_craft.scripts import DataSettings, NoisePath, TrainingData, composite_scores, load_preferences


OPTIONS = DataSettings()


def _bytes(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_pairs_of_a_build(preference_build):
    """Scores of group g, variant j are g + j, but for group 3, whose images are all alike."""
    found = load_preferences(preference_build, OPTIONS)
    assert [found.images[row]["prompt"] for row in found.pairs[:, 0].tolist()] == ["thing 2", "thing 1", "thing 0"]
    composite, groups, variants = composite_scores(preference_build)
    assert found.score_range == pytest.approx(np.ptp(composite))
    winners, losers = found.scores.T
    for group, winner, loser in zip((2, 1, 0), winners, losers, strict=True):
        members = composite[groups == group]
        assert winner == members.max() and loser == members.min()
    top = load_preferences(preference_build, DataSettings(num_pairs=1))
    assert len(top.pairs) == 1 and len(top.images) == 2
    assert top.images[int(top.pairs[0, 0])]["image"].size == (64, 64)


def test_a_damaged_build_is_refused(preference_build, tmp_path):
    """Rows count by their numbers, and none is left out in silence."""
    shards = [f"candidates/part-0000{shard}.parquet" for shard in range(3)]
    for name, words in (
        (shards[1], "candidates: 1 of 3 shards are missing"),
        ("scores/brightness/part-00000.parquet", "scores/brightness: 1 of 3 shards are missing"),
        ("scores/brightness/options.json", "--dataset_name: expected a finished build, found no rows in .*brightness"),
    ):
        folder = shutil.copytree(preference_build, tmp_path / name.replace("/", "-"))
        (folder / name).unlink()
        with pytest.raises(UserError, match=words):
            load_preferences(folder, OPTIONS)
    folder = shutil.copytree(preference_build, tmp_path / "swapped")
    shutil.copy(preference_build / shards[0], folder / shards[1])
    with pytest.raises(UserError, match=r"part-00001.parquet: expected the rows 5 to 9 in order, found 5 rows from 0"):
        load_preferences(folder, OPTIONS)
    folder = shutil.copytree(preference_build, tmp_path / "flipped")
    data = bytearray((folder / shards[2]).read_bytes())
    data[len(data) // 2] ^= 1  # of a picture
    (folder / shards[2]).write_bytes(data)
    with pytest.raises(UserError, match="part-00002.parquet: expected a Parquet file, found .*; remove it, and"):
        load_preferences(folder, OPTIONS)
    (folder / "craft_build.json").write_text("{")
    with pytest.raises(UserError, match="craft_build.json: expected JSON, found"):
        load_preferences(folder, OPTIONS)
    for text in ("{}", '{"composite_weights": []}'):
        (folder / "craft_build.json").write_text(text)
        with pytest.raises(UserError, match="^--dataset_name: expected the weights and constants of a build"):
            load_preferences(folder, OPTIONS)


def test_a_build_is_read_wherever_it_lies(preference_build, tmp_path):
    folder = shutil.copytree(preference_build, tmp_path / "runs [v2]*" / "build?")
    found, expected = (load_preferences(place, OPTIONS) for place in (folder, preference_build))
    assert found.images["prompt"] == expected.images["prompt"] and (found.pairs == expected.pairs).all()


def test_the_baseline_loses_to_the_best_refined_image(preference_build):
    found = load_preferences(preference_build, DataSettings(pairing="best_baseline"))
    composite, groups, variants = composite_scores(preference_build)
    assert found.scores[:, 1].tolist() == [composite[(groups == g) & (variants == 0)][0] for g in (2, 1, 0)]


def test_pairs_of_a_pick_a_pic_dataset(tmp_path, make_images):
    images = [_bytes(image) for image in make_images(8)]
    columns = {
        "jpg_0": images[:4],
        "jpg_1": images[4:],
        "caption": ["a", "b", "c", "d"],
        "label_0": [1.0, 0.5, 0.0, 1.0],
    }
    columns |= {
        "has_label": [True, True, True, False],
        "score_0": [0.3, 0.2, 0.1, 0.9],
        "score_1": [0.1, 0.2, 0.5, 0.1],
    }
    Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    found = load_preferences(tmp_path, OPTIONS)
    rows = [[found.images[row]["prompt"] for row in pair] for pair in found.pairs.tolist()]
    assert rows == [["a", "a"], ["c", "c"]]  # the tie and the unlabelled pair are out
    assert found.scores.tolist() == [[0.3, 0.1], [0.5, 0.1]]
    assert found.score_range == pytest.approx(0.8)  # of all rows, as the paper says
    for pair, (winner, loser) in zip(found.pairs.tolist(), ((0, 4), (6, 2)), strict=True):
        pictures = [np.asarray(found.images[row]["image"]) for row in pair]
        assert all(
            np.array_equal(picture, np.asarray(make_images(8)[i])) for picture, i in zip(pictures, (winner, loser))
        )


def _write_pairs(folder, make_images, repeats=(), **changes) -> None:
    """Four pairs of the images 0-4, 1-5, 2-6, 3-7 and captions a, a, b, b; `repeats` gives other images."""
    places = [*repeats] or list(range(8))
    images = [_bytes(image) for image in make_images(8)]
    columns = {"jpg_0": [images[i] for i in places[:4]], "jpg_1": [images[i] for i in places[4:]]}
    columns |= {"caption": list("aabb"), "label_0": [1.0, 0.0, 0.5, 1.0]} | changes
    Dataset.from_dict(columns).to_parquet(folder / "train.parquet")


@pytest.mark.parametrize("has_uids", [False, True])
def test_an_image_of_several_pairs_is_one_image(tmp_path, make_images, has_uids):
    """Images 0 and 1 win one pair and lose another of caption a: liked, by Diffusion-KTO's rule. Image 3 is another one
    for another caption."""
    repeats = [0, 0, 2, 3, 3, 1, 1, 4]
    uids = {f"image_{side}_uid": [f"i{i}" for i in repeats[4 * side :][:4]] for side in (0, 1)} if has_uids else {}
    labels = [0.0, 1.0, 0.0, 1.0]  # 3 over 0, 0 over 1, 1 over 2; 3 over 4
    _write_pairs(tmp_path, make_images, repeats, caption=list("aaab"), label_0=labels, **uids)
    found = load_preferences(tmp_path, OPTIONS).without_repeated_images()
    rows, labels = labels_of_pairs(found.pairs, len(found.images))
    pictures = [np.asarray(image) for image in make_images(5)]
    which = [
        next(i for i, p in enumerate(pictures) if np.array_equal(p, found.images[r]["image"])) for r in rows.tolist()
    ]
    captions = [found.images[row]["prompt"] for row in rows.tolist()]
    found = dict(zip(zip(which, captions), labels.tolist(), strict=True))
    assert len(rows) == 6
    assert found == {(0, "a"): 1, (1, "a"): 1, (2, "a"): -1, (3, "a"): 1, (3, "b"): 1, (4, "b"): -1}


def test_the_best_and_random_pairs_of_a_dataset(tmp_path, make_images):
    _write_pairs(tmp_path, make_images, score_0=[1.0, 0.0, 5.0, None], score_1=[0.0, 2.0, -5.0, 9.0])
    whole = load_preferences(tmp_path, OPTIONS)
    assert (len(whole.images), whole.score_range) == (8, 14.0)  # the tie's images too
    best = best_pairs(whole, 2)
    assert best.scores.tolist() == [[2.0, 0.0], [1.0, 0.0]] and best.score_range == 14.0  # NaN is no best winner
    used = best.without_unused_images()
    assert [used.images[row]["prompt"] for row in used.pairs[:, 0].tolist()] == ["a", "a"] and len(used.images) == 4
    for count in (-1, 0, 4):
        with pytest.raises(ValueError, match=f"--num_pairs: expected 1 to 3 .*, found {count}"):
            best_pairs(whole, count)
    with pytest.raises(
        ValueError, match="--num_pairs: expected a build's folder or score_0 and score_1.*found neither"
    ):
        best_pairs(whole._replace(scores=None), 1)
    assert random_rows(5, None, 0).tolist() == random_rows(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    draws = {tuple(random_rows(6, 2, seed).tolist()) for seed in range(40)}
    assert len(draws) > 9 and all(0 <= low < high < 6 for low, high in draws)
    assert random_rows(6, 2, 1).tolist() == random_rows(6, 2, 1).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_0": [1.0, 2.0, 0.0, 0.0]}, "label_0: expected 1, 0 or 0.5 for a tie, found 2 in row 1"),
        ({"label_0": [1.0, -1.0, 0.0, 0.0]}, "label_0: expected 1, 0 or 0.5 for a tie, found -1 in row 1"),
        ({"label_0": ["first"] * 4}, "label_0: expected numbers, found 'first' in row 0"),
        ({"caption": ["a", "a", "b", None]}, "caption: expected a caption in every pair .* found none in row 3"),
        ({"caption": [1, 2, 3, 4]}, "caption: expected text, found a column of int64"),
        ({"jpg_1": [b"x", None, b"x", b"x"]}, "jpg_1: expected an image in every pair .* found none in row 1"),
        ({"score_0": ["x"] * 4, "score_1": [1.0] * 4}, "score_0: expected numbers, found 'x' in row 0"),
        ({"label_0": [0.5, None, 0.5, 0.5]}, "expected pairs with a winner, found 4 rows without one"),
    ],
)
def test_pairs_that_cannot_be_are_refused(tmp_path, make_images, changes, message):
    _write_pairs(tmp_path, make_images, **changes)
    with pytest.raises(ValueError, match=message):
        load_preferences(tmp_path, OPTIONS)


@pytest.mark.parametrize("nothing", [None, {"bytes": None, "path": None}])
def test_a_pair_without_an_image_is_refused(tmp_path, make_images, nothing):
    """As `datasets` keeps images, which need not be null for that."""
    columns = {"image_0": [nothing, make_images(1)[0]], "image_1": make_images(2), "prompt": ["a", "b"]}
    dataset = Dataset.from_dict(columns | {"label_0": [1, 0]})
    for name in ("image_0", "image_1"):
        dataset = dataset.cast_column(name, Image())
    dataset.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="image_0: expected an image in every pair .* found none in row 0"):
        load_preferences(tmp_path, OPTIONS)


def test_a_tie_may_lack_an_image(tmp_path, make_images):
    images = [_bytes(image) for image in make_images(4)]
    _write_pairs(tmp_path, make_images, jpg_1=[*images[:2], None, images[3]])
    found = load_preferences(tmp_path, OPTIONS)
    assert len(found.images) == 6 and len(found.pairs) == 3
    assert [found.images[row]["prompt"] for row in found.pairs[:, 1].tolist()] == ["a", "a", "b"]


def test_a_dataset_without_pairs_is_refused(dataset_folder, tmp_path):
    with pytest.raises(ValueError, match="--dataset_name: expected the columns jpg_0, jpg_1, caption, label_0 or"):
        load_preferences(dataset_folder / "dataset", OPTIONS)
    for name, options in (("dataset_name", OPTIONS), ("train_data_dir", DataSettings(train_data_dir="x"))):
        with pytest.raises(ValueError, match=f"--{name}: expected a build's folder or a dataset of pairs, found"):
            load_preferences(tmp_path / "nothing", options)
    with pytest.raises(ValueError, match="--pairing: expected a build's folder with best_baseline, found a dataset"):
        load_preferences(dataset_folder / "dataset", DataSettings(pairing="best_baseline"))


def test_an_unfinished_build_is_refused(preference_build, tmp_path):
    (tmp_path / "candidates").symlink_to(preference_build / "candidates")
    with pytest.raises(ValueError, match="expected a finished build, found .* without craft_build.json"):
        load_preferences(tmp_path, OPTIONS)


def test_labels_like_what_won_at_least_once():
    rows, labels = labels_of_pairs(np.array([[0, 1], [1, 2], [4, 2]]), 6)
    assert dict(zip(rows.tolist(), labels.tolist(), strict=True)) == {0: 1.0, 1: 1.0, 2: -1.0, 4: 1.0}


def test_prompts(preference_build):
    assert prompts_of_build(preference_build) == [f"thing {i}" for i in range(4)]
    dataset, settings = Dataset.from_dict({"text": ["b", "a", "b"]}), DataSettings(caption_column="text")
    assert read_captions(dataset, settings) == ["b", "a", "b"]
    with pytest.raises(
        ValueError, match=r"--caption_column: expected one of the dataset's columns \(text\), found 'x'"
    ):
        read_captions(dataset, DataSettings(caption_column="x"))
    with pytest.raises(ValueError, match="--caption_column: expected text in column 'text', found None in row 1"):
        read_captions(Dataset.from_dict({"text": ["b", None]}), settings)


def test_pairs_share_their_time_noise_and_dropped_captions():
    images = TrainingData(
        latents=torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(2, 6, 4, 2, 2),
        latent_stds=None,
        prompts={"encoder_hidden_states": torch.arange(4.0).reshape(4, 1, 1)},  # the last one is the empty caption
        prompt_rows=torch.tensor([0, 0, 1, 1, 2, 2]),
        sizes={},
        weights=torch.ones(6),
    )
    data = PairData(images, torch.tensor([[1, 0], [2, 3], [5, 4]]), torch.tensor([1.0, 0.5, 2.0]))
    path = NoisePath("epsilon", torch.linspace(0.999, 0.005, 1000), torch.arange(1000))
    draw = data.draw(3, range(4), torch.tensor([2, 0, 1, 2]), seed=0, path=path, caption_dropout=0.5)
    for name in ("noise", "times"):
        assert torch.equal(*getattr(draw, name).chunk(2))
    assert torch.equal(*draw.conditioning["encoder_hidden_states"].chunk(2))
    assert draw.rows.tolist() == [5, 1, 2, 5, 4, 0, 3, 4]
    assert draw.latents[:, 0, 0, 0].tolist() == draw.rows.tolist()
    assert draw.weights.tolist() == [2.0, 1.0, 0.5, 2.0, -2.0, -1.0, -0.5, -2.0]
    assert len(draw.times.unique()) > 1  # but pairs differ from each other
    assert len(data) == 3 and not (data.weights < 0).any()


def test_composite_scores_use_the_builds_own_constants(preference_build):
    record = json.loads((preference_build / "normalization.json").read_text())
    composite, groups, variants = composite_scores(preference_build)
    constants = record["rewards"]["brightness"]
    expected = (np.where(groups == 3, 3.0, groups + variants) - constants["mean"]) / constants["std"]
    np.testing.assert_allclose(composite, expected, rtol=1e-6)
