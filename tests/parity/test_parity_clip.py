# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The aesthetic score and the CLIP score against OpenAI's CLIP as open_clip has it, with QuickGELU.

`DIFFUSERS_CRAFT_AESTHETIC_HEAD=PATH` takes the published head at the official size; a random one is used without.
"""

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from parity_checkpoints import HEAD_WIDTHS, IMAGE_SIZE, write_clip, write_head
from parity_inputs import assert_equal_scores, needs_16_bit_resize, pairs, picture, pil_processor, plain_rgb
from torch import nn

from diffusers_craft import load_reward
from diffusers_craft.rewards.aesthetic import share_image_pass


HEAD = "sac+logos+ava1-l14-linearMSE.pth"


def to_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformers `CLIPModel` state dict under open_clip's names."""
    names = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    found = {new: state[old] for old, new in names.items()}
    found["visual.proj"] = state["visual_projection.weight"].T
    found["text_projection"] = state["text_projection.weight"].T
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    norms["text_model.final_layer_norm"] = "ln_final"
    linears = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    linears["self_attn.out_proj"] = "attn.out_proj"
    for kind in ("weight", "bias"):
        found |= {f"{new}.{kind}": state[f"{old}.{kind}"] for old, new in norms.items()}
        for tower, home in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
            layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"{tower}.encoder.layers."))
            for i in range(layers):
                old, new = f"{tower}.encoder.layers.{i}", f"{home}.resblocks.{i}"
                found |= {f"{new}.{b}.{kind}": state[f"{old}.{a}.{kind}"] for a, b in linears.items()}
                parts = [state[f"{old}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
                found[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found


class OfficialScorer:
    """OpenAI's preprocessing, model and tokenizer; LAION's normalisation and network."""

    def __init__(self, folder: Path, head: Path, size: str):
        from open_clip.transform import image_transform
        from transformers import CLIPModel

        if size == "official":
            config = open_clip.get_model_config("ViT-L-14-quickgelu")
        else:
            vision = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2}
            text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
            config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
        self.clip = open_clip.model.CLIP(**config).eval()
        self.clip.load_state_dict(to_open_clip(CLIPModel.from_pretrained(folder).state_dict()))
        self.preprocess = image_transform(IMAGE_SIZE[size], is_train=False)
        state = torch.load(head, weights_only=True, map_location="cpu")
        layers, width = [], state["layers.0.weight"].shape[1]
        for number, outputs in HEAD_WIDTHS.items():
            layers += [nn.Linear(width, outputs)] + ([nn.Dropout(0.2)] if number < 6 else [])
            width = outputs
        self.head = nn.Sequential(*layers).eval()
        self.head.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in state.items()})

    @torch.no_grad()
    def embed(self, image) -> torch.Tensor:
        return self.clip.encode_image(self.preprocess(image)[None])

    @torch.no_grad()
    def aesthetic(self, image) -> float:
        embedding = self.embed(image).numpy()
        embedding = embedding / np.atleast_1d(np.linalg.norm(embedding, 2, -1))[:, None]
        return self.head(torch.from_numpy(embedding)).item()

    @torch.no_grad()
    def clip_score(self, prompt: str, image) -> float:
        text = self.clip.encode_text(open_clip.tokenize([prompt]))
        return 100 * torch.cosine_similarity(self.embed(image), text).item()


@pytest.fixture(scope="module")
def folder(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_clip(tmp_path_factory.mktemp("clip"), size, "L")
    if size == "official" and (own := os.environ.get("DIFFUSERS_CRAFT_AESTHETIC_HEAD")):
        shutil.copy(own, folder / HEAD)
    else:
        write_head(folder / HEAD, 768 if size == "official" else 32)
    return folder


@pytest.fixture(scope="module")
def official(folder: Path, size: str):
    yield OfficialScorer(folder, folder / HEAD, size)
    gc.collect()


@pytest.fixture(scope="module")
def expected(official: OfficialScorer, size: str) -> dict[str, list[float]]:
    """Both scores pair by pair; images whose mode is treated otherwise there are given as RGB: see the named tests."""
    cases = [(prompt, plain_rgb(image)) for _, prompt, image in pairs(IMAGE_SIZE[size])]
    return {
        "aesthetic": [official.aesthetic(image) for _, image in cases],
        "clip_score": [official.clip_score(prompt, image) for prompt, image in cases],
    }


@pytest.mark.parametrize("name, atol", [("aesthetic", 1e-5), ("clip_score", 2e-5)])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_scores_are_those_of_openai_clip(
    name: str, atol: float, batch_size: int, folder: Path, expected: dict[str, list[float]], size: str
):
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    scores = load_reward(name, str(folder), batch_size=batch_size).score(prompts, images)
    assert_equal_scores(scores, expected[name], labels, atol)


def test_sharing_embeds_each_image_once_and_changes_nothing(
    folder: Path, expected: dict[str, list[float]], size: str, monkeypatch: pytest.MonkeyPatch
):
    labels, prompts, images = zip(*pairs(IMAGE_SIZE[size]))
    rewards = {name: load_reward(name, str(folder), batch_size=4) for name in expected}
    share_image_pass(rewards.values())
    assert rewards["aesthetic"].tower is rewards["clip_score"].tower
    embedded: list[int] = []
    embed = type(rewards["aesthetic"].tower)._embed
    monkeypatch.setattr(
        type(rewards["aesthetic"].tower),
        "_embed",
        lambda self, pixels: embedded.append(len(pixels)) or embed(self, pixels),
    )
    for name, atol in (("aesthetic", 1e-5), ("clip_score", 2e-5)):
        assert_equal_scores(rewards[name].score(prompts, images), expected[name], labels, atol)
        rewards[name].release()
    assert sum(embedded) == len(images)
    assert "model" not in vars(rewards["clip_score"].tower), "the second reward needs no image weights"
    changed = [image.rotate(90) for image in images[:2]]
    rewards["clip_score"].score(prompts[:2], changed)
    assert sum(embedded) == len(images) + 2, "other pixels are other images"


def test_sharing_forgets_the_oldest_and_keeps_precisions_apart(folder: Path, size: str):
    rewards = [load_reward(name, str(folder)) for name in ("aesthetic", "clip_score")]
    low = load_reward("clip_score", str(folder), dtype=torch.bfloat16)
    share_image_pass([*rewards, low, object()], remember=2)
    assert low.tower is not rewards[0].tower
    first = rewards[0].score([""] * 3, [picture(i, (40, 40)) for i in range(3)])
    assert len(rewards[0].tower._known) == 2
    np.testing.assert_allclose(rewards[0].score([""], [picture(0, (40, 40))]), first[:1], atol=1e-5)


def test_plain_gelu_would_be_off(folder: Path, official: OfficialScorer, size: str):
    """The configuration's `quick_gelu` matters: with the usual GELU the score is another."""
    from transformers import CLIPModel

    image = picture(0, (60, 60))
    wrong = CLIPModel.from_pretrained(folder)
    assert wrong.config.vision_config.hidden_act == "quick_gelu"
    for module in wrong.modules():
        if hasattr(module, "activation_fn"):
            module.activation_fn = nn.GELU()
    pixels = official.preprocess(image)[None]
    with torch.no_grad():
        embedding = wrong.visual_projection(wrong.vision_model(pixels).pooler_output)
        gelu = official.head(nn.functional.normalize(embedding)).item()
    here = load_reward("aesthetic", str(folder)).score([""], [image])[0]
    assert abs(official.aesthetic(image) - here) < 1e-5 < 1e-4 < abs(gelu - here)


def test_entities_are_resolved_as_openai_does(folder: Path, official: OfficialScorer, size: str):
    """transformers' tokenizer keeps `&amp;`; OpenAI's resolves it, and so does the CLIP score here."""
    image = picture(0, (60, 60))
    scores = load_reward("clip_score", str(folder)).score(["salt &amp; pepper", "salt & pepper"], [image] * 2)
    assert scores[0] == scores[1]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("salt &amp; pepper").input_ids != tokenizer("salt & pepper").input_ids


def test_odd_margins_are_cropped_as_torchvision_does(folder: Path, official: OfficialScorer, size: str):
    """Of an odd margin, torchvision rounds the half to even and transformers rounds it down: one pixel apart."""
    short = IMAGE_SIZE[size]
    image = picture(5, (short + 3, short))
    here = load_reward("aesthetic", str(folder)).score([""], [image])[0]
    assert abs(official.aesthetic(image) - here) < 1e-5
    pixels = pil_processor(folder)(images=[image], return_tensors="pt")["pixel_values"]
    assert (pixels - official.preprocess(image)[None]).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["P", "RGBA", pytest.param("I;16", marks=needs_16_bit_resize)])
def test_images_are_made_rgb_before_resizing_here(mode: str, folder: Path, official: OfficialScorer, size: str):
    """OpenAI's code resizes first: palettes by the nearest pixel, RGBA weighed by its opacity, 16 bits clipped."""
    image = picture(4, (3 * IMAGE_SIZE[size] // 2, 3 * IMAGE_SIZE[size] // 2), mode)
    here = load_reward("aesthetic", str(folder)).score([""], [image])[0]
    assert abs(official.aesthetic(plain_rgb(image)) - here) < 1e-5 < 1e-4 < abs(official.aesthetic(image) - here)
