# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""CRAFT (arXiv 2603.18991) for diffusers: align text-to-image models with about 100 self-made images.

The public names below load on first use, so importing the package imports neither torch nor diffusers.
"""

from importlib import import_module
from typing import Any


__version__ = "0.1.0.dev0"

# Module -> its public names. To publish a name, add it here.
_EXPORTS = {
    "alignment": ["train_alignment"],
    "alignment_args": ["add_alignment_arguments", "add_objective_options", "objective_from_args"],
    "alignment_data": ["composite_scores", "load_preferences"],
    "backbones": ["BACKBONES", "SD15", "SDXL", "Components", "ModelSource"],
    "backbones_args": ["add_source_arguments"],
    "backbones_loading": ["load_pipeline", "load_tuned_pipeline"],
    "backbones_vae": ["vae_fingerprint"],
    "builder": ["CRAFTDatasetBuilder"],
    "cli": ["default_device", "parse_pairs", "recorded_option", "run_script", "write_run_json"],
    "composite": ["composite_reward", "normalization_constants"],
    "dataset": ["load_craft_dataset"],
    "evaluation": ["bootstrap_interval", "evaluation_rows", "summarize", "win_rate", "write_evaluation"],
    "evaluation_alarms": ["find_alarms", "run_checks"],
    "evaluation_args": ["add_evaluation_arguments", "images_per_prompt", "parse_models"],
    "evaluation_compare": ["compare_results", "load_results", "write_comparison"],
    "evaluation_report": ["ReportRow", "draw_comparison", "read_examples", "write_evaluation_report"],
    "evaluation_statistics": [
        "clip_embedding",
        "decode_images",
        "image_statistics",
        "measure_images",
        "read_statistics",
        "thumbnail_embedding",
    ],
    "evaluation_tables": ["format_checks", "format_csv", "format_latex", "format_table"],
    "filtering": [
        "crf_filter",
        "funnel",
        "group_advantages",
        "restrict_weights",
        "rule_rewards",
        "select_samples",
    ],
    "generation": ["GenerationSettings", "generate_candidates", "generate_images", "generation_options"],
    "grid": ["image_grid"],
    "hub.dataset": ["publish_dataset"],
    "hub.model": ["publish_model"],
    "hub.upload": ["HubRepo"],
    "objectives.craft": ["craft_loss", "transform_advantages"],
    "objectives.dpo": ["DPO", "dpo_loss"],
    "objectives.dspo": ["DSPO", "dspo_loss"],
    "objectives.inpo": ["InPO"],
    "objectives.kto": ["KTO", "kto_loss"],
    "objectives.mapo": ["MaPO", "mapo_loss"],
    "objectives.min_snr": ["min_snr_weights"],
    "objectives.sharpening": ["RLHFSharpening", "SFTSharpening", "sharpening_preference_loss"],
    "objectives.smpo": ["SmPO", "smoothing_factors", "smpo_loss"],
    "objectives.spo": ["SPO", "spo_loss"],
    "pairing": ["group_pairs"],
    "prompts": ["load_prompts"],
    "prompts_sets": ["PROMPT_SETS", "PromptSet", "load_prompt_set"],
    "records": ["derive_seed"],
    "refiners": ["load_refiner", "refine_prompts"],
    "report": ["write_build_report"],
    "rewards": ["load_reward", "register_reward"],
    "rewards.mps": ["convert_mps_checkpoint"],
    "scoring": ["CandidateImages", "ScoringJob", "parse_reward_weights", "score_candidates", "score_images"],
    "scoring_args": ["RewardSettings", "add_reward_arguments", "load_rewards", "reward_source"],
    "scoring_sources": ["open_images"],
    "tiny": ["embedded_rewards", "is_tiny"],
    "tiny.scorer": ["ExactReward", "exact_score"],
    "tiny.world": ["parse_caption"],
    "training": ["TrainingRun"],
    "training_accelerator": ["create_accelerator"],
    "training_args": ["add_training_arguments", "check_training_arguments"],
    "training_data": ["TrainingData"],
    "training_encoding": ["prepare_training_data"],
    "training_speed": ["forward_flops", "speed_report"],
    "workdir": [
        "Stage",
        "WorkDir",
        "atomic_write_bytes",
        "atomic_write_json",
        "fingerprint",
        "rank_and_world",
    ],
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
