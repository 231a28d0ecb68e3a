# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""PickScore (arXiv 2305.01569): transformers' CLIP-H fine-tuned on Pick-a-Pic; the score is the scaled cosine."""

from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from ..errors import UserError
from .base import PromptImageReward, feature_tensor
from .preprocessing import ClipProcessor


PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # whose tokenizer and preprocessing PickScore and MPS use
PROCESSOR_REVISION = "1c2b8495b28150b8a4922ee1c8edee224c284c0c"


def load_clip_h_tokenizer(reward: str, folder: Path) -> PreTrainedTokenizerBase:
    """transformers' tokenizer in a checkpoint's folder, or that of CLIP-H if it has none."""
    try:
        if (folder / "vocab.json").exists() or (folder / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(PROCESSOR, revision=PROCESSOR_REVISION)
    except OSError:
        raise UserError(
            f"reward {reward}: needs the tokenizer of {PROCESSOR} (3 MB) from huggingface.co, which is not in the cache "
            f"and could not be downloaded; or put its files into {folder}"
        ) from None


class PickScoreReward(PromptImageReward):
    """PickScore as its README computes it. Others publish the bare cosine, or divide by 26.

    The checkpoint's own tokenizer and `preprocessor_config.json` are used if it has them.
    """

    name, unit = "pickscore", "logit_scale.exp() * cosine"
    hub_id, revision = "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"
    size = "3.94 GB"

    def _load(self) -> SimpleNamespace:
        tokenizer = load_clip_h_tokenizer(self.name, self._path)
        clip = CLIPModel.from_pretrained(self._path).float().eval().to(self.device)
        return SimpleNamespace(clip=clip, tokenizer=tokenizer, processor=ClipProcessor.from_folder(self._path))

    def _scale(self) -> torch.Tensor:
        return self.model.clip.logit_scale.float().exp()

    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        with self._autocast():
            return feature_tensor(self.model.clip.get_image_features(self.model.processor(images).to(self.device)))

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        length = self.model.clip.config.text_config.max_position_embeddings
        tokens = self.model.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        with self._autocast():
            return feature_tensor(self.model.clip.get_text_features(ids, attention_mask=mask))
