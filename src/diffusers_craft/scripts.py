# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the scripts in `examples/` and `benchmarks/` need besides the public names: flags, records, parts of a run.

Names here may change from one version to the next; a copied script says which version it belongs to.
"""

from ._lazy import lazy_names


__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "core.flags": ["add_fields", "from_args"],
        "core.files": ["atomic_write_bytes", "atomic_write_json", "fingerprint"],
        "core.output": ["probe_folder"],
        "core.records": ["derive_seed"],
        "core.run_record": ["recorded_option", "write_run_json"],
        "core.script": ["PRECISIONS", "default_device", "parse_pairs", "run_script", "torch_dtype"],
        "core.workdir": ["Stage", "WorkDir", "is_first_rank", "rank_and_world"],
        "data.encoding": ["prepare_training_data"],
        "data.preferences": ["composite_scores", "load_preferences"],
        "data.rows": ["TrainingData"],
        "data.settings": ["DataSettings"],
        "evaluation.args": ["add_evaluation_arguments"],
        "evaluation.compare": ["write_comparison"],
        "evaluation.stored": ["load_results"],
        "figures.grid": ["image_grid"],
        "hub.upload": ["HubRepo"],
        "models.families": ["FAMILIES"],
        "models.family": ["Components", "ModelSource"],
        "models.generation": ["generate_candidates", "generation_options"],
        "models.latents": ["vae_fingerprint"],
        "models.loading": ["add_source_arguments", "check_single_file_config", "load_vae"],
        "models.noise": ["NoisePath"],
        "objectives.craft": ["transform_advantages"],
        "objectives.dpo": ["dpo_loss"],
        "objectives.dspo": ["dspo_loss"],
        "objectives.kto": ["kto_loss"],
        "objectives.mapo": ["mapo_loss"],
        "objectives.smpo": ["smoothing_factors", "smpo_loss"],
        "objectives.sharpening": ["sharpening_preference_loss"],
        "objectives.spo": ["spo_loss"],
        "prompts.refining": ["refine_prompts"],
        "prompts.sets": ["PROMPT_SETS", "PromptSet", "load_build_prompts"],
        "rewards.mps": ["convert_mps_checkpoint"],
        "rewards.settings": [
            "add_reward_arguments",
            "any_reads_prompts",
            "load_rewards",
            "parse_reward_weights",
            "reward_source",
        ],
        "scoring.run": ["CandidateImages", "ScoringJob"],
        "scoring.sources": ["add_image_arguments"],
        "scoring.table": ["score_table", "table_paths"],
        "selection.pool": ["format_funnel"],
        "tiny": ["is_tiny"],
        "tiny.scorer": ["ExactReward"],
        "tiny.world": ["parse_caption"],
        "training.data": ["encode_rows", "load_rows"],
        "training.accelerator": ["create_accelerator"],
        "training.settings": ["add_objective_options", "objective_from_args", "rewards_from_args"],
        "training.speed": ["forward_flops", "speed_report"],
    },
)
