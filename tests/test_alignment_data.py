# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Pairs, labels and prompts out of builds and datasets of pairs."""

import io
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from diffusers_craft.alignment_data import composite_scores, distinct_prompts, labels_of_pairs, load_preferences
from diffusers_craft.training_data import PairData, TrainingData


OPTIONS = Namespace(pairing="best_worst", num_pairs=None, dataset_config_name=None, cache_dir=None)


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
    winners, losers = (found.scores[found.pairs[:, side]] for side in (0, 1))
    for group, winner, loser in zip((2, 1, 0), winners, losers, strict=True):
        members = composite[groups == group]
        assert winner == members.max() and loser == members.min()
    top = load_preferences(preference_build, Namespace(**vars(OPTIONS) | {"num_pairs": 1}))
    assert len(top.pairs) == 1 and len(top.images) == 2
    assert top.images[int(top.pairs[0, 0])]["image"].size == (64, 64)


def test_the_baseline_loses_to_the_best_refined_image(preference_build):
    found = load_preferences(preference_build, Namespace(**vars(OPTIONS) | {"pairing": "best_baseline"}))
    composite, groups, variants = composite_scores(preference_build)
    assert found.scores[found.pairs[:, 1]].tolist() == [
        composite[(groups == g) & (variants == 0)][0] for g in (2, 1, 0)
    ]


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
    assert found.scores[found.pairs].tolist() == [[0.3, 0.1], [0.5, 0.1]]
    assert found.score_range == pytest.approx(0.4)
    for pair, (winner, loser) in zip(found.pairs.tolist(), ((0, 4), (6, 2)), strict=True):
        pictures = [np.asarray(found.images[row]["image"]) for row in pair]
        assert all(
            np.array_equal(picture, np.asarray(make_images(8)[i])) for picture, i in zip(pictures, (winner, loser))
        )


def test_a_dataset_without_pairs_is_refused(dataset_folder, tmp_path):
    with pytest.raises(ValueError, match="--dataset_name: expected the columns jpg_0, jpg_1, caption, label_0 or"):
        load_preferences(dataset_folder / "dataset", OPTIONS)
    with pytest.raises(ValueError, match="--dataset_name: expected a build's folder or a dataset of pairs, found"):
        load_preferences(tmp_path / "nothing", OPTIONS)


def test_an_unfinished_build_is_refused(preference_build, tmp_path):
    (tmp_path / "candidates").symlink_to(preference_build / "candidates")
    with pytest.raises(ValueError, match="expected a finished build, found .* without craft_build.json"):
        load_preferences(tmp_path, OPTIONS)


def test_labels_like_what_won_at_least_once():
    rows, labels = labels_of_pairs(np.array([[0, 1], [1, 2], [4, 2]]), 6)
    assert dict(zip(rows.tolist(), labels.tolist(), strict=True)) == {0: 1.0, 1: 1.0, 2: -1.0, 4: 1.0}


def test_prompts(preference_build):
    assert distinct_prompts(preference_build, None, "prompt") == [f"thing {i}" for i in range(4)]
    dataset = Dataset.from_dict({"text": ["b", "a", "b"]})
    assert distinct_prompts("org/data", dataset, "text") == ["b", "a"]
    with pytest.raises(
        ValueError, match=r"--caption_column: expected one of the dataset's columns \(text\), found 'x'"
    ):
        distinct_prompts("org/data", dataset, "x")


def test_pairs_share_their_time_noise_and_dropped_captions():
    images = TrainingData(
        latents=torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(2, 6, 4, 2, 2),
        latent_stds=None,
        prompts={"encoder_hidden_states": torch.arange(4.0).reshape(4, 1, 1)},  # the last one is the empty caption
        prompt_rows=torch.tensor([0, 0, 1, 1, 2, 2]),
        sizes={},
        advantages=torch.ones(6),
    )
    data = PairData(images, torch.tensor([[1, 0], [2, 3], [5, 4]]), torch.tensor([1.0, 0.5, 2.0]))
    draw = data.draw(3, range(4), torch.tensor([2, 0, 1, 2]), seed=0, num_timesteps=1000, caption_dropout=0.5)
    for name in ("noise", "timesteps"):
        assert torch.equal(*getattr(draw, name).chunk(2))
    assert torch.equal(*draw.conditioning["encoder_hidden_states"].chunk(2))
    assert draw.rows.tolist() == [5, 1, 2, 5, 4, 0, 3, 4]
    assert draw.latents[:, 0, 0, 0].tolist() == draw.rows.tolist()
    assert draw.advantages.tolist() == [2.0, 1.0, 0.5, 2.0, -2.0, -1.0, -0.5, -2.0]
    assert len(draw.timesteps.unique()) > 1  # but pairs differ from each other
    assert len(data) == 3 and not (data.advantages < 0).any()


def test_composite_scores_use_the_builds_own_constants(preference_build):
    record = json.loads((preference_build / "normalization.json").read_text())
    composite, groups, variants = composite_scores(preference_build)
    constants = record["rewards"]["brightness"]
    expected = (np.where(groups == 3, 3.0, groups + variants) - constants["mean"]) / constants["std"]
    np.testing.assert_allclose(composite, expected, rtol=1e-6)
