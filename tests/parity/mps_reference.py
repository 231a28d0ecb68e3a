# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""MPS computed one image at a time from its description, in modules whose names are those of the published checkpoint.

`save_whole` pickles such a module under the class names of the published one: the official format.
"""

import sys
import types
from pathlib import Path

import torch
from parity_checkpoints import clip_config, randomize
from torch import nn
from transformers import CLIPModel as TransformersCLIP


class LayerNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class SwiGLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return x[..., half:] * torch.sigmoid(x[..., half:]) * x[..., :half]


def softmax_rows(logits: torch.Tensor) -> torch.Tensor:
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True)


class RotaryEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, width, 2) / width))

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """x (N, D): the pair (x[i], x[i + D/2]) of row n as a complex number times exp(i n f)."""
        half = x.shape[-1] // 2
        angles = torch.arange(len(x)).double()[:, None] * self.inv_freq.double()
        turned = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.polar(
            torch.ones_like(angles), angles
        )
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


class ParallelTransformerBlock(nn.Module):
    def __init__(self, width: int, head: int, heads: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.sizes = [head * heads, head, head, 8 * width]
        self.rotary_emb = RotaryEmbedding(head)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(head * heads, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))
        self.register_buffer("pos_emb", torch.zeros(3, head), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, dim=-1)
        k, outputs = self.rotary_emb.turn(k), []
        for part in q.split(k.shape[-1], dim=-1):
            outputs.append(softmax_rows(self.rotary_emb.turn(part) @ k.T / k.shape[-1] ** 0.5) @ v)
        return self.attn_out(torch.cat(outputs, dim=-1)) + self.ff_out(ff)


class CrossAttention(nn.Module):
    def __init__(self, width: int, head: int, heads: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.context_norm = nn.Identity()
        self.to_q = nn.Linear(width, head * heads, bias=False)
        self.to_kv = nn.Linear(width, 2 * head, bias=False)
        self.to_out = nn.Linear(head * heads, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        k, v = self.to_kv(text).tensor_split(2, dim=-1)
        heads = [softmax_rows(q @ k.T / k.shape[-1] ** 0.5 + mask) @ v for q in self.to_q(x).split(k.shape[-1], -1)]
        return self.to_out(torch.cat(heads, dim=-1)) + self.ff(x)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return x + self.fn(x, *context)


class Cross_model(nn.Module):
    def __init__(self, width: int, head: int, heads: int):
        super().__init__()
        blocks = (CrossAttention, ParallelTransformerBlock)
        self.layers = nn.ModuleList(
            nn.ModuleList(Residual(block(width, head, heads)) for block in blocks) for _ in range(4)
        )


class XCLIPModel(TransformersCLIP):
    pass


class CLIPModel(nn.Module):
    """The module that the checkpoint holds."""

    def __init__(self, size: str):
        super().__init__()
        self.model = XCLIPModel(clip_config(size, "H"))
        width = self.model.config.projection_dim
        self.cross_model = Cross_model(width, *((64, 16) if size == "official" else (8, 4)))

    @torch.no_grad()
    def text(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected embeddings of the tokens (T, D) and of the text (D,)."""
        hidden = self.model.text_projection(self.model.text_model(ids).last_hidden_state)[0]
        return hidden, hidden[int((ids[0] == 49407).float().argmax())]

    @torch.no_grad()
    def mask(self, text: torch.Tensor, condition: torch.Tensor, threshold: float) -> torch.Tensor:
        """(T,): 0 where the image may look, minus infinity elsewhere."""
        similarity = torch.stack([max(word @ other for other in condition) for word in text])
        return torch.where(similarity / similarity.max() > threshold, 0.0, float("-inf"))

    @torch.no_grad()
    def score(self, pixels: torch.Tensor, ids: torch.Tensor, condition_ids: torch.Tensor, threshold: float) -> float:
        """The raw score of one image and one prompt."""
        text, pooled = self.text(ids)
        mask = self.mask(text, self.text(condition_ids)[0], threshold)
        x = self.model.visual_projection(self.model.vision_model(pixels).last_hidden_state)[0]
        for cross, own in self.cross_model.layers:
            x = own(cross(x, text, mask))
        cosine = torch.nn.functional.cosine_similarity(x[0], pooled, dim=0)
        return float(self.model.logit_scale.exp() * cosine)


def save_whole(folder: Path, size: str) -> CLIPModel:
    """Writes `MPS_overall_checkpoint.pth` (half precision) and CLIP's `config.json`; gives the model in float32."""
    model = randomize(CLIPModel(size), seed=5).half()
    model.model.config.save_pretrained(folder)
    names = {"trainer.models.clip_model": (CLIPModel, XCLIPModel)}
    blocks = (LayerNorm, SwiGLU, RotaryEmbedding, ParallelTransformerBlock, CrossAttention, Residual, Cross_model)
    names |= {"trainer.models.cross_modeling": blocks, "trainer": (), "trainer.models": ()}
    homes = {}
    try:
        for name, classes in names.items():
            sys.modules[name] = types.ModuleType(name)
            for cls in classes:
                homes[cls] = cls.__module__
                cls.__module__ = name
                setattr(sys.modules[name], cls.__name__, cls)
        torch.save(model, folder / "MPS_overall_checkpoint.pth")
    finally:
        for cls, home in homes.items():
            cls.__module__ = home
        for name in names:
            sys.modules.pop(name, None)
    return model.float()
