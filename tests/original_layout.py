# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Writes a diffusers pipeline as the single file of the original releases: names and shapes of CompVis' latent
diffusion for UNet and VAE, of open_clip for SDXL's second text encoder.
"""

import re
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file


Weights = dict[str, torch.Tensor]

_UNET_TOP = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
]
_UNET_RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
]
_VAE_ATTENTION = [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
_OPEN_CLIP = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
]


def save_single_file(pipeline: DiffusionPipeline, path: Path, *markers: str) -> None:
    """Writes UNet, VAE and text encoders into one `.safetensors` file, with empty tensors of the markers' names."""
    weights = {f"model.diffusion_model.{name}": value for name, value in _unet(pipeline.unet).items()}
    weights |= {f"first_stage_model.{name}": value for name, value in _vae(pipeline.vae).items()}
    two = hasattr(pipeline, "text_encoder_2")
    first = "conditioner.embedders.0" if two else "cond_stage_model"
    for name, value in _text(pipeline.text_encoder).items():
        weights[f"{first}.transformer.text_model.{name}"] = value
    if two:
        for name, value in _open_clip(pipeline.text_encoder_2).items():
            weights[f"conditioner.embedders.1.model.{name}"] = value
    weights |= {name: torch.tensor([]) for name in markers}
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, path)


def _replaced(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _unet(unet: torch.nn.Module) -> Weights:
    layers, weights = unet.config.layers_per_block, {}
    for name, value in unet.state_dict().items():
        new = _replaced(name, _UNET_TOP)
        if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            start = block * (layers + 1) + (side == "down")
            has_attention = hasattr((unet.down_blocks if side == "down" else unet.up_blocks)[block], "attentions")
            if kind == "downsamplers":
                new = f"input_blocks.{start + layers}.0.op.{rest.removeprefix('conv.')}"
            elif kind == "upsamplers":
                new = f"output_blocks.{start + layers}.{1 + has_attention}.{rest}"
            else:
                part = "input_blocks" if side == "down" else "output_blocks"
                new = f"{part}.{start + index}.{int(kind == 'attentions')}.{rest}"
        if ".resnets." in name:
            prefix, rest = re.fullmatch(r"((?:\w+_blocks\.\d+\.\d+|middle_block\.\d)\.)(.+)", new).groups()
            new = prefix + _replaced(rest, _UNET_RESNET)
        weights[new] = value
    return weights


def _vae(vae: torch.nn.Module) -> Weights:
    last, weights = len(vae.config.block_out_channels) - 1, {}
    for name, value in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{last - int(found[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{last - int(found[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        if match := re.fullmatch(r"(.+\.)mid_block\.attentions\.0\.(.+)", new):
            new = f"{match[1]}mid.attn_1.{_replaced(match[2], _VAE_ATTENTION)}"
            value = value[:, :, None, None] if value.ndim == 2 else value  # the original's are 1x1 convolutions
        weights[new] = value
    return weights


def _text(encoder: torch.nn.Module) -> Weights:
    return {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}


def _open_clip(encoder: torch.nn.Module) -> Weights:
    text, weights = _text(encoder), {}
    weights["text_projection"] = text.pop("text_projection.weight").T
    weights["positional_embedding"] = text.pop("embeddings.position_embedding.weight")
    weights["token_embedding.weight"] = text.pop("embeddings.token_embedding.weight")
    for kind in ("weight", "bias"):
        weights[f"ln_final.{kind}"] = text.pop(f"final_layer_norm.{kind}")
        for layer in range(encoder.config.num_hidden_layers):
            parts = [text.pop(f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            weights[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    for name, value in text.items():
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name):
            weights[f"transformer.resblocks.{match[1]}.{_replaced(match[2], _OPEN_CLIP)}"] = value
    return weights
