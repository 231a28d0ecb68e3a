# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Compares tuned models with their base on the same prompts and seeds: generate, score, measure, summarise, check.

Every step writes shards: a killed evaluation goes on where it was, a further model or metric costs only its own part.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..core.records import derive_seed
from ..core.script import default_device
from ..core.workdir import WorkDir, is_first_rank, rank_and_world
from ..errors import UserError
from ..models.generation import GenerationSettings, generate_candidates, generation_options
from ..models.loading import denoiser_name, load_pipeline, load_vae
from ..models.tuned import load_tuned_pipeline
from ..prompts.sets import PromptSet
from ..rewards.settings import RewardSettings, load_rewards, parse_reward_weights, reward_source
from ..scoring.run import CandidateImages, ScoringJob, score_images
from ..tiny import is_tiny
from ..tiny.scorer import ExactReward
from .args import as_texts, choose_embedding, choose_metrics, find_training_data, open_prompt_set, parse_models
from .measures import decode_image
from .metrics import SetMetric, load_set_metrics
from .prompt_run import EvaluatedModel, PromptRun
from .results import EvaluationResults


logger = logging.getLogger(__name__)

PROTOCOL_IMAGES = {"geneval": 4}  # images per prompt where the benchmark itself says so; 1 elsewhere


@dataclass(eq=False)
class Evaluation:
    """An evaluation of tuned models against their base; `run` makes what is missing and returns the results.

    ```python
    results = Evaluation("tiny-sd15", {"craft": "outputs/craft"}, "tiny-heldout", ["pickscore"], num_prompts=20).run()
    print(results.text)
    ```

    Args:
        base (`str`): the base pipeline, as `load_pipeline` takes it; `NAME=MODEL` sets its name in the tables.
        tuned (`Mapping[str, str]` or `Sequence[str]`): name to what `load_tuned_pipeline` takes, or MODEL, NAME=MODEL.
        prompts (`str`, `PromptSet` or a sequence of them): what `load_prompt_set` takes, or sets that exist.
        rewards (`Sequence[str]`, *optional*): metrics of single images, as `load_reward` takes them. A tiny base adds
            `exact`.
        set_metrics (`Sequence[str | SetMetric]`, *optional*): metrics of a model's images as a whole.
        settings (`GenerationSettings`, *optional*): how images are sampled; what it leaves open, the base decides for all.
        images_per_prompt (`int`, *optional*): each from a seed of its own; by default 4 for GenEval, else 1.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): of files and datasets with prompts.
        num_prompts (`int`, *optional*): prompts to draw from each set; all by default.
        reward_settings (`RewardSettings`, *optional*): how rewards are loaded and run.
        reward_models (`Mapping[str, Any]`, *optional*): further metrics: name to an object with `score(prompts, images)`.
        training_data (`Mapping[str, str]` or `Sequence[str]`, *optional*): tuned model to the dataset that it was trained
            on, for the alarms; by default what its own run record says.
        alarm_embedding (`str`, *optional*, defaults to `"auto"`): how alarms compare images: `"clip"`, by the CLIP of
            the reward `aesthetic` or `clip_score`; `"pixels"`, as thumbnails; `"auto"`, CLIP where there is one,
            thumbnails for a tiny base.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float16`): of generation; a CPU always gets float32.
        device (`str`, *optional*): defaults to the GPU of this rank if there is one, else the CPU.
        source (`Mapping[str, Any]`, *optional*): further arguments of `load_pipeline` for all models: `revision`,
            `variant`, `config`, `cache_dir`.
        vae (`str`, *optional*): Hub id or folder of a VAE for all models, instead of their own.
        output_dir (`str` or `Path`, *optional*): work folder, which also receives tables and report; by default a
            temporary one, without them.
        seed (`int`, *optional*, defaults to 0): of prompts, images and bootstrap.
    """

    base: str
    tuned: Mapping[str, str] | Sequence[str]
    prompts: str | PromptSet | Sequence[str | PromptSet]
    rewards: Sequence[str] = ("hps_v2.1", "pickscore", "aesthetic")
    set_metrics: Sequence[str | SetMetric] = ()
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    images_per_prompt: int | None = None
    prompt_column: str = "prompt"
    num_prompts: int | None = None
    reward_settings: RewardSettings = field(default_factory=RewardSettings)
    reward_models: Mapping[str, Any] = field(default_factory=dict)
    training_data: Mapping[str, str] | Sequence[str] = ()
    alarm_embedding: str = "auto"
    dtype: torch.dtype = torch.float16
    device: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    vae: str | None = None
    output_dir: str | Path | None = None
    seed: int = 0

    def run(self) -> EvaluationResults | None:
        """Generates, scores and measures what is missing; writes tables and report into `output_dir`.

        Returns:
            `EvaluationResults`: on the first rank; `None` on others.

        Raises:
            UserError: for models, prompts, metrics or settings that cannot work, before anything is generated, and for
                a work folder that was made with others.
        """
        if self.output_dir is not None:
            return self._run(self.output_dir)
        if rank_and_world()[1] > 1:
            raise UserError("output_dir: expected a folder, which several processes share, found none")
        with tempfile.TemporaryDirectory(prefix="craft-evaluation-") as folder:
            return self._run(folder)

    def _run(self, folder: str | Path) -> EvaluationResults | None:
        # What can be wrong is found before a model generates.
        device = self.device or default_device()
        models = parse_models(self.base, as_texts(self.tuned))
        base = next(iter(models.values()))
        runs = self._load_prompt_sets()
        metrics = self._load_metrics(device, base)
        choose_metrics(metrics, runs)
        set_metrics = load_set_metrics(self.set_metrics, taken=metrics)
        embed, embedding = choose_embedding(self.alarm_embedding, base, metrics)
        training = find_training_data(models, self.training_data)
        work = WorkDir(folder)
        evaluated = self._open_models(models, device)
        for run in runs:
            run.set_metrics = set_metrics
            run.open(work, evaluated, embedding)

        self._generate(evaluated, runs)
        self._score(runs, device)
        for run in runs:
            run.measure(embed)
        if not is_first_rank():
            return None
        columns = {name: data.column_names for name, data in training.items()}
        images = {name: training[name].select_columns("image") for name in training if "image" in columns[name]}
        memories = {name: np.array([embed([decode_image(row)])[0] for row in rows]) for name, rows in images.items()}
        results = EvaluationResults(
            settings=self._describe(evaluated, metrics | set_metrics, runs) | embedding,
            rows=[row for run in runs for row in run.summarize(self.seed)],
            checks=[found for run in runs for found in run.check(memories, columns)],
            scores={run.prompts.name: run.read_scores() for run in runs},
            examples={run.prompts.name: run.read_examples() for run in runs},
        )
        if self.output_dir is not None:
            results.write(work.path)
        return results

    def _load_prompt_sets(self) -> list[PromptRun]:
        given = [self.prompts] if isinstance(self.prompts, str | PromptSet) else list(self.prompts)
        options = (self.prompt_column, self.num_prompts, self.seed)
        sets = [open_prompt_set(one, *options) for one in given]
        if not sets:
            raise UserError("--prompts: expected at least one prompt set, found none")
        if len({one.name for one in sets}) < len(sets):
            found = " ".join(one if isinstance(one, str) else one.name for one in given)
            raise UserError(f"--prompts: expected sets of different names, found {found}; write NAME=FILE")
        asked = self.images_per_prompt
        return [PromptRun(one, PROTOCOL_IMAGES.get(one.name, 1) if asked is None else asked) for one in sets]

    def _load_metrics(self, device: str, base: str) -> dict[str, Any]:
        """Metric name to model. Finds all checkpoints now, before hours of generation."""
        names = list(parse_reward_weights(self.rewards)) if self.rewards or not self.reward_models else []
        names += [name for name in self.reward_models if name not in names]
        metrics: dict[str, Any] = {"exact": ExactReward()} if is_tiny(base) else {}
        return metrics | load_rewards(names, self.reward_settings, device, base, self.reward_models)

    def _open_models(self, models: Mapping[str, str], device: str) -> dict[str, EvaluatedModel]:
        """Loads every model once before the first one generates: a refusal must not come after hours."""
        settings = self.settings
        evaluated: dict[str, EvaluatedModel] = {}
        for name, model in models.items():
            source = {"name_or_path": model, "dtype": self.dtype, "device": device, **self.source}
            source |= {"base": next(iter(models.values()))} if evaluated else {}
            source |= {"vae": self.vae} if self.vae else {}
            pipeline = load_model(source)
            settings = settings.resolve(pipeline)  # what the settings leave open, the base decides for all
            options = generation_options(pipeline, settings, self.seed, save_latents=False)
            evaluated[name] = EvaluatedModel(source, settings, options)
            del pipeline  # one model in memory at a time
            torch.cuda.empty_cache()
        return evaluated

    def _generate(self, evaluated: Mapping[str, EvaluatedModel], runs: Sequence[PromptRun]) -> None:
        """A prompt's seeds are the same for all models, and never those of a build. Each model is loaded once."""
        for name, one in evaluated.items():
            missing = [run for run in runs if not run.images[name].is_complete]
            if missing:
                logger.info("%s: generating %d images", name, sum(run.images[name].num_rows for run in missing))
                pipeline = load_model(one.source)
                for run in missing:
                    stage, noise_seed = run.images[name], derive_seed(self.seed, "evaluation")
                    generate_candidates(pipeline, run.rows, one.settings, stage, noise_seed, shards=stage.share())
                del pipeline
                torch.cuda.empty_cache()
            for run in runs:
                run.images[name].finish()

    def _score(self, runs: Sequence[PromptRun], device: str) -> None:
        """Scores all sets with the same metrics together, so that each reward model is loaded once."""
        workers = self.reward_settings.workers(device)
        for chosen in dict.fromkeys(tuple(run.metrics) for run in runs):
            alike = [run for run in runs if tuple(run.metrics) == chosen]
            scores = [(run.images[name], stages) for run in alike for name, stages in run.scores.items()]
            jobs = [ScoringJob(CandidateImages(images), stages) for images, stages in scores]
            score_images(jobs, alike[0].metrics, self.reward_settings.residency, workers)

    def _describe(
        self, evaluated: Mapping[str, EvaluatedModel], metrics: Mapping[str, Any], runs: Sequence[PromptRun]
    ) -> dict[str, Any]:
        """All that the numbers depend on."""
        used = {run.prompts.name: [*run.metrics, *run.set_metrics] for run in runs}
        known = {name: metric for name, metric in metrics.items() if any(name in names for names in used.values())}
        return {
            "base": next(iter(evaluated)),
            "models": {name: {"model": one.source["name_or_path"], **one.options} for name, one in evaluated.items()},
            "metrics": {name: reward_source(metric) for name, metric in known.items()},
            "prompts": {(name := run.prompts.name): {**run.about, "metrics": used[name]} for run in runs},
            "notes": [note for metric in known.values() if (note := getattr(metric, "note", ""))],
            "seed": self.seed,
        }


def load_model(source: Mapping[str, Any]) -> DiffusionPipeline:
    """The base, or a tuned model, which may be LoRA weights or a UNet for it; a `vae` is loaded by its name."""
    load, vae = load_tuned_pipeline if "base" in source else load_pipeline, source.get("vae")
    if vae is None:
        return load(**source)
    pipeline = load(**{**source, "vae": load_vae(vae, source.get("cache_dir"))})
    pipeline.vae.to(getattr(pipeline, denoiser_name(pipeline)).dtype)  # as the pipeline's own would be
    return pipeline
