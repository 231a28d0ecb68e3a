# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""HPS v2.1 (arXiv 2306.09341): an open_clip ViT-H-14 tuned on human choices; the score is the bare cosine."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from open_clip import get_model_config
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from ..errors import UserError
from .base import PromptImageReward
from .checkpoints import file_hash, fitting_state, load_tensors, rest_in_checkpoint_precision
from .preprocessing import fit_and_pad, normalize_pixels


HPS_SHA256 = "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


def load_tokenizer(folder: Path, length: int) -> SimpleTokenizer:
    """OpenAI's tokenizer with the vocabulary in a checkpoint's folder, or its own."""
    vocabulary = {"bpe_path": str(path)} if (path := folder / VOCABULARY).exists() else {}
    return SimpleTokenizer(context_length=length, **vocabulary)


class HPSReward(PromptImageReward):
    """HPS v2.1's official score, the cosine by a ViT-H-14 tuned on human choices; papers print it times 100.

    A model of another size keeps `open_clip_config.json` (`{"model_cfg": ...}`) and, for another vocabulary,
    `bpe_simple_vocab_16e6.txt.gz` beside the file.
    """

    name, unit = "hps_v2.1", "cosine, no logit scale"
    hub_id, revision = "xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a"
    filename, size = "HPS_v2.1_compressed.pt", "1.97 GB"
    rests_in_half = True

    def _load(self) -> SimpleNamespace:
        if self._asked == self.hub_id and (found := file_hash(self._path)) != HPS_SHA256:
            message = f"expected sha256 {HPS_SHA256} of {self._path}, found {found}; delete it to retry"
            raise UserError(f"reward {self.name}: {message}")
        path = self._path.parent / "open_clip_config.json"
        config = json.loads(path.read_text())["model_cfg"] if path.exists() else get_model_config("ViT-H-14")
        with torch.device("meta"):
            clip = CLIP(**config)
        state = load_tensors(self.name, self._path)
        with fitting_state(self.name, "HPS v2.1's state dict", self._path):
            clip.load_state_dict(state["state_dict"], assign=True)  # never copied, and as they are (float16)
        # The one tensor that is not in the file: causal attention.
        clip.attn_mask = torch.full(clip.attn_mask.shape, float("-inf")).triu(1)
        blocks = [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]
        rest_in_checkpoint_precision(clip, blocks, clip.token_embedding, autocast=self.dtype != torch.float32)
        # open_clip casts embeddings to the weights' precision; the residual stream stays float32.
        clip.transformer.get_cast_dtype = lambda: torch.float32
        tokenizer = load_tokenizer(self._path.parent, config["text_cfg"]["context_length"])
        pixels = config["vision_cfg"]["image_size"]
        return SimpleNamespace(clip=clip.eval().to(self.device), tokenizer=tokenizer, image_size=pixels)

    def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([fit_and_pad(image, self.model.image_size) for image in images])
        with self._autocast():
            return self.model.clip.encode_image(normalize_pixels(pixels).to(self.device))

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        with self._autocast():
            return self.model.clip.encode_text(self.model.tokenizer(prompts).to(self.device))
