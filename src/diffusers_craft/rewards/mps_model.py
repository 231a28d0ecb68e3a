# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""MPS's cross model: CLIP's image tokens attend to the prompt's tokens and to each other, in four layers.

Both kinds of block have one key and one value for all heads (arXiv 1911.02150), a gated feed-forward network beside the
attention, and a residual connection around both.
"""

import torch
from torch import nn
from torch.nn import functional as F


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

    def __init__(self, width: int, heads: int, head_width: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * hidden, bias=False), GatedLinearUnit(), nn.Linear(hidden, width, bias=False)
        )

    def forward(self, image: torch.Tensor, text: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = self.norm(image)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(text).chunk(2, dim=-1)
        return image + self.to_out(_attend(q, k, v, keep[:, None, None])) + self.ff(x)


class SelfBlock(nn.Module):
    """Image tokens attend to each other, with rotary positions (arXiv 2104.09864)."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.widths = (heads * head_width, head_width, head_width, 2 * hidden)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * head_width, width, bias=False)
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
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x + self.attn_out(_attend(self._rotate(q), self._rotate(k), v)) + self.ff_out(ff)


class CrossModel(nn.Module):
    """The layers one after another; sizes are 4, 1024, 16, 64 and 4096 in the published model."""

    def __init__(self, layers: int, width: int, heads: int, head_width: int, hidden: int):
        super().__init__()
        sizes = width, heads, head_width, hidden
        blocks = [{"cross": CrossBlock(*sizes), "own": SelfBlock(*sizes)} for _ in range(layers)]
        self.layers = nn.ModuleList(map(nn.ModuleDict, blocks))

    @staticmethod
    def sizes(state: dict[str, torch.Tensor]) -> dict[str, int]:
        """The arguments that fit a state dict."""
        inner, width = state["layers.0.cross.to_q.weight"].shape
        head_width = state["layers.0.cross.to_kv.weight"].shape[0] // 2
        heads, hidden = inner // head_width, state["layers.0.cross.ff.2.weight"].shape[1]
        layers = len([name for name in state if name.endswith("to_q.weight")])
        return {"layers": layers, "width": width, "heads": heads, "head_width": head_width, "hidden": hidden}

    def forward(self, image: torch.Tensor, text: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Image tokens (B, N, width) and text tokens (B, T, width), of which `keep` (B, T) bool are seen: (B, N, width)."""
        for layer in self.layers:
            image = layer["own"](layer["cross"](image, text, keep))
        return image
