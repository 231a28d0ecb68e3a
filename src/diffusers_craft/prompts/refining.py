# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The stage that refines: the texts of all candidates, kept in shards, asked for again where they could not be made."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from ..core.records import REFINED_SCHEMA, derive_seed
from ..core.workdir import POLL_SECONDS, Stage, is_first_rank
from ..errors import UserError
from .refiners import IdentityRefiner, PromptRefiner


logger = logging.getLogger(__name__)


def refine_prompts(
    prompts: Sequence[str],
    refiner: PromptRefiner,
    num_refinements: int,
    num_seeds: int,
    seed: int,
    stage: Stage,
    again: bool = False,
) -> pa.Table:
    """Writes the texts of all candidates to a stage, one row per candidate, and returns all rows (`REFINED_SCHEMA`).

    Prompt i is group i of 1 + R * S rows; variant j is of refinement (j - 1) // S. A refiner's failures (the prompt itself)
    are marked `refined=False`. Shards that are done are kept, and a group on two shards is refined for each; with `again`
    groups with failures are refined anew. A refiner that refines nothing at all is a `UserError`.
    """
    size = 1 + num_refinements * num_seeds
    if num_refinements < 1 or num_seeds < 1:
        found = f"found {num_refinements} and {num_seeds}"
        raise UserError(f"--num_refinements, --num_seeds: expected at least 1 each, {found}")
    if stage.num_rows != size * len(prompts):
        raise RuntimeError(f"{stage.path}: expected a stage of {size * len(prompts)} rows, found {stage.num_rows}")

    todo, kept = stage.missing(), {}
    if again and not isinstance(refiner, IdentityRefiner):
        for shard in sorted(set(range(stage.num_shards)) - set(todo)):
            if _count(table := stage.read_shard(shard)):
                todo.append(shard)
                kept |= _refined_groups(table, size)

    def refine(group: int) -> list[str]:
        """The texts of a group: the prompt itself, then the S candidates of each refinement."""
        if group in kept:
            return kept[group]
        prompt = prompts[group]
        texts = refiner.refine(prompt, num_refinements, derive_seed(seed, "refine", group))
        if len(texts) != num_refinements or not all(isinstance(text, str) and text.strip() for text in texts):
            expected = f"expected {num_refinements} texts for the prompt {prompt!r}"
            raise UserError(f"refiner {refiner.name!r}: {expected}, found {texts!r:.200}")
        return [prompt, *(text for text in texts for _ in range(num_seeds))]

    if todo or not stage.is_complete:
        done = stage.num_rows - sum(len(stage.rows(shard)) for shard in todo)
        bar = tqdm(desc="Refine", unit="prompt", total=len(prompts), initial=done // size)
        with bar, ThreadPoolExecutor(getattr(refiner, "num_workers", 1)) as pool:
            for shard in todo:
                rows = stage.rows(shard)
                first, last = rows.start // size, (rows.stop - 1) // size
                texts = []
                for found in pool.map(refine, range(first, last + 1)):
                    texts += found
                    bar.update()
                offset = first * size
                records = [_record(row, size, prompts, texts[row - offset], refiner.name) for row in rows]
                stage.write(shard, pa.Table.from_pylist(records, schema=REFINED_SCHEMA))
        stage.mark_complete()
    table = stage.read()
    if not isinstance(refiner, IdentityRefiner):
        _report_failures(refiner, _count(table), len(table) - len(prompts))
    return table


def _refined_groups(table: pa.Table, size: int) -> dict[int, list[str]]:
    """The texts of those groups that lie whole in a shard, and of which every refinement is new."""
    texts: dict[int, list[str]] = {}
    for row in table.select(["group", "variant", "refined_prompt", "refined"]).to_pylist():
        if row["refined"] or row["variant"] == 0:
            texts.setdefault(row["group"], []).append(row["refined_prompt"])
    return {group: found for group, found in texts.items() if len(found) == size}


def _record(row: int, size: int, prompts: Sequence[str], text: str, refiner: str) -> dict[str, Any]:
    """One row of `REFINED_SCHEMA`."""
    group, variant = divmod(row, size)
    record = {"row": row, "group": group, "variant": variant, "prompt": prompts[group], "refined_prompt": text}
    return {**record, "refined": text != prompts[group], "refiner": refiner}


def _report_failures(refiner: PromptRefiner, failed: int, asked: int) -> None:
    """Warns of texts that could not be made; a refiner that made none at all is a `UserError`."""
    if not failed:
        return
    reason = getattr(refiner, "problem", None)
    why = f" ({reason})" if reason else ""
    if failed == asked:
        raise UserError(f"--refiner {refiner.name}: expected refinements of the prompts, found none of {asked}{why}")
    logger.warning(
        f"refiner {refiner.name!r} gave nothing new for {failed} of {asked} candidates{why}: they keep the original"
        " prompt (refined=False); the same command asks again for them as long as no candidates are drawn"
    )


def refine_once(
    prompts: Sequence[str],
    refiner: PromptRefiner,
    num_refinements: int,
    num_seeds: int,
    seed: int,
    refined: Stage,
    candidates: Stage,
) -> None:
    """Has the first rank refine what is missing; what failed, too, as long as no candidate shows the old text."""
    if is_first_rank():
        untouched = len(candidates.missing()) == candidates.num_shards
        if untouched or not refined.is_complete:
            refine_prompts(prompts, refiner, num_refinements, num_seeds, seed, refined, again=untouched)
    while not is_first_rank() and not is_settled(refined, refiner, candidates):
        time.sleep(POLL_SECONDS)
    refined.finish()


def is_settled(refined: Stage, refiner: PromptRefiner, candidates: Stage) -> bool:
    """Whether the first rank, which makes the first images too, will not refine any more."""
    begun = len(candidates.missing()) < candidates.num_shards
    return begun or (refined.is_complete and not num_failures(refined, refiner))


def num_failures(refined: Stage, refiner: PromptRefiner) -> int | None:
    """How many refinements are the prompt itself; `None` where nothing was to be refined."""
    return None if isinstance(refiner, IdentityRefiner) else _count(refined.read(["variant", "refined"]))


def _count(refined: pa.Table) -> int:
    """How many candidates of refinements have the original prompt."""
    return pc.sum(pc.and_not(pc.greater(refined["variant"], 0), refined["refined"])).as_py() or 0
