# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT (arXiv 2603.18991) for diffusers: align text-to-image models with about 100 self-made images.

The public names below load on first use, so importing the package imports neither torch nor diffusers.
"""

from importlib import import_module
from typing import Any


__version__ = "0.1.0.dev0"

# Module -> its public names. To publish a name, add it here.
_EXPORTS = {
    "build.builder": ["CRAFTDatasetBuilder"],
    "build.report": ["write_build_report"],
    "core.files": ["atomic_write_bytes", "atomic_write_json", "fingerprint"],
    "core.records": ["derive_seed"],
    "core.run_record": ["recorded_option", "write_run_json"],
    "core.script": ["default_device", "parse_pairs", "run_script"],
    "core.workdir": ["Stage", "WorkDir", "rank_and_world"],
    "data.dataset": ["load_craft_dataset"],
    "data.encoding": ["prepare_training_data"],
    "data.preferences": ["composite_scores", "load_preferences"],
    "data.rows": ["TrainingData"],
    "errors": ["UserError"],
    "evaluation.alarms": ["find_alarms", "run_checks"],
    "evaluation.args": ["add_evaluation_arguments", "images_per_prompt", "parse_models"],
    "evaluation.compare": ["compare_results", "load_results", "write_comparison"],
    "evaluation.measures": [
        "clip_embedding",
        "decode_images",
        "image_statistics",
        "measure_images",
        "read_statistics",
        "thumbnail_embedding",
    ],
    "evaluation.report": ["ReportRow", "draw_comparison", "read_examples", "write_evaluation_report"],
    "evaluation.summary": ["bootstrap_interval", "evaluation_rows", "summarize", "win_rate", "write_evaluation"],
    "evaluation.tables": ["format_checks", "format_csv", "format_latex", "format_table"],
    "figures.grid": ["image_grid"],
    "hub.dataset": ["publish_dataset"],
    "hub.model": ["publish_model"],
    "hub.upload": ["HubRepo"],
    "models.families": ["BACKBONES", "Components", "ModelSource", "SD15", "SDXL"],
    "models.generation": ["GenerationSettings", "generate_candidates", "generate_images", "generation_options"],
    "models.latents": ["vae_fingerprint"],
    "models.loading": ["add_source_arguments", "load_pipeline", "load_tuned_pipeline"],
    "models.noise": ["min_snr_weights"],
    "objectives.craft": ["craft_loss", "transform_advantages"],
    "objectives.dpo": ["DPO", "dpo_loss"],
    "objectives.dspo": ["DSPO", "dspo_loss"],
    "objectives.inpo": ["InPO"],
    "objectives.kto": ["KTO", "kto_loss"],
    "objectives.mapo": ["MaPO", "mapo_loss"],
    "objectives.sharpening": ["RLHFSharpening", "SFTSharpening", "sharpening_preference_loss"],
    "objectives.smpo": ["SmPO", "smoothing_factors", "smpo_loss"],
    "objectives.spo": ["SPO", "spo_loss"],
    "prompts.refiners": ["load_refiner", "refine_prompts"],
    "prompts.sets": ["PROMPT_SETS", "PromptSet", "load_prompt_set"],
    "prompts.sources": ["load_prompts"],
    "rewards": ["load_reward", "register_reward"],
    "rewards.mps": ["convert_mps_checkpoint"],
    "rewards.settings": [
        "RewardSettings",
        "add_reward_arguments",
        "load_rewards",
        "parse_reward_weights",
        "reward_source",
    ],
    "scoring.run": ["CandidateImages", "ScoringJob", "score_candidates", "score_images"],
    "scoring.sources": ["open_images"],
    "selection.composite": ["composite_reward", "normalization_constants"],
    "selection.filtering": ["crf_filter", "group_advantages", "restrict_weights", "rule_rewards", "select_samples"],
    "selection.funnel": ["funnel"],
    "selection.pairing": ["group_pairs"],
    "tiny": ["embedded_rewards", "is_tiny"],
    "tiny.scorer": ["ExactReward", "exact_score"],
    "tiny.world": ["parse_caption"],
    "training.accelerator": ["create_accelerator"],
    "training.args": ["add_training_arguments", "check_training_arguments"],
    "training.loop": ["train_alignment"],
    "training.objective_args": ["add_alignment_arguments", "add_objective_options", "objective_from_args"],
    "training.run": ["TrainingRun"],
    "training.speed": ["forward_flops", "speed_report"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(["__version__", *_MODULE_OF])


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
