# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Small models in the file formats of the real rewards, as their training needs them, and the teacher of both."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from diffusers_craft.rewards.preprocessing import CLIP_MEAN, CLIP_STD
from diffusers_craft.tiny.world import BACKGROUNDS, IMAGE_SIZE

from .lexicon import MAX_TOKENS, build_tokenizer, build_tokenizer_files
from .preferences import OBJECT_FEATURES, PATCH, SceneTensors


EMBED = 64  # width of the shared space of images and texts
SCALE = 16.0  # inverse temperature of every softmax and of PickScore's logit scale


@dataclass(frozen=True)
class Recipe:
    """What makes one tiny reward differ from another. `content_first`: a flawed exact picture beats a clean wrong one."""

    seed: int
    vision_width: int
    vision_layers: int
    text_width: int = 64
    teacher_steps: int = 1600
    vision_steps: int = 3000
    patch: int = PATCH  # pixels
    content_first: bool = True


class OpenClipTowers:
    """A small open_clip model in the format of `HPS_v2.1_compressed.pt`."""

    def __init__(self, recipe: Recipe, folder: Path):
        bpe = build_tokenizer_files(folder)["bpe_simple_vocab_16e6.txt.gz"]
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
        self.tokenizer = SimpleTokenizer(bpe_path=str(bpe), context_length=MAX_TOKENS)
        vision = {"image_size": IMAGE_SIZE, "patch_size": recipe.patch, "width": recipe.vision_width, "head_width": 16}
        text = {"context_length": MAX_TOKENS, "vocab_size": self.tokenizer.vocab_size, "width": recipe.text_width}
        self.config = {
            "embed_dim": EMBED,
            "vision_cfg": {**vision, "layers": recipe.vision_layers},
            "text_cfg": {**text, "heads": 4, "layers": 2},
        }
        self.model = CLIP(**self.config)
        self.model.visual.output_tokens = True

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(texts)

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """`CLIP.encode_text` for sequences that may be shorter than the context."""
        model, length = self.model, ids.shape[1]
        x = model.token_embedding(ids) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection

    def vision(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.visual(pixels)

    def save(self, folder: Path) -> None:
        state = {name: tensor.half() for name, tensor in self.model.state_dict().items()}
        torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": self.config}, indent=2) + "\n")


class TransformersTowers:
    """A small `CLIPModel` with tokenizer and image processor, PickScore's format."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.tokenizer = build_tokenizer(folder)
        (folder / "bpe_simple_vocab_16e6.txt.gz").unlink()
        self.model = CLIPModel(
            CLIPConfig(
                vision_config=vision_config(recipe),
                text_config={
                    "vocab_size": len(self.tokenizer),
                    "hidden_size": recipe.text_width,
                    "intermediate_size": 4 * recipe.text_width,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "max_position_embeddings": MAX_TOKENS,
                    "bos_token_id": self.tokenizer.bos_token_id,
                    "eos_token_id": self.tokenizer.eos_token_id,
                    "pad_token_id": self.tokenizer.pad_token_id,
                },
                projection_dim=EMBED,
                logit_scale_init_value=float(np.log(SCALE)),
            )
        )

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

    def vision(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.model.vision_model(pixel_values=pixels)
        return self.model.visual_projection(out.pooler_output), out.last_hidden_state[:, 1:]

    def save(self, folder: Path) -> None:
        self.model.half().save_pretrained(folder)
        self.model.float()
        self.tokenizer.save_pretrained(folder)
        save_processor(folder)


def vision_config(recipe: Recipe) -> dict:
    return {
        "image_size": IMAGE_SIZE,
        "patch_size": recipe.patch,
        "hidden_size": recipe.vision_width,
        "intermediate_size": 4 * recipe.vision_width,
        "num_hidden_layers": recipe.vision_layers,
        "num_attention_heads": 4,
        "projection_dim": EMBED,
    }


def save_processor(folder: Path) -> None:
    """The image processor as released checkpoints describe it: short side, centre crop, CLIP's mean and deviation."""
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


class Teacher(nn.Module):
    """Embeds scenes given as objects, background (N, 3) and two flaws (N, 2): severity and whether shapes are bent."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.object = nn.Linear(OBJECT_FEATURES, width)
        self.ground = nn.Linear(len(BACKGROUNDS) + 2, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, EMBED))

    def forward(self, scenes: SceneTensors, flaws: torch.Tensor) -> torch.Tensor:
        ground = self.ground(torch.cat([scenes.background, flaws], -1))[:, None]
        return F.normalize(self.out(self.encoder(torch.cat([ground, self.object(scenes.objects)], 1))[:, 0]), dim=-1)
