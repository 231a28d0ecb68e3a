# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompt refiners: an OpenAI-compatible service, a local LLM, a rule-based template, or none (CRAFT, section 3.2).

Refinements only diversify the candidates: images are scored against, and trained on, the original prompt.
"""

import logging
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from ..core.records import REFINED_SCHEMA, derive_seed
from ..core.workdir import Stage
from ..errors import UserError
from .llm import OpenAIRefiner, TransformersRefiner


logger = logging.getLogger(__name__)

# What `TemplateRefiner` appends, and how many of them at most.
MODIFIERS = ("sharp focus", "vivid colors", "crisp edges", "clean composition", "high quality", "masterpiece")
MODIFIERS += ("professional", "highly detailed")
MAX_MODIFIERS = 4


class PromptRefiner(Protocol):
    """What a refiner must offer. Any object that does can be given to the builder; nothing needs to be inherited:

        class Shout:
            name = "shout"
            options = {"refiner_marks": 3}

            def refine(self, prompt: str, n: int, seed: int) -> list[str]:
                return [prompt + "!" * (3 + i) for i in range(n)]

        CRAFTDatasetBuilder(pipeline, refiner=Shout())

    Attributes:
        name (`str`): is recorded with every text.
        options (`dict[str, Any]`): JSON values that determine the texts besides prompt and seed. They go into the records
            of a run, and a run is only resumed with the same ones.
        num_workers (`int`, *optional*): prompts that are refined at once, in threads; 1 without it.
    """

    name: str
    options: dict[str, Any]

    def refine(self, prompt: str, n: int, seed: int) -> list[str]:
        """`n` texts for a prompt, the same for the same seed; one that could not be made is the prompt itself."""
        ...


class IdentityRefiner:
    """Refines nothing: candidates differ by their seeds only."""

    name = "none"
    options: dict[str, Any] = {}

    def refine(self, prompt: str, n: int, seed: int) -> list[str]:
        return [prompt] * n


class TemplateRefiner:
    """Appends one to four words of quality to the prompt; the `n` results for a prompt are distinct sets of words."""

    name = "template"
    options: dict[str, Any] = {}

    def refine(self, prompt: str, n: int, seed: int) -> list[str]:
        available = sum(math.comb(len(MODIFIERS), size) for size in range(1, MAX_MODIFIERS + 1))
        if n > available:
            raise UserError(f"--num_refinements: expected at most {available} with --refiner template, found {n}")
        rng = random.Random(seed)
        texts: dict[frozenset[str], str] = {}
        while len(texts) < n:
            words = rng.sample(MODIFIERS, rng.randint(1, MAX_MODIFIERS))
            texts.setdefault(frozenset(words), ", ".join([prompt, *words]))
        return list(texts.values())


REFINERS = {kind.name: kind for kind in (OpenAIRefiner, TransformersRefiner, TemplateRefiner, IdentityRefiner)}


def load_refiner(name: str, **options: Any) -> PromptRefiner:
    """A refiner by name.

    Args:
        name (`str`): `"openai"`, `"transformers"`, `"template"` or `"none"`.
        options: arguments of its class (`model`, `base_url`, ...); those that are `None` keep their defaults.

    Raises:
        UserError: if the name is unknown, an option does not belong to it, or its model is not named.
    """
    if name not in REFINERS:
        raise UserError(f"--refiner: expected one of {', '.join(REFINERS)}, found {name!r}")
    options = {option: value for option, value in options.items() if value is not None}
    allowed = signature(REFINERS[name]).parameters
    for option in options:
        if option not in allowed:
            raise UserError(f"--refiner_{option}: expected no such option with --refiner {name}, found one")
    if "model" in allowed and "model" not in options:
        raise UserError(f"--refiner_model: expected the name of a model with --refiner {name}, found none")
    return REFINERS[name](**options)


def refine_prompts(
    prompts: Sequence[str], refiner: PromptRefiner, num_refinements: int, num_seeds: int, seed: int, stage: Stage
) -> pa.Table:
    """Writes the texts of all candidates to a stage, one row per candidate, and returns all rows (`REFINED_SCHEMA`).

    Prompt i is group i; of its `num_refinements` R, each with `num_seeds` S candidates, variant j is of refinement
    (j - 1) // S. A refiner's failures (the prompt itself) are marked `refined=False`. The stage has
    `len(prompts) * (1 + R * S)` rows, and shards that are done are kept. Its shards should hold whole groups: a group on
    two shards is refined for each of them.
    """
    size = 1 + num_refinements * num_seeds
    if num_refinements < 1 or num_seeds < 1:
        raise UserError(
            f"--num_refinements, --num_seeds: expected at least 1 each, found {num_refinements} and {num_seeds}"
        )
    if stage.num_rows != size * len(prompts):
        raise RuntimeError(f"{stage.path}: expected a stage of {size * len(prompts)} rows, found {stage.num_rows}")
    if not stage.is_complete:
        done = sum(len(stage.rows(shard)) for shard in range(stage.num_shards) if stage.is_done(shard))
        bar = tqdm(desc="Refine", unit="prompt", total=len(prompts), initial=done // size)
        with bar, ThreadPoolExecutor(getattr(refiner, "num_workers", 1)) as pool:
            for shard in stage.missing():
                rows = stage.rows(shard)
                groups = range(rows.start // size, (rows.stop - 1) // size + 1)
                refine = partial(_refine_prompt, refiner, num_refinements)
                seeds = [derive_seed(seed, "refine", group) for group in groups]
                records = []
                for group, texts in zip(groups, pool.map(refine, (prompts[group] for group in groups), seeds)):
                    # Variant 0 is the prompt itself, then come the S candidates of each refinement.
                    prompt = prompts[group]
                    for variant, text in enumerate([prompt, *(text for text in texts for _ in range(num_seeds))]):
                        record = {"row": group * size + variant, "group": group, "variant": variant, "prompt": prompt}
                        record |= {"refined_prompt": text, "refined": text != prompt, "refiner": refiner.name}
                        records += [record] if record["row"] in rows else []
                    bar.update()
                stage.write(shard, pa.Table.from_pylist(records, schema=REFINED_SCHEMA))
        stage.mark_complete()
    table = stage.read()
    if not isinstance(refiner, IdentityRefiner):
        _warn_of_failures(table, refiner)
    return table


def _refine_prompt(refiner: PromptRefiner, number: int, prompt: str, seed: int) -> list[str]:
    """The R refinements of one prompt, checked."""
    texts = refiner.refine(prompt, number, seed)
    if len(texts) != number or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(
            f"refiner {refiner.name!r}: expected {number} texts for the prompt {prompt!r}, found {texts!r:.200}"
        )
    return texts


def _warn_of_failures(table: pa.Table, refiner: PromptRefiner) -> None:
    asked = pc.greater(table["variant"], 0)
    failed = pc.sum(pc.and_not(asked, table["refined"])).as_py()
    if failed:
        message = "refiner %r gave nothing new for %d of %d candidates: they keep the original prompt (refined=False)"
        logger.warning(message, refiner.name, failed, pc.sum(asked).as_py())
