# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT (arXiv 2603.18991) for diffusers: align text-to-image models with about 100 self-made images.

The public names below load on first use, so importing the package imports neither torch nor diffusers. What only the
example scripts need is in `diffusers_craft.scripts`.
"""

from ._lazy import lazy_names


__version__ = "0.1.0.dev0"

# Module -> its public names. To publish a name, add it here.
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "build.builder": ["CRAFTDatasetBuilder"],
        "data.dataset": ["load_craft_dataset"],
        "errors": ["UserError"],
        "evaluation.compare": ["compare_results"],
        "evaluation.metrics": ["SetMetric", "register_metric"],
        "evaluation.results": ["EvaluationResults"],
        "evaluation.run": ["Evaluation"],
        "evaluation.summary": ["bootstrap_interval", "win_rate"],
        "hub.dataset": ["publish_dataset"],
        "hub.model": ["publish_model"],
        "models.families": ["register_family"],
        "models.family": ["Family"],
        "models.stable_diffusion": ["SD15", "SDXL"],
        "models.generation": ["GenerationSettings", "generate_images"],
        "models.loading": ["load_pipeline"],
        "models.tuned": ["load_tuned_pipeline"],
        "objectives.base": ["LossOutput", "Objective", "denoising_errors", "error_changes"],
        "objectives.craft": ["CRAFT", "SFT", "craft_loss"],
        "objectives.dpo": ["DPO"],
        "objectives.dspo": ["DSPO"],
        "objectives.inpo": ["InPO"],
        "objectives.kto": ["KTO"],
        "objectives.mapo": ["MaPO"],
        "objectives.sharpening": ["RLHFSharpening", "SFTSharpening"],
        "objectives.smpo": ["SmPO"],
        "objectives.spo": ["SPO"],
        "prompts.refiners": ["PromptRefiner", "load_refiner"],
        "prompts.sets": ["load_prompt_set", "load_prompts"],
        "rewards.base": ["Reward"],
        "rewards.settings": ["RewardSettings", "load_reward", "register_reward"],
        "scoring.run": ["score_images"],
        "scoring.sources": ["open_images"],
        "selection.composite": ["composite_reward", "normalization_constants"],
        "selection.filtering": ["crf_filter", "group_advantages", "group_pairs", "select_samples"],
        "tiny.scorer": ["exact_score"],
        "training.loop": ["train"],
        "training.run": ["TrainingRun"],
        "training.settings": ["TrainingSettings"],
    },
)
__all__ = ["__version__", *__all__]
