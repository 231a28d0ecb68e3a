# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""MPS against an independent computation, on a pickled module in the format of the published checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mps_reference import save_whole
from parity_checkpoints import IMAGE_SIZE, write_clip_processor, write_clip_tokenizer
from parity_inputs import PROMPTS, assert_equal_scores, pairs, picture, pil_processor, plain_rgb
from safetensors.torch import load_file

from diffusers_craft import load_reward
from diffusers_craft.rewards.mps import CONDITION, MPSReward
from diffusers_craft.scripts import convert_mps_checkpoint


@pytest.fixture(scope="module")
def folder(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mps")
    write_clip_tokenizer(folder)
    write_clip_processor(folder, IMAGE_SIZE[size])
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path, size: str):
    """The published steps on the saved model: `infer(prompt, image, threshold)`."""
    from transformers import AutoTokenizer

    model = save_whole(folder, size)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenize(text: str) -> torch.Tensor:
        options = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
        return tokenizer(text, **options, return_tensors="pt").input_ids

    processor = pil_processor(folder)

    def infer(prompt: str, image, threshold: float = 0.3) -> float:
        pixels = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return model.score(pixels, tokenize(prompt), tokenize(CONDITION), threshold)

    infer.model, infer.tokenize = model, tokenize
    return infer


@pytest.fixture(scope="module")
def expected(reference, size: str) -> list[float]:
    """Images whose mode transformers treats otherwise are given as RGB: see the named tests of PickScore."""
    return [
        reference(prompt, image if image.mode in ("RGB", "L") else plain_rgb(image))
        for _, prompt, image in pairs(IMAGE_SIZE[size])
    ]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_mps_is_the_published_computation(batch_size: int, folder: Path, expected: list[float], size: str):
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    scores = load_reward("mps", str(folder), batch_size=batch_size).score(prompts, images)
    # Scores are a hundred times a cosine, and a float32 near 30 has steps of 2e-6.
    assert_equal_scores(scores, expected, labels, atol=2e-5)


def test_threshold_decides_what_the_image_sees(folder: Path, reference, size: str):
    """0.3 in the authors' evaluation, 0.01 in their README: both are reachable, and recorded."""
    prompt, image = PROMPTS["300 words"], picture(0, (60, 60))
    text = reference.model.text(reference.tokenize(prompt))[0]
    condition = reference.model.text(reference.tokenize(CONDITION))[0]
    seen = {}
    for threshold in (0.01, 0.3, 0.9):
        reward = MPSReward(str(folder), threshold=threshold)
        np.testing.assert_allclose(reward.score([prompt], [image]), [reference(prompt, image, threshold)], atol=2e-5)
        keep = reward.encode_prompts([prompt])[0][2]
        torch.testing.assert_close(keep, reference.model.mask(text, condition, threshold) == 0)
        seen[threshold] = int(keep.sum())
        assert reward.source["threshold"] == f"{threshold:g}" and reward.source["condition"] == CONDITION
    assert seen[0.9] < seen[0.3] <= seen[0.01], seen


def test_maximum_is_taken_per_sample_here_and_per_batch_there(folder: Path, reference, size: str):
    """The published code divides by the maximum over the batch, so a prompt is masked by its neighbours' similarity."""
    prompts, images = [PROMPTS["plain"], PROMPTS["300 words"]], [picture(0, (60, 60)), picture(1, (60, 60))]
    texts = torch.stack([reference.model.text(reference.tokenize(prompt))[0] for prompt in prompts])
    texts[0] *= 0.2  # a prompt that is far from the condition, which random weights do not give
    condition = reference.model.text(reference.tokenize(CONDITION))[0]
    similarity = (texts @ condition.T).amax(-1)
    there = similarity / similarity.max() > 0.3
    alone = [similarity[i] / similarity[i].max() > 0.3 for i in range(2)]
    assert not torch.equal(there[0], alone[0]) and torch.equal(there[1], alone[1])

    reward = MPSReward(str(folder))
    assert reward.model is not None
    reward._encode_text = lambda model, batch: (
        torch.stack([texts[prompts.index(prompt)] for prompt in batch]),
        torch.zeros(len(batch), texts.shape[-1]),
    )
    together = reward.encode_prompts(prompts)
    apart = [reward.encode_prompts([prompt])[0] for prompt in prompts]
    for one, other, mask in zip(together, apart, alone):
        assert torch.equal(one[2], mask) and torch.equal(other[2], mask)
    again = load_reward("mps", str(folder))
    both = again.score(prompts, images)
    np.testing.assert_allclose(both, [again.score([p], [i])[0] for p, i in zip(prompts, images)], atol=2e-5)


def test_conversion_keeps_names_numbers_and_scores(folder: Path, reference, size: str, tmp_path: Path):
    converted = tmp_path / "mps.safetensors"
    convert_mps_checkpoint(folder / "MPS_overall_checkpoint.pth", converted)
    state = reference.model.state_dict()
    found = load_file(converted)
    assert found.keys() == state.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), state[name], atol=0, rtol=0)
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "merges.txt").write_text((folder / "merges.txt").read_text())
    image = picture(0, (60, 60))
    scores = [load_reward("mps", str(path)).score(["a"], [image])[0] for path in (folder, tmp_path, converted)]
    assert scores[0] == scores[1] == scores[2]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_each_distinct_prompt_is_encoded_once(folder: Path, reference, size: str):
    reward = load_reward("mps", str(folder), batch_size=2)
    seen: list[str] = []
    encode = reward.encode_prompts
    reward.encode_prompts = lambda prompts: seen.extend(prompts) or encode(prompts)
    prompts = ["a", "b", "a", "c", "b", "a", "a"]
    images = [picture(i, (50, 50)) for i in range(7)]
    scores = reward.score(prompts, images)
    assert sorted(seen) == ["a", "b", "c"]
    single = load_reward("mps", str(folder), batch_size=1)
    np.testing.assert_allclose(scores, [single.score([p], [i])[0] for p, i in zip(prompts, images)], atol=2e-5)
