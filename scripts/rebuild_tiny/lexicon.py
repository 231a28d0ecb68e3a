# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A byte-pair vocabulary of the tiny world, in the formats that transformers' and open_clip's CLIP tokenizers read."""

import gzip
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from diffusers_craft.prompts.refiners import MODIFIERS
from diffusers_craft.tiny.world import BACKGROUNDS, COLORS, COUNTS, RELATIONS, SHAPES


MAX_TOKENS = 32  # context length of every tiny text encoder


def lexicon() -> list[str]:
    """Every word that captions and refiners of the tiny world use."""
    plural = [f"{shape}{'es' if shape == 'cross' else 's'}" for shape in SHAPES]
    text = " ".join([*COLORS, *BACKGROUNDS, *SHAPES, *plural, *COUNTS, *RELATIONS, *MODIFIERS])
    return sorted(set(f"{text} a and on background , .".split()))


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of OpenAI's CLIP vocabulary."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def _merges() -> list[tuple[str, str]]:
    """Byte-pair merges after which every word of the lexicon is a single token."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=4096, end_of_word_suffix="</w>", show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator([" ".join(lexicon())], trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build_tokenizer_files(folder: str | Path) -> dict[str, Path]:
    """Writes `vocab.json`, `merges.txt` (transformers) and `bpe_simple_vocab_16e6.txt.gz` (open_clip) into `folder`.

    All three describe the same token ids: 256 bytes, 256 bytes that end a word, the merges, start and end of text.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges()
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    files = {name: folder / name for name in ("vocab.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")}
    files["vocab.json"].write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    files["merges.txt"].write_text(lines + "\n", encoding="utf-8")
    with open(files["bpe_simple_vocab_16e6.txt.gz"], "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(lines.encode())
    return files


def build_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """The transformers tokenizer over the files of [`build_tokenizer_files`], padding with the end of text."""
    build_tokenizer_files(folder)
    # By its files, since the constructor's arguments changed with transformers 5.
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")
