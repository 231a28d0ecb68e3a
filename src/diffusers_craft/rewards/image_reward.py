# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""ImageReward (arXiv 2304.05977): BLIP reads image and prompt together; a head on its first token gives the score."""

import json
import math
from types import SimpleNamespace

import torch
from PIL import Image
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from ..errors import UserError
from .base import CheckpointReward
from .checkpoints import build_linear_head, fill_model, find_checkpoint, fitting_state, load_tensors
from .preprocessing import ClipProcessor


TOKENIZER, TOKENIZER_REVISION = "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"
TOKENS = 35  # every prompt is padded or cut to
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over the authors' data

# med_config.json of the official repository: BERT-base, and BLIP's two tokens more.
BERT = {"vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
BERT |= {"num_attention_heads": 12, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12}

# Names of the official vision transformer and of transformers' BLIP, in the order of replacement.
VISION_NAMES = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding"}
VISION_NAMES |= {"patch_embed.proj.": "embeddings.patch_embedding.", "blocks.": "encoder.layers."}
VISION_NAMES |= {"attn.": "self_attn.", "self_attn.proj.": "self_attn.projection.", ".norm": ".layer_norm"}
VISION_NAMES |= {"norm.": "post_layernorm."}  # of the whole, the only one without a number
# In the file, and no part of the score: BLIP's contrastive projections and the numbers 0, 1, 2, ...
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


def _split(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The official state dict by part (`vision`, `text`, `head`), with transformers' names."""
    parts: dict[str, dict[str, torch.Tensor]] = {"vision": {}, "text": {}, "head": {}}
    for name, tensor in state.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            for official, replacement in VISION_NAMES.items():
                name = name.replace(official, replacement)
            parts["vision"][name] = tensor.float()
        elif name.startswith("mlp."):
            parts["head"][name] = tensor
        elif name.startswith("blip.text_encoder.") and name not in UNUSED:
            parts["text"][name.removeprefix("blip.text_encoder.")] = tensor.float()
        elif not name.startswith(UNUSED):
            raise KeyError(f"the key {name}")
    return parts


def _vision_config(state: dict[str, torch.Tensor]) -> BlipVisionConfig:
    """Sizes of BLIP's vision transformer, from its tensors; heads are 64 wide in all of its sizes."""
    patches = state["embeddings.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "patch_size": patch}
    sizes["intermediate_size"] = state["encoder.layers.0.mlp.fc1.weight"].shape[0]
    sizes["num_hidden_layers"] = len([name for name in state if name.endswith("self_attn.qkv.weight")])
    sizes["image_size"] = patch * math.isqrt(state["embeddings.position_embedding"].shape[1] - 1)
    return BlipVisionConfig(**sizes, hidden_act="gelu", layer_norm_eps=1e-6)


class ImageRewardReward(CheckpointReward):
    """ImageReward's official score: the head's output, standardised with the authors' mean and deviation.

    The prompt's first token is `[CLS]` as in the official code, not BLIP's `[ENC]`. A model of another size keeps its
    `med_config.json` beside the file; a tokenizer there (`vocab.txt` or `tokenizer.json`) replaces bert-base-uncased's.
    """

    name, unit = "image_reward", f"(head - {MEAN:.5f}) / {STD:.5f}, about -2.3 to 2"
    hub_id, revision = "THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72"
    filename, size = "ImageReward.pt", "1.79 GB"

    def _tokenizer(self, vocabulary: int) -> BertTokenizer:
        folder = self._path.parent
        if not (folder / "vocab.txt").exists() and not (folder / "tokenizer.json").exists():
            try:
                folder = find_checkpoint(self.name, TOKENIZER, "vocab.txt", "0.2 MB", TOKENIZER_REVISION).parent
            except UserError:
                raise UserError(
                    f"reward {self.name}: needs vocab.txt of {TOKENIZER} (0.2 MB) from huggingface.co, which is not in "
                    f"the cache and could not be downloaded; or put it into {folder}"
                ) from None
        tokenizer = BertTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        if (found := len(tokenizer)) != vocabulary:
            flag = f"--reward_checkpoint {self.name}"
            raise UserError(f"{flag}: expected a tokenizer of {vocabulary} tokens, found {found}")
        return tokenizer

    def _load(self) -> SimpleNamespace:
        state = load_tensors(self.name, self._path)
        path = self._path.parent / "med_config.json"
        sizes = json.loads(path.read_text()) if path.exists() else {}
        with fitting_state(self.name, "ImageReward's state dict", self._path):
            sizes = {name: sizes.get(name, value) for name, value in BERT.items()}
            parts = _split(state)
            config = _vision_config(parts["vision"])
            # "Decoder" is what gives transformers' BERT its cross attention; the mask stays bidirectional.
            sizes |= {"encoder_hidden_size": config.hidden_size, "is_decoder": True, "use_cache": False}
            with torch.device("meta"):
                vision, text = BlipVisionModel(config), BlipTextModel(BlipTextConfig(**sizes), add_pooling_layer=False)
            fill_model(vision, parts["vision"])
            fill_model(text, parts["text"])
        head = build_linear_head(self.name, parts["head"], self._path)
        vision, text, head = (part.eval().to(self.device) for part in (vision, text, head))
        tokenizer = self._tokenizer(text.config.vocab_size)
        processor = ClipProcessor(config.image_size, config.image_size, half_even=True)
        return SimpleNamespace(vision=vision, text=text, head=head, tokenizer=tokenizer, processor=processor)

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return self._batched(self._score_batch, prompts, images)

    def _score_batch(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        model, options = self.model, {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        pixels = model.processor(images).to(self.device)
        tokens = model.tokenizer(prompts, **options, return_tensors="pt").to(self.device)
        with self._autocast():
            seen = model.vision(pixel_values=pixels).last_hidden_state
            read = model.text(tokens.input_ids, tokens.attention_mask, encoder_hidden_states=seen).last_hidden_state
        return (model.head(read[:, 0].float())[:, 0] - MEAN) / STD
