# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""T2I-CompBench (arXiv 2307.06350) as a metric: BLIP-VQA, CLIP ViT-B/32 and their mean for complex prompts.

UniDet, which judges spatial relations there, has no maintained replacement: rows that need it have no score (NaN).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizerFast, BlipForQuestionAnswering

from ...errors import UserError
from ..base import cosines
from ..clip_score import RewardWithClip
from ..preprocessing import normalize_pixels, to_rgb, to_tensor


MAX_QUESTION = 35  # tokens
CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex")  # the first three judged by BLIP-VQA
MAX_CHUNKS = 8  # noun phrases per prompt
# The three_in_one label of a complex prompt -> the evaluators whose mean is its score; no label means all three.
THREE_IN_ONE = {"spatial": ("blip", "unidet"), "action": ("blip", "clip"), "spatialaction": ("blip", "unidet", "clip")}


def evaluators(category: str, three_in_one: str | None = None) -> tuple[str, ...]:
    """Which of `blip`, `clip` and `unidet` a prompt's score is the mean of."""
    if category != "complex":
        return {"spatial": ("unidet",), "non_spatial": ("clip",)}.get(category, ("blip",))
    if (label := three_in_one or "spatialaction") not in THREE_IN_ONE:
        raise UserError(f"three_in_one: expected one of {', '.join(THREE_IN_ONE)}, found {label!r}")
    return THREE_IN_ONE[label]


def attribute_score(answers: Sequence[Sequence[float]]) -> float:
    """BLIP-VQA's score: the product over noun phrases of p(yes) / (p(yes) + p(no)); 1 for a prompt without any."""
    return float(np.prod([yes / (yes + no) for yes, no in answers]))


class CompBenchReward(RewardWithClip):
    """T2I-CompBench's score in [0, 1] of its own prompts, see `bind`; NaN for those that need UniDet.

    `checkpoint` is `BLIP` or `BLIP,CLIP`, Hub ids or folders: a `BlipForQuestionAnswering` and a `CLIPModel`.
    """

    name = "t2i_compbench"
    hub_id, clip_id = "Salesforce/blip-vqa-capfilt-large", "openai/clip-vit-base-patch32"
    size, architecture = "1.54 GB", "BlipForQuestionAnswering"
    unit = "probability, product over noun phrases; cosine for non-spatial prompts; their mean for complex ones"
    abstains = True
    note = "t2i_compbench: UniDet left out: no score for spatial prompts and for complex ones labelled spatial or "
    note += "spatialaction, so `complex` is the mean over those labelled action."

    image_size = 480  # pixels, as the official evaluator; the Hub's positions are of 384 and interpolated

    def __init__(self, checkpoint: str | None = None, **options):
        super().__init__(checkpoint, **options)
        self._kinds: dict[str, tuple[str, str | None]] = {}  # prompt -> category, three_in_one

    @cached_property
    def parse(self) -> Callable[[str], tuple[list[str], str]]:
        """Prompt to its noun phrases and itself without adjectives, by the official parser: spaCy's small English model."""
        try:
            import spacy

            nlp = spacy.load("en_core_web_sm")
        except (ImportError, OSError):
            needs = "reward t2i_compbench: needs the package spacy and its English model; install them with: "
            raise UserError(f"{needs}pip install spacy && python -m spacy download en_core_web_sm") from None

        def parse(prompt: str) -> tuple[list[str], str]:
            document = nlp(prompt)
            chunks = [str(chunk) for chunk in document.noun_chunks][:MAX_CHUNKS]
            return chunks, " ".join(token.text for token in document if token.pos_ != "ADJ")

        return parse

    @property
    def checkpoint(self) -> dict[str, Any]:
        return {**super().checkpoint, "clip": self._clip.checkpoint}

    def bind(self, prompts: Any) -> bool:
        """Learns the categories of a set; whether it is T2I-CompBench's, i.e. all its categories are."""
        kinds = {row.prompt: (row.category, row.details.get("three_in_one")) for row in prompts.rows}
        if not all(category in CATEGORIES for category, _ in kinds.values()):
            return False
        for kind in kinds.values():
            evaluators(*kind)  # refuses an unknown label
        _ = self.parse  # spaCy is missing now rather than after hours
        self._kinds |= kinds
        return True

    def _load(self) -> SimpleNamespace:
        blip = BlipForQuestionAnswering.from_pretrained(self._path).float().eval().to(self.device)
        tokenizer = BertTokenizerFast.from_pretrained(self._path)
        if tokenizer.unk_token_id in tokenizer.convert_tokens_to_ids(["yes", "no"]):
            expected = "expected the words yes and no in the vocabulary"
            raise UserError(f"--reward_checkpoint t2i_compbench: {expected} of {self._path}")
        return SimpleNamespace(blip=blip, tokenizer=tokenizer)

    def yes_and_no(self, image: Image.Image, questions: Sequence[str]) -> list[list[float]]:
        """Probabilities of the answers yes and no to each question about an image: the first token's."""
        blip, tokenizer = self.model.blip, self.model.tokenizer
        picture = to_rgb(image).resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        pixels = normalize_pixels(to_tensor(picture)[None]).to(self.device)
        start, words = blip.config.text_config.bos_token_id, tokenizer.convert_tokens_to_ids(["yes", "no"])
        answers = []
        with self._autocast():
            seen = blip.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
            for question in questions:  # one by one: in a batch, padding changes transformers' answers
                ids = tokenizer(question, truncation=True, max_length=MAX_QUESTION, return_tensors="pt").input_ids
                ids[:, 0] = start + 1  # BLIP's token for encoding beside an image
                asked = blip.text_encoder(input_ids=ids.to(self.device), encoder_hidden_states=seen).last_hidden_state
                begin = torch.tensor([[start]], device=self.device)
                logits = blip.text_decoder(input_ids=begin, encoder_hidden_states=asked).logits
                answers.append(logits[0, 0].float().softmax(-1)[words].tolist())
        return answers

    def _score(self, prompts: list[str], images: list[Image.Image]) -> torch.Tensor:
        return torch.tensor([self._score_one(*pair) for pair in zip(prompts, images)])

    def _score_one(self, prompt: str, image: Image.Image) -> float:
        if prompt not in self._kinds:
            raise UserError(f"--rewards t2i_compbench: expected a prompt of its own file, found {prompt!r}")
        category, wanted = self._kinds[prompt][0], evaluators(*self._kinds[prompt])
        if "unidet" in wanted:
            return float("nan")
        chunks, without_adjectives = self.parse(prompt)
        scores = []
        if "blip" in wanted:
            scores.append(attribute_score(self.yes_and_no(image, [f"{c}?" for c in chunks])) if chunks else 1.0)
        if "clip" in wanted:
            text = self._clip.encode_prompts([without_adjectives if category == "complex" else prompt])
            scores.append(float(cosines(self._clip.encode_images([image]), text)[0]))
        return float(np.mean(scores))
