# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""ImageReward against its formulas, on random weights in the official format; `tests/parity` has the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from diffusers_craft import load_reward


PIXELS, PATCH, WIDTH, TEXT, HEADS, LAYERS, VOCABULARY = 16, 8, 64, 32, 4, 2, 60
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "blue", "star", ",", "##s"]
PROMPTS = ["a red circle", "", "A blue star, red circles", "blue " * 50]


def linear(state: dict, name: str, outputs: int, inputs: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = (
        torch.randn(outputs, inputs) * inputs**-0.5,
        torch.randn(outputs) * 0.1,
    )


def norm(state: dict, name: str, width: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + torch.randn(width) * 0.1, torch.randn(width) * 0.1


def random_state() -> dict[str, torch.Tensor]:
    """The keys of `ImageReward.pt`, those that no score uses among them."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    state[f"{vision}.cls_token"] = torch.randn(1, 1, WIDTH)
    state[f"{vision}.pos_embed"] = torch.randn(1, 1 + (PIXELS // PATCH) ** 2, WIDTH)
    state[f"{vision}.patch_embed.proj.weight"] = torch.randn(WIDTH, 3, PATCH, PATCH) * 0.1
    state[f"{vision}.patch_embed.proj.bias"] = torch.randn(WIDTH) * 0.1
    norm(state, f"{vision}.norm", WIDTH)
    for i in range(LAYERS):
        block = f"{vision}.blocks.{i}"
        for name in ("norm1", "norm2"):
            norm(state, f"{block}.{name}", WIDTH)
        sizes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        sizes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, size in sizes.items():
            linear(state, f"{block}.{name}", *size)
        layer = f"{text}.encoder.layer.{i}"
        for kind, inputs in (("attention", TEXT), ("crossattention", WIDTH)):
            linear(state, f"{layer}.{kind}.self.query", TEXT, TEXT)
            linear(state, f"{layer}.{kind}.self.key", TEXT, inputs)
            linear(state, f"{layer}.{kind}.self.value", TEXT, inputs)
            linear(state, f"{layer}.{kind}.output.dense", TEXT, TEXT)
            norm(state, f"{layer}.{kind}.output.LayerNorm", TEXT)
        linear(state, f"{layer}.intermediate.dense", 48, TEXT)
        linear(state, f"{layer}.output.dense", TEXT, 48)
        norm(state, f"{layer}.output.LayerNorm", TEXT)
    state[f"{text}.embeddings.word_embeddings.weight"] = torch.randn(VOCABULARY, TEXT)
    state[f"{text}.embeddings.position_embeddings.weight"] = torch.randn(40, TEXT)
    norm(state, f"{text}.embeddings.LayerNorm", TEXT)
    state[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    linear(state, "blip.vision_proj", 8, WIDTH)
    linear(state, "blip.text_proj", 8, TEXT)
    for number, (outputs, inputs) in {0: (24, TEXT), 2: (16, 24), 4: (8, 16), 6: (4, 8), 7: (1, 4)}.items():
        linear(state, f"mlp.layers.{number}", outputs, inputs)
    return state


def write(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ImageReward.pt")
    sizes = {"hidden_size": TEXT, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 40}
    (folder / "med_config.json").write_text(json.dumps(sizes))
    words = [*WORDS, *(f"[unused{i}]" for i in range(VOCABULARY - 2 - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("image_reward"), random_state())


def reference(state: dict[str, torch.Tensor], tokens: list[int], image: Image.Image) -> float:
    """The score of one pair, layer by layer. Padding is left out, which is what masking it amounts to."""

    def apply(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def normed(name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        parts = zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)))
        return torch.cat([(a @ b.T / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in parts], dim=-1)

    steps = [transforms.Resize(PIXELS, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(PIXELS)]
    steps += [transforms.ToTensor()]
    steps += [transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))]
    vision = "blip.visual_encoder"
    weight, bias = (state[f"{vision}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = F.conv2d(transforms.Compose(steps)(image)[None], weight, bias, stride=PATCH)[0].flatten(1).T
    x = torch.cat([state[f"{vision}.cls_token"][0], patches]) + state[f"{vision}.pos_embed"][0]
    for i in range(LAYERS):
        block = f"{vision}.blocks.{i}"
        q, k, v = apply(f"{block}.attn.qkv", normed(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + apply(f"{block}.attn.proj", attend(q, k, v, WIDTH // 64))
        x = x + apply(f"{block}.mlp.fc2", F.gelu(apply(f"{block}.mlp.fc1", normed(f"{block}.norm2", x, 1e-6))))
    x = normed(f"{vision}.norm", x, 1e-6)

    text = "blip.text_encoder"
    words, places = (state[f"{text}.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    y = normed(f"{text}.embeddings.LayerNorm", words[tokens] + places[: len(tokens)], 1e-12)
    for i in range(LAYERS):
        layer = f"{text}.encoder.layer.{i}"
        for kind in ("attention", "crossattention"):
            seen = y if kind == "attention" else x
            q = apply(f"{layer}.{kind}.self.query", y)
            k, v = (apply(f"{layer}.{kind}.self.{part}", seen) for part in ("key", "value"))
            y = normed(
                f"{layer}.{kind}.output.LayerNorm",
                y + apply(f"{layer}.{kind}.output.dense", attend(q, k, v, HEADS)),
                1e-12,
            )
        hidden = F.gelu(apply(f"{layer}.intermediate.dense", y))
        y = normed(f"{layer}.output.LayerNorm", y + apply(f"{layer}.output.dense", hidden), 1e-12)
    z = y[0]
    for number in (0, 2, 4, 6, 7):
        z = apply(f"mlp.layers.{number}", z)
    return (z.item() - 0.16717362830052426) / 1.0333394966054072


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_the_formulas(batch_size: int, folder: Path):
    reward = load_reward("image_reward", str(folder), batch_size=batch_size)
    images = [picture(i, size) for i, size in enumerate([(20, 20), (48, 16), (19, 40), (23, 16)])]
    tokens = [[2, 5, 6, 7, 3], [2, 3], [2, 5, 8, 9, 10, 6, 7, 11, 3], [2, *[8] * 33, 3]]
    state = random_state()
    expected = [reference(state, ids, image) for ids, image in zip(tokens, images)]
    scores = reward.score(PROMPTS, images)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(expected) > 0.05
    assert reward.source["unit"].startswith("(head - 0.16717) / 1.03334")


def test_low_precision_stays_close(folder: Path):
    images = [picture(i, (20, 20)) for i in range(4)]
    exact = load_reward("image_reward", str(folder)).score(PROMPTS, images)
    rough = load_reward("image_reward", str(folder), dtype=torch.bfloat16).score(PROMPTS, images)
    assert 0 < np.abs(exact - rough).max() < 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("blip.visual_encoder.norm.weight"), "found another .*post_layernorm.weight"),
        (lambda state: state.update({"other": torch.zeros(1)}), "found another .the key other"),
        (lambda state: state.pop("blip.visual_encoder.pos_embed"), "found another .embeddings.position_embedding"),
        (lambda state: state.pop("mlp.layers.7.bias"), "expected a chain of linear layers in .*, found mlp.layers.7"),
        (lambda state: state.pop("mlp.layers.7.weight"), "expected a head with one output in .*, found 4"),
    ],
    ids=["missing", "unknown", "no positions", "headless", "wide head"],
)
def test_other_weights_are_one_line(change, message: str, tmp_path: Path):
    state = random_state()
    change(state)
    write(tmp_path, state)
    with pytest.raises(ValueError, match=f"--reward_checkpoint image_reward: .*{message}") as error:
        load_reward("image_reward", str(tmp_path)).score([""], [picture(0, (16, 16))])
    assert "\n" not in str(error.value)


def test_other_tokenizer_is_one_line(tmp_path: Path):
    write(tmp_path, random_state())
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    with pytest.raises(ValueError, match="image_reward: expected a tokenizer of 60 tokens, found 14"):
        load_reward("image_reward", str(tmp_path)).score([""], [picture(0, (16, 16))])
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="image_reward: needs vocab.txt of google-bert/bert-base-uncased .0.2 MB"):
        load_reward("image_reward", str(tmp_path)).score([""], [picture(0, (16, 16))])
