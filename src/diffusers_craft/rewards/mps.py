# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""MPS (arXiv 2405.14705): CLIP-H whose image tokens see only those words of the prompt that fit a condition."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from ..errors import UserError
from .base import CheckpointReward, cosines
from .checkpoints import fill_model, fitting_state, load_tensors, rest_in_checkpoint_precision
from .pickscore import load_clip_h_tokenizer
from .preprocessing import ClipProcessor
from .safe_pickle import read_pickled_module


FILENAME = "MPS_overall_checkpoint.pth"
URL = "https://drive.google.com/file/d/17qrK_aJkVNM75ZEvMEePpLj6L867MLkN"
# What the authors ask the "overall" model about.
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)

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
    """CLIP's and the cross model's tensors, under transformers' names and those of `CrossModel`."""
    clip, cross = {}, {}
    for name, tensor in state.items():
        if name.startswith("model.") and not name.endswith(".position_ids"):
            clip[name.removeprefix("model.")] = tensor
        elif name.startswith("cross_model."):
            cross[re.sub(r"\.fn\.(rotary_emb\.)?", ".", name.removeprefix("cross_model."))] = tensor
    if not clip or "layers.0.0.to_q.weight" not in cross:
        raise UserError(f"--reward_checkpoint mps: expected MPS's tensors in {path}, found {len(state)} others")
    return clip, cross


class MPSReward(CheckpointReward):
    """MPS's official score of overall preference; `checkpoint` is the official file, its conversion, or their folder.

    A token of the prompt is kept if its highest similarity to the condition's tokens is more than `threshold` of the
    prompt's maximum (officially the batch's, so that scores depend on the batch); their README has 0.01 instead of 0.3.
    CLIP's `config.json` (for other sizes), tokenizer and `preprocessor_config.json` beside the file are used.
    """

    name, unit, hub_id = "mps", "logit_scale.exp() * cosine", URL
    rests_in_half = True

    def __init__(self, checkpoint: str | None = None, condition: str = CONDITION, threshold: float = 0.3, **options):
        super().__init__(checkpoint, **options)
        self.condition, self.threshold = condition, threshold

    def _find(self, checkpoint: str | None) -> Path:
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
        folder, autocast = self._path.parent, self.dtype != torch.float32
        tokenizer = load_clip_h_tokenizer(self.name, folder)
        if self._path.suffix == ".safetensors":
            state = load_tensors(self.name, self._path)
        else:
            state = read_pickled_module(f"--reward_checkpoint {self.name}", self._path)
        clip_state, cross_state = _split(state, self._path)
        config = CLIPConfig.from_pretrained(folder) if (folder / "config.json").exists() else CLIPConfig(**CLIP_H)
        with fitting_state(self.name, "tensors of the sizes of config.json", self._path, found="others"):
            with torch.device("meta"):
                clip, cross = CLIPModel(config), CrossModel(cross_state)
            fill_model(clip, clip_state)
            fill_model(cross, cross_state)
        blocks = [*clip.text_model.encoder.layers, *clip.vision_model.encoder.layers]
        rest_in_checkpoint_precision(clip, blocks, clip.text_model.embeddings.token_embedding, autocast)
        rest_in_checkpoint_precision(cross, [block for layer in cross.layers for block in layer], None, autocast)
        clip, cross = clip.eval().to(self.device), cross.eval().to(self.device)
        model = SimpleNamespace(clip=clip, cross=cross, tokenizer=tokenizer)
        model.processor = ClipProcessor.from_folder(folder)
        model.condition = self._encode_text(model, [self.condition])[0][0]  # (T, D) float32, of its tokens
        return model

    def _encode_text(self, model: SimpleNamespace, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected embeddings of all tokens, padding among them, (B, T, D) and of the texts (B, D), float32."""
        length = model.clip.config.text_config.max_position_embeddings
        # The authors pad with the end of text, and mask nothing.
        tokens = model.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with self._autocast(), torch.inference_mode():
            output = model.clip.text_model(input_ids=tokens.input_ids.to(self.device))
            hidden, whole = (model.clip.text_projection(x) for x in (output.last_hidden_state, output.pooler_output))
        return hidden.float(), whole.float()

    def encode_prompts(self, prompts: list[str]) -> list[tuple[torch.Tensor, ...]]:
        """Of each prompt of a batch the embeddings of its tokens (T, D), its own (D,), and which tokens images see (T,)."""
        hidden, whole = self._encode_text(self.model, prompts)
        similarity = (hidden @ self.model.condition.T).amax(-1)  # (B, T)
        keep = similarity / similarity.amax(-1, keepdim=True) > self.threshold
        return list(zip(hidden, whole, keep))

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        # In the order of the prompts: each is encoded once, and only those of one batch are held (0.3 MB each).
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        order = sorted(range(len(prompts)), key=lambda row: distinct[prompts[row]])
        clip, scores = self.model.clip, torch.empty(len(images))
        encoded: dict[str, tuple[torch.Tensor, ...]] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            wanted = dict.fromkeys(prompts[row] for row in rows)
            encoded = {prompt: encoded[prompt] for prompt in wanted if prompt in encoded}
            if new := [prompt for prompt in wanted if prompt not in encoded]:
                encoded |= zip(new, self.encode_prompts(new))
            tokens, whole, keep = map(torch.stack, zip(*(encoded[prompts[row]] for row in rows)))
            pixels = self.model.processor([images[row] for row in rows]).to(self.device)
            with self._autocast():
                seen = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)
                embeddings = self.model.cross(seen, tokens, keep)[:, 0]
            scores[rows] = cosines(embeddings, whole).cpu()
        return scores * clip.logit_scale.float().exp().cpu()


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention of q (B, H, N, D) to k and v (B, M, D) that all heads share: (B, N, H * D). Mask: (B, 1, 1, M)."""
    k, v = (x[:, None].expand(-1, q.shape[1], -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class GatedLinearUnit(nn.Module):
    """The first half of the features, gated by the second (SwiGLU, arXiv 2002.05202)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class CrossBlock(nn.Module):
    """Image tokens attend to text tokens."""

    def __init__(self, width: int, inner: int, head_width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        up, down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.ff = nn.Sequential(up, GatedLinearUnit(), down)

    def forward(self, image: torch.Tensor, text: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = self.norm(image)
        k, v = self.to_kv(text).chunk(2, dim=-1)
        q = self.to_q(x).unflatten(-1, (-1, k.shape[-1])).transpose(1, 2)
        return image + self.to_out(_attend(q, k, v, keep[:, None, None])) + self.ff(x)


class SelfBlock(nn.Module):
    """Image tokens attend to each other, with rotary positions (arXiv 2104.09864)."""

    def __init__(self, width: int, inner: int, head_width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widths = (inner, head_width, head_width, 2 * hidden)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Sequential(GatedLinearUnit(), nn.Linear(hidden, width, bias=False))
        # From the file, where half precision has rounded it: recomputed frequencies would give other scores.
        self.register_buffer("inv_freq", torch.empty(head_width // 2))

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Turns the pairs (x[i], x[i + D / 2]) of (..., N, D) by their position times their frequency."""
        angles = torch.arange(x.shape[-2], device=x.device)[:, None] * self.inv_freq.float()
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.widths, dim=-1)
        q = q.unflatten(-1, (-1, k.shape[-1])).transpose(1, 2)
        return x + self.attn_out(_attend(self._rotate(q), self._rotate(k), v)) + self.ff_out(ff)


class CrossModel(nn.Module):
    """Layers of the sizes of a state dict: image tokens attend to the prompt's tokens, then to each other.

    Both blocks have one key and one value for all heads (arXiv 1911.02150) and a gated network beside the attention.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        inner, width = state["layers.0.0.to_q.weight"].shape
        head_width = state["layers.0.0.to_kv.weight"].shape[0] // 2
        sizes = width, inner, head_width, state["layers.0.0.ff.2.weight"].shape[1]
        layers = len([name for name in state if name.endswith("to_q.weight")])
        self.layers = nn.ModuleList(nn.ModuleList([CrossBlock(*sizes), SelfBlock(*sizes)]) for _ in range(layers))

    def forward(self, image: torch.Tensor, text: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Image tokens (B, N, width) and text tokens (B, T, width), of which `keep` (B, T) bool are seen: (B, N, width)."""
        for cross, own in self.layers:
            image = own(cross(image, text, keep))
        return image
