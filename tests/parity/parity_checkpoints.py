# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints with random weights in the official formats, small or at the official sizes."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import nn


VOCABULARY = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
IMAGE_SIZE = {"small": 32, "official": 224}
LOGIT_SCALE = 4.6052  # 100, as in the trained models
HEAD_WIDTHS = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # numbers that dropouts leave -> output width


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Weights under which activations neither vanish nor explode, so that scores depend on what they are given."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            weight.fill_(LOGIT_SCALE)
        elif weight.ndim == 1 or "embedding" in name or "pos_embed" in name:
            weight.normal_(0, 0.1, generator=generator)
        else:
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight += 1
    return model.eval()


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's vocabulary in transformers' files; open_clip ships it in OpenAI's."""
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in keep]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(line.split()) for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    settings |= {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_clip_processor(folder: Path, size: int) -> None:
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(folder)


def clip_config(size: str, official: str):
    """transformers' configuration: small, or that of OpenAI's ViT-L/14 (`"L"`) or of CLIP-H (`"H"`)."""
    from transformers import CLIPConfig

    vision = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision |= {"image_size": IMAGE_SIZE["small"], "patch_size": 8}
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    projection = 32
    if size == "official" and official == "H":
        vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
        vision |= {"image_size": 224, "patch_size": 14}
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        projection = 1024
    elif size == "official":
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        vision |= {"image_size": 224, "patch_size": 14}
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        projection = 768
    shared = {"hidden_act": "gelu" if official == "H" else "quick_gelu", "projection_dim": projection}
    text |= {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
    return CLIPConfig(
        vision_config={**vision, **shared},
        text_config={**text, **shared, "pad_token_id": 49407},
        projection_dim=projection,
    )


def write_clip(folder: Path, size: str, official: str) -> Path:
    """A folder like `yuvalkirstain/PickScore_v1` (H) or `openai/clip-vit-large-patch14` (L)."""
    from transformers import CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    model = randomize(CLIPModel(clip_config(size, official)), seed=1)
    model.save_pretrained(folder)
    write_clip_tokenizer(folder)
    write_clip_processor(folder, IMAGE_SIZE[size])
    return folder


def write_head(path: Path, width: int) -> Path:
    """A head in the format of `sac+logos+ava1-l14-linearMSE.pth`."""
    generator = torch.Generator().manual_seed(2)
    state = {}
    for number, outputs in HEAD_WIDTHS.items():
        state[f"layers.{number}.weight"] = torch.randn(outputs, width, generator=generator) * width**-0.5
        state[f"layers.{number}.bias"] = torch.randn(outputs, generator=generator)
        width = outputs
    torch.save(state, path)
    return path


def hps_config(size: str) -> dict:
    """open_clip's configuration of ViT-H-14, or a small one with its vocabulary."""
    if size == "official":
        return open_clip.get_model_config("ViT-H-14")
    vision = {"image_size": IMAGE_SIZE["small"], "patch_size": 8, "width": 48, "head_width": 16, "layers": 2}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}


def write_hps(folder: Path, size: str) -> Path:
    """A folder with `HPS_v2.1_compressed.pt`: float16 under `state_dict`."""
    from open_clip.model import CLIP

    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = CLIP(**hps_config(size))
    model = randomize(model.to_empty(device="cpu"), seed=3).half()
    torch.save({"state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    if size == "small":
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": hps_config(size)}))
    return folder


MED_CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 1024,
    "add_cross_attention": True,
}
SMALL_MED = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}


def write_bert_tokenizer(folder: Path) -> None:
    """`vocab.txt` with the layout of bert-base-uncased: special tokens at their numbers, letters, some words."""
    words = [f"[unused{i}]" for i in range(30522)]
    for number, word in ((0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")):
        words[number] = word
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    known = [*letters, *(f"##{letter}" for letter in letters if letter.isalnum())]
    known += [
        "red",
        "circle",
        "and",
        "two",
        "stars",
        "word",
        "many",
        "of",
        "##s",
        "a",
        "robot",
        "riding",
        "the",
        "end",
    ]
    known = list(dict.fromkeys(known))
    words[999 : 999 + len(known)] = known
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def write_image_reward(folder: Path, size: str, build: Callable[[Path], nn.Module]) -> Path:
    """A folder with `ImageReward.pt` and `med_config.json`; `build` makes the official model from the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    config = MED_CONFIG | (SMALL_MED if size == "small" else {})
    (folder / "med_config.json").write_text(json.dumps(config))
    write_bert_tokenizer(folder)
    torch.save(randomize(build(folder), seed=4).state_dict(), folder / "ImageReward.pt")
    return folder
