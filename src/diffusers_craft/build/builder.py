# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""From prompts to a training dataset: composes the stages refine, generate, score, filter, dataset and report.

What is refined, generated or scored stays in the work folder and is never made again; the rest takes seconds.
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from diffusers import DiffusionPipeline

from ..core.files import atomic_write_json, fingerprint, remove_leftovers
from ..core.records import CANDIDATE_SCHEMA, REFINED_SCHEMA, SCORE_SCHEMA
from ..core.run_record import versions, write_run_json
from ..core.workdir import BUILD_FILE, CONSTANTS_FILE, REPORT_FOLDER, Stage, WorkDir, is_first_rank
from ..data.dataset import (
    SCORED_COLUMNS,
    assemble_dataset,
    assemble_scores,
    check_places,
    save_dataset,
    save_scores,
    take_rows,
)
from ..errors import UserError
from ..hub.dataset import publish_dataset
from ..hub.upload import as_hub_id, forget_published
from ..models.generation import ROWS_PER_SHARD, GenerationSettings, generate_candidates, generation_options
from ..models.latents import vae_fingerprint
from ..prompts.refiners import PromptRefiner, load_refiner
from ..prompts.refining import num_failures, refine_once
from ..prompts.sets import distinct_prompts
from ..rewards.settings import RewardSettings, load_rewards, reward_source
from ..scoring.run import CandidateImages, ScoringJob, read_scores, score_images
from ..selection.composite import normalization_constants
from ..selection.filtering import restrict_weights, rule_rewards, select_samples
from ..selection.pool import ScoredPool, funnel, score_pool
from .report import write_build_report


logger = logging.getLogger(__name__)

GROUPS_PER_REFINED_SHARD = 32


@dataclass(eq=False, repr=False)
class CRAFTDatasetBuilder:
    """Builds the training set of CRAFT (arXiv 2603.18991, algorithm 1) with a base model's own images.

    Args:
        pipeline (`DiffusionPipeline`): the base model, on the device where it shall generate.
        rewards (`Mapping[str, float]`): reward name to weight, e.g. `{"hps_v2.1": 0.4, "pickscore": 0.6}`.
        refiner (`str` or `PromptRefiner`, *optional*, defaults to `"template"`): name or object; `None` is `"none"`.
        filter_rule (`str` or `Sequence[str]`, *optional*, defaults to `"hpa"`): CRF rule, or rewards that must all win.
        reward_normalization (`str`, *optional*, defaults to `"zscore"`): `"zscore"`, `"minmax"` or `"rank"`.
        num_refinements (`int`, *optional*, defaults to 4): refinements per prompt.
        num_seeds (`int`, *optional*, defaults to 1): images per refinement.
        selection (`str`, *optional*, defaults to `"top"`): `"top"`, `"random"`, `"low"` or `"all"`.
        num_samples (`int`, *optional*, defaults to 100): images to select.
        max_per_prompt (`int`, *optional*, defaults to 1): most images per prompt; 0 is no limit.
        settings (`GenerationSettings`, *optional*): resolution, steps, guidance and batch size of generation.
        save_latents (`bool`, *optional*, defaults to `False`): whether to keep the generated latents too.
        reward_models (`Mapping[str, Any]`, *optional*): reward name to an object with `score(prompts, images)`; its
            `source` (`dict`), if it has one, says which model it is.
        reward_checkpoints (`Mapping[str, str]`, *optional*): reward name to a checkpoint instead of the official one;
            adds to those of `reward_settings`.
        reward_settings (`RewardSettings`, *optional*): how the rewards are loaded and run.
        output_dir (`str` or `Path`, *optional*): the work folder; by default a temporary one.
        seed (`int`, *optional*, defaults to 0): of everything random.

    Attributes:
        dataset (`datasets.Dataset`): what `build` selected; `None` before.
        funnel (`dict`): how many candidates each step left, see `funnel`; `None` before.

    Raises:
        UserError: for rewards, a rule, a normalisation or a selection that cannot work, before anything is made.
    """

    pipeline: DiffusionPipeline
    rewards: Mapping[str, float]
    refiner: str | PromptRefiner | None = "template"
    filter_rule: str | Sequence[str] = "hpa"
    reward_normalization: str = "zscore"
    num_refinements: int = 4
    num_seeds: int = 1
    selection: str = "top"
    num_samples: int = 100
    max_per_prompt: int = 1
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    save_latents: bool = False
    reward_models: Mapping[str, Any] = field(default_factory=dict)
    reward_checkpoints: Mapping[str, str] = field(default_factory=dict)
    reward_settings: RewardSettings = field(default_factory=RewardSettings)
    output_dir: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checkpoints = {**self.reward_settings.checkpoints, **self.reward_checkpoints}
        self.reward_settings = replace(self.reward_settings, checkpoints=checkpoints)
        self._check_options()
        if self.refiner is None or isinstance(self.refiner, str):
            self.refiner = load_refiner(self.refiner or "none")
        self.settings = self.settings.resolve(self.pipeline)
        base, device = str(self.pipeline.name_or_path), self.pipeline.device
        self._models = load_rewards(list(self.rewards), self.reward_settings, device, base, self.reward_models)
        if self.output_dir is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="craft-build-")
            self.output_dir = self._temporary.name
        self.output_dir = type(self.output_dir)(os.path.expanduser(self.output_dir))
        self.dataset: Dataset | None = None
        self.funnel: dict[str, int | float] | None = None

    def build(
        self,
        prompts: Sequence[str],
        run_options: Mapping[str, Any] | None = None,
        categories: Sequence[str | None] | None = None,
    ) -> Dataset:
        """Runs every stage that is not done yet and selects the training set.

        Ranks of one launch share the work folder: each makes its part of the images and scores, the first one writes.

        Args:
            prompts (`Sequence[str]`): the original prompts; empty and repeated ones are dropped.
            run_options (`Mapping[str, Any]`, *optional*): what to record as the run's options in `craft_build.json`,
                e.g. a script's arguments; by default the builder's own.
            categories (`Sequence[str | None]`, *optional*): the kind of each prompt, for a table of the report: which
                kinds were selected. Nothing else depends on it.

        Returns:
            `datasets.Dataset`: the selected images with the columns of `assemble_dataset`, best first.

        Raises:
            UserError: if the prompts are no texts or have not one category each, the work folder was built with other
                options, nothing was refined, or fewer images are left than asked for.
        """
        given, prompts = prompts, distinct_prompts(prompts)
        categories = None if categories is None else _aligned(given, categories, prompts)
        self._check_size(len(prompts))
        # All stages are opened before the first one works: a refusal must not come after hours of generation.
        refined, candidates, scores, options = self._open_stages(prompts)
        refine_once(prompts, self.refiner, self.num_refinements, self.num_seeds, self.seed, refined, candidates)
        rows = refined.read()  # also where nothing is left to make: damage is said
        if not candidates.is_complete:
            shards = candidates.share()
            generate_candidates(self.pipeline, rows, self.settings, candidates, self.seed, self.save_latents, shards)
        candidates.finish()
        self._score(candidates, scores)
        pool = self._select(candidates, scores)
        self.funnel = funnel(pool, num_failures(refined, self.refiner))
        latent_vae = vae_fingerprint(self.pipeline.vae) if self.save_latents else None
        chosen = {name: values[pool.selected] for name, values in pool.columns.items()}
        self.dataset = assemble_dataset(take_rows(candidates, pool.selected), chosen, latent_vae)
        if is_first_rank():
            self._save(pool, candidates, options, run_options or {}, prompts, categories)
        return self.dataset

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        license: str | None = None,
    ) -> str | None:
        """Publishes what was built, as `publish_dataset` does, from the builder's own work folder.

        Args:
            repo_id (`str`): e.g. `"org/craft-top100"`.
            private, token, revision, license (*optional*): see `publish_dataset`.

        Returns:
            `str`: address of the commit; `None` on all ranks but the first, which alone publishes.

        Raises:
            UserError: if nothing was built yet, or the upload fails.
        """
        if self.dataset is None:
            raise UserError("push_to_hub: expected a dataset, found none; call build(prompts) first")
        if is_first_rank():
            return publish_dataset(self.output_dir, repo_id, private, token, revision, license)
        return None

    @property
    def _group_size(self) -> int:
        return 1 + self.num_refinements * self.num_seeds

    @property
    def _selection_options(self) -> dict[str, Any]:
        """What decides the selection, for the record."""
        names = ("filter_rule", "reward_normalization", "selection", "num_samples", "max_per_prompt")
        return {"rewards": dict(self.rewards)} | {name: getattr(self, name) for name in names}

    def _check_options(self) -> None:
        """Has every later stage refuse now what it would refuse at the end."""
        counting = restrict_weights(self.rewards, self.filter_rule)
        if unused := [name for name, weight in self.rewards.items() if weight and name not in counting]:
            logger.info("--filter_rule %s: only scored, without weight: %s", self.filter_rule, ", ".join(unused))
        rule_rewards(self.filter_rule, self.rewards)
        normalization_constants({}, self.reward_normalization)
        select_samples([], [], [], [], self.selection, 0, self.max_per_prompt)
        if self.num_refinements < 1 or self.num_seeds < 1:
            found = f"{self.num_refinements} and {self.num_seeds}"
            raise UserError(f"--num_refinements, --num_seeds: expected at least 1 each, found {found}")
        if self._group_size == 2:
            logger.warning(
                "--num_refinements 1, --num_seeds 1: the only image of a prompt has the advantage 0, with which CRAFT"
                " trains nothing; --loss sft does"
            )
        for flag, names in (
            ("--reward_checkpoint", self.reward_settings.checkpoints),
            ("--reward_backend", self.reward_settings.backends),
            ("reward_models", self.reward_models),
        ):
            if unknown := [name for name in names if name not in self.rewards]:
                raise UserError(f"{flag}: expected names of {', '.join(self.rewards)}, found {unknown[0]!r}")

    def _check_size(self, num_prompts: int) -> None:
        if not num_prompts:
            raise UserError("--prompts: expected at least one prompt, found none")
        per_prompt = min(self.max_per_prompt or self._group_size, self._group_size - 1)
        limit = num_prompts * per_prompt
        if self.selection != "all" and self.num_samples > limit:
            why = f"{num_prompts} prompts, {per_prompt} images of a prompt"
            raise UserError(f"--num_samples: expected at most {limit} ({why}), found {self.num_samples}")

    def _open_stages(self, prompts: list[str]) -> tuple[Stage, Stage, dict[str, Stage], dict[str, Any]]:
        """Refined, candidates, one stage per reward, each bound to the options before it; those of candidates."""
        check_places(self.output_dir)
        work, num_rows = WorkDir(self.output_dir), len(prompts) * self._group_size
        options: dict[str, Any] = {
            "prompts": f"{len(prompts)} prompts, hash {fingerprint(prompts)}",
            "refiner": self.refiner.name,
            **self.refiner.options,
            "num_refinements": self.num_refinements,
            "num_seeds": self.num_seeds,
            "seed": self.seed,
        }
        rows_per_shard = GROUPS_PER_REFINED_SHARD * self._group_size
        refined = work.stage("refined", options, num_rows, rows_per_shard, REFINED_SCHEMA)
        options = options | generation_options(self.pipeline, self.settings, self.seed, self.save_latents)
        candidates = work.stage("candidates", options, num_rows, ROWS_PER_SHARD, CANDIDATE_SCHEMA)
        scores = {}
        for name, model in self._models.items():
            about = options | {f"reward {name}": reward_source(model)}
            scores[name] = work.stage(f"scores/{name}", about, num_rows, ROWS_PER_SHARD, SCORE_SCHEMA)
        return refined, candidates, scores, options

    def _score(self, candidates: Stage, scores: Mapping[str, Stage]) -> None:
        """Scores what is missing; complete rewards are not touched."""
        models = {name: self._models[name] for name, stage in scores.items() if not stage.is_complete}
        if models:
            workers = self.reward_settings.workers(self.pipeline.device)
            job = ScoringJob(CandidateImages(candidates), scores)
            score_images([job], models, self.reward_settings.residency, workers)

    def _select(self, candidates: Stage, scores: Mapping[str, Stage]) -> ScoredPool:
        """Filters and selects from the complete pool."""
        rows, rewards = candidates.read(["group", "variant", "valid"]), {}
        for name, stage in scores.items():
            abstains = getattr(self._models[name], "abstains", False)
            rewards[name] = read_scores(stage, None if abstains else rows["valid"].to_numpy())
        groups, variants = rows["group"].to_numpy(), rows["variant"].to_numpy()
        chosen = (self.filter_rule, self.reward_normalization, self.selection, self.num_samples, self.max_per_prompt)
        return score_pool(rewards, groups, variants, self.rewards, *chosen, self.seed)

    def _save(
        self,
        pool: ScoredPool,
        candidates: Stage,
        options: dict[str, Any],
        run_options: Mapping,
        prompts: Sequence[str],
        categories: Sequence[str | None] | None,
    ) -> None:
        """Writes dataset, scores and report, and last `normalization.json` and `craft_build.json`."""
        folder = Path(self.output_dir)
        for place in (folder, folder / REPORT_FOLDER):
            remove_leftovers(place)
        forget_published(folder)  # it may be another selection
        save_dataset(self.dataset, folder)
        table = candidates.read(list(SCORED_COLUMNS))
        save_scores(assemble_scores(table, pool.columns, pool.kept, pool.selected), folder)
        own = {**options, **self._selection_options, "generation_batch_size": self.settings.batch_size}
        recorded = {**run_options, **own, "prompts": run_options.get("prompts", own["prompts"])}
        about = {"options": recorded, "stage_options": options, "funnel": self.funnel, "versions": versions()}
        write_build_report(folder / REPORT_FOLDER, about, pool, self.dataset, prompts, categories)
        sources = {name: reward_source(model) for name, model in self._models.items()}
        constants = {name: entry | {"source": sources[name]} for name, entry in pool.constants["rewards"].items()}
        atomic_write_json(folder / CONSTANTS_FILE, {**pool.constants, "rewards": constants})
        write_run_json(
            folder / BUILD_FILE,
            recorded,
            base_model=as_hub_id(self.pipeline.name_or_path),
            stage_options=options,
            composite_weights=pool.weights,
            reward_sources=sources,
            funnel=self.funnel,
        )


def _aligned(given: Sequence[str], categories: Sequence[str | None], prompts: Sequence[str]) -> list[str | None]:
    """The categories of distinct prompts: a prompt has that of its first appearance."""
    if len(categories) != len(given):
        raise UserError(f"categories: expected one for each of {len(given)} prompts, found {len(categories)}")
    first: dict[str, str | None] = {}
    for prompt, category in zip(given, categories):
        first.setdefault(prompt.strip(), None if category is None else str(category))
    return [first[prompt] for prompt in prompts]
