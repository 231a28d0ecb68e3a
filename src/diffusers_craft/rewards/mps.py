# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""MPS (arXiv 2405.14705): CLIP-H whose image tokens see only those words of the prompt that fit a condition."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from ..errors import UserError
from .base import CheckpointReward, cosines
from .checkpoints import fill_model, fitting_state, load_tensors
from .mps_model import CrossModel
from .pickscore import load_clip_h_tokenizer
from .precision import rest_in_checkpoint_precision
from .preprocessing import ClipProcessor
from .safe_pickle import read_pickled_module


FILENAME = "MPS_overall_checkpoint.pth"
URL = "https://drive.google.com/file/d/17qrK_aJkVNM75ZEvMEePpLj6L867MLkN"
# What the authors ask the "overall" model about.
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
THRESHOLD = 0.3  # of their evaluation script; their README has 0.01

# config.json of CLIP-H, for checkpoints without one beside them.
_TOWER = {"num_attention_heads": 16, "hidden_act": "gelu", "projection_dim": 1024}
_TEXT = _TOWER | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "vocab_size": 49408}
_TEXT |= {"max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
_VISION = _TOWER | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
_VISION |= {"image_size": 224, "patch_size": 14}
CLIP_H = {"projection_dim": 1024, "text_config": _TEXT, "vision_config": _VISION}


def convert_mps_checkpoint(pickle_path: str | Path, output_path: str | Path) -> None:
    """Writes the tensors of the official checkpoint, a pickled module, as safetensors; nothing in the pickle runs.

    Names and precision in the `.safetensors`, which is for `--reward_checkpoint mps=...`, are those of the module.
    """
    output_path = Path(output_path)
    if output_path.suffix != ".safetensors":
        raise UserError(f"convert_mps_checkpoint: expected an output_path of .safetensors, found {output_path}")
    state = read_pickled_module("convert_mps_checkpoint", pickle_path)
    _split(state, Path(pickle_path))
    partial = output_path.with_name(f".{output_path.name}.partial")
    try:
        save_file({name: tensor.clone() for name, tensor in state.items()}, partial)
        os.replace(partial, output_path)
    finally:
        partial.unlink(missing_ok=True)


def _split(state: dict[str, torch.Tensor], path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """CLIP's and the cross model's tensors, under transformers' names and those of `mps_model`."""
    clip, cross = {}, {}
    for name, tensor in state.items():
        if name.startswith("model.") and not name.endswith(".position_ids"):
            clip[name.removeprefix("model.")] = tensor
        elif name.startswith("cross_model."):
            name = re.sub(r"(layers\.\d+)\.0\.fn\.", r"\1.cross.", name.removeprefix("cross_model."))
            name = re.sub(r"(layers\.\d+)\.1\.fn\.(rotary_emb\.)?", r"\1.own.", name)
            cross[name] = tensor
    if not clip or "layers.0.cross.to_q.weight" not in cross:
        raise UserError(f"--reward_checkpoint mps: expected MPS's tensors in {path}, found {len(state)} others")
    return clip, cross


class MPSReward(CheckpointReward):
    """MPS's official score of overall preference.

    A token of the prompt is kept if its highest similarity to the condition's tokens is more than `threshold` of the
    prompt's own maximum. The official code divides by the maximum of the whole batch, so that a score depends on the
    batch it is in; at batch size 1 both are the same.

    Args:
        checkpoint (`str`): `MPS_overall_checkpoint.pth`, its conversion by `convert_mps_checkpoint` (which loads faster), or
            a folder with one of them. A model of another size keeps CLIP's `config.json` beside it; a tokenizer and a
            `preprocessor_config.json` beside it are used.
        condition (`str`, *optional*): the authors' "overall" condition by default.
        threshold (`float`, defaults to 0.3): that of the authors' evaluation; their README's code has 0.01.
    """

    name = "mps"
    unit = "logit_scale.exp() * cosine"
    hub_id = URL

    def __init__(
        self, checkpoint: str | None = None, condition: str = CONDITION, threshold: float = THRESHOLD, **options
    ):
        super().__init__(checkpoint, **options)
        self.condition, self.threshold = condition, threshold

    def _find(self, checkpoint: str | None) -> Path:
        """The official file or its conversion, in a folder or by itself."""
        if checkpoint is None:
            raise UserError(
                f"reward mps: needs {FILENAME} (about 2.2 GB) from {URL}, which only a browser can download; "
                "name a local copy: --reward_checkpoint mps=PATH"
            )
        path = Path(checkpoint).expanduser()
        found = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.pth")) if path.is_dir() else [path]
        if not found or not found[0].exists():
            raise UserError(f"--reward_checkpoint mps: expected {FILENAME} or its .safetensors, found {checkpoint!r}")
        return found[0]

    @property
    def source(self) -> dict[str, str]:
        return {**super().source, "condition": self.condition, "threshold": f"{self.threshold:g}"}

    def _load(self) -> SimpleNamespace:
        folder = self._path.parent
        tokenizer = load_clip_h_tokenizer(self.name, folder)
        if self._path.suffix == ".safetensors":
            state = load_tensors(self.name, self._path)
        else:
            state = read_pickled_module(f"--reward_checkpoint {self.name}", self._path)
        clip_state, cross_state = _split(state, self._path)
        own = (folder / "config.json").exists()
        config = CLIPConfig.from_pretrained(folder) if own else CLIPConfig(**CLIP_H)
        with fitting_state(self.name, "tensors of the sizes of config.json", self._path, found="others"):
            with torch.device("meta"):
                clip, cross = CLIPModel(config), CrossModel(**CrossModel.sizes(cross_state))
            fill_model(clip, clip_state)
            fill_model(cross, cross_state)
        blocks = [*clip.text_model.encoder.layers, *clip.vision_model.encoder.layers]
        autocast = self.dtype != torch.float32
        rest_in_checkpoint_precision(clip, blocks, clip.text_model.embeddings.token_embedding, autocast)
        cross_blocks = [block for layer in cross.layers for block in layer.values()]
        rest_in_checkpoint_precision(cross, cross_blocks, None, autocast)
        clip, cross = clip.eval().to(self.device), cross.eval().to(self.device)
        condition = self._encode_text(clip, tokenizer, [self.condition])[0][0]  # (T, D) float32, of its tokens
        parts = {"clip": clip, "cross": cross, "tokenizer": tokenizer, "condition": condition}
        return SimpleNamespace(**parts, processor=ClipProcessor.from_folder(folder))

    def _encode_text(
        self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected embeddings of all tokens (B, T, D) and of the texts (B, D), float32.

        Padding takes part: the authors pad with the end of text, and mask nothing.
        """
        length = clip.config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with self._autocast(), torch.inference_mode():
            output = clip.text_model(input_ids=tokens.input_ids.to(self.device))
            hidden, whole = (clip.text_projection(x) for x in (output.last_hidden_state, output.pooler_output))
        return hidden.float(), whole.float()

    def encode_prompts(self, prompts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        """Of each prompt of a batch the embeddings of its tokens (T, D), its own (D,), and which tokens images see (T,)."""
        hidden, whole = self._encode_text(self.model.clip, self.model.tokenizer, prompts)
        similarity = (hidden @ self.model.condition.T).amax(-1)  # (B, T)
        keep = similarity / similarity.amax(-1, keepdim=True) > self.threshold
        return list(zip(hidden, whole, keep))

    def encode_images(self, images: list[Image.Image], text: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """(B, D) embeddings of one batch of images, each as the tokens `text` (B, T, D) of its prompt have it seen."""
        pixels = self.model.processor(images).to(self.device)
        with self._autocast():
            tokens = self.model.clip.vision_model(pixel_values=pixels).last_hidden_state
            return self.model.cross(self.model.clip.visual_projection(tokens), text, keep)[:, 0]

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        # In the order of the prompts: each is encoded once, and only those of one batch are held (0.3 MB each).
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        order = sorted(range(len(prompts)), key=lambda row: distinct[prompts[row]])
        scores = torch.empty(len(images))
        encoded: dict[str, tuple[torch.Tensor, ...]] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            wanted = dict.fromkeys(prompts[row] for row in rows)
            encoded = {prompt: encoded[prompt] for prompt in wanted if prompt in encoded}
            new = [prompt for prompt in wanted if prompt not in encoded]
            if new:
                encoded |= dict(zip(new, self.encode_prompts(new)))
            tokens, whole, keep = map(torch.stack, zip(*(encoded[prompts[row]] for row in rows)))
            embeddings = self.encode_images([images[row] for row in rows], tokens, keep)
            scores[rows] = cosines(embeddings, whole).cpu()
        return scores * self.model.clip.logit_scale.float().exp().cpu()
