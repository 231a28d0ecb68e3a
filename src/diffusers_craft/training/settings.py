# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a training run is told: diffusers' names, with CRAFT's recipe for 100 images as defaults; the objectives' flags."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.flags import Flag, add_flag, flags_of, option
from ..data.settings import DataSettings
from ..errors import UserError
from ..models.families import FAMILIES
from ..models.family import ModelSource
from ..models.loading import DENOISERS, TUNED_FILES
from ..objectives.base import Objective
from ..rewards.settings import RewardSettings, parse_reward_weights


DEFAULT_REWARDS = ("pickscore",)  # of objectives that score what they make
_LORA_RANK = 4  # diffusers' default
_SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
_TRACKERS = ("tensorboard", "wandb", "none")
# What was expected -> whether a number is, and the flags.
_RANGES = {
    "at least 1": (
        lambda value: value >= 1,
        "train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs resolution max_train_samples"
        " rank lora_alpha num_validation_images checkpointing_steps checkpoints_total_limit validation_epochs",
    ),
    "more than 0": (lambda value: value > 0, "learning_rate adam_epsilon max_grad_norm snr_gamma"),
    "at least 0": (lambda value: value >= 0, "adam_weight_decay lr_warmup_steps noise_offset"),
    "a number in [0, 1)": (lambda value: 0 <= value < 1, "adam_beta1 adam_beta2"),
    "a probability in [0, 1]": (lambda value: 0 <= value <= 1, "caption_dropout"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(DataSettings):
    """What a training does, but for its objective; the flags of the scripts are these fields and `DataSettings`'.

    A field's `role` says what it means to a run that goes on from a checkpoint: `bound`, the saved state has another form
    with another value; `incidental`, how a run is carried out, watched and published, not what it computes; `path`, where
    something is. All others are the recipe, which a resumed run is compared with.

    Args:
        pretrained_model_name_or_path (`str`): Hub id or folder of a diffusers pipeline, a single .safetensors file in the
            original layout, or the name of an embedded pipeline (tiny-sd15, tiny-sdxl).
        revision (`str`, *optional*): Branch, tag or commit of the model on the Hub.
        variant (`str`, *optional*): Variant of the model files, e.g. fp16.
        single_file_config (`str`, *optional*): For a single .safetensors file: folder or Hub id of a pipeline with its
            configuration and tokenizers; the default is the original model's id, which diffusers infers.
        pretrained_vae_model_name_or_path (`str`, *optional*): Another VAE than the model's own.
        snr_gamma (`float`, *optional*): Weigh timesteps by min-SNR with this gamma (5 in its paper); default: alike.
        caption_dropout (`float`, *optional*, defaults to 0): Probability of training a draw on the empty caption.
        noise_offset (`float`, *optional*, defaults to 0): Deviation of a constant on each channel's noise, e.g. 0.05.
        prediction_type (`str`, *optional*): What the UNet predicts; the default is what the model's scheduler says.
        output_dir (`str`, *optional*, defaults to `"craft-model"`): Receives the pipeline, checkpoints and logs.
        train_batch_size (`int`, *optional*, defaults to 16): Images per process and forward pass.
        gradient_accumulation_steps (`int`, *optional*, defaults to 8): Passes per optimizer step; the recipe wants
            train_batch_size * this * processes = 128.
        num_train_epochs (`int`, *optional*): Train this many passes over the data instead.
        max_train_steps (`int`, *optional*): Optimizer steps; the default is the recipe's, 120 for SD1.5, 200 for SDXL.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): Less memory for a third more work.
        mixed_precision (`str`, *optional*): Default: accelerate's setting.
        train_dtype (`str`, *optional*, defaults to `"fp32"`): Of the trained weights and their gradients; bf16, for small
            cards, rounds every update stochastically.
        allow_tf32 (`bool`, *optional*, defaults to `False`): TF32 products and convolutions, Ampere and later.
        channels_last (`bool`, *optional*, defaults to `False`): Convolution weights in NHWC, faster on GPUs.
        torch_compile (`bool`, *optional*, defaults to `False`): Compile the transformer blocks; the first step takes
            minutes.
        use_lora (`bool`, *optional*, defaults to `False`): Train low-rank adapters of all attention projections instead
            of the whole UNet; needs peft. The learning rate usually wants to be higher, e.g. 1e-4.
        rank (`int`, *optional*, defaults to 4): Of the adapters.
        lora_alpha (`int`, *optional*): The adapters count alpha / rank; the default is the rank.
        lora_dropout (`float`, *optional*, defaults to 0): Probability of dropping an adapter's input.
        learning_rate (`float`, *optional*, defaults to 5e-5): Of the optimizer; the default is CRAFT's.
        scale_lr (`bool`, *optional*, defaults to `False`): Multiply the rate by batch size, accumulation and processes.
        lr_scheduler (`str`, *optional*, defaults to `"constant"`): How the rate changes.
        lr_warmup_steps (`int`, *optional*, defaults to 0): Optimizer steps.
        use_8bit_adam (`bool`, *optional*, defaults to `False`): AdamW with 8-bit state; needs bitsandbytes.
        use_adafactor (`bool`, *optional*, defaults to `False`): Adafactor with the same rate: a state of 0.4 bytes per
            weight for SDXL, 2.1 for SD1.5.
        adam_beta1, adam_beta2 (`float`, *optional*, default to 0.9 and 0.999): Decay of AdamW's means.
        adam_weight_decay (`float`, *optional*, defaults to 0.01): Of AdamW and Adafactor.
        adam_epsilon (`float`, *optional*, defaults to 1e-8): Of AdamW.
        max_grad_norm (`float`, *optional*, defaults to 1): Longer gradients are cut to this length.
        use_ema (`bool`, *optional*, defaults to `False`): Save averaged weights. The decay of step s is
            (1 + s) / (10 + s): in 200 steps never above 0.957.
        checkpointing_steps (`int`, *optional*): Optimizer steps between checkpoints; by default 50, of which the latest is
            kept until the run has ended.
        checkpoints_total_limit (`int`, *optional*): Keep only this many, the latest ones.
        resume_from_checkpoint (`str`, *optional*): A checkpoint's path, or latest for the newest one in --output_dir.
        logging_dir (`str`, *optional*, defaults to `"logs"`): Inside --output_dir.
        report_to (`str`, *optional*): Experiment tracker; the default is tensorboard if it is installed.
        validation_prompt (`str`, *optional*): Draw this prompt now and then.
        num_validation_images (`int`, *optional*, defaults to 4): Drawn each time.
        validation_epochs (`int`, *optional*, defaults to 50): Passes over the data between drawings.
        push_to_hub (`bool`, *optional*, defaults to `False`): Publish the result with a card, with HF_TOKEN or the login.
        hub_model_id (`str`, *optional*): ORG/NAME; the default is the name of --output_dir.
        hub_private_repo (`bool`, *optional*, defaults to `False`): Make the repository private.
        hub_strategy (`str`, *optional*, defaults to `"end"`): checkpoint sends every checkpoint as last-checkpoint/, too,
            from which another machine can resume.
        push_unet_only (`bool`, *optional*, defaults to `False`): Publish the UNet alone.

    Raises:
        UserError: for fields that contradict each other, lie outside their range or name the wrong folder.
    """

    pretrained_model_name_or_path: str = option(group="model", role="path")
    revision: str | None = option(None, group="model", role="path")
    variant: str | None = option(None, group="model", role="path")
    single_file_config: str | None = option(None, group="model", role="path")
    pretrained_vae_model_name_or_path: str | None = option(None, group="model", role="path")
    snr_gamma: float | None = option(None, group="objective")
    caption_dropout: float = option(0.0, group="objective")
    noise_offset: float = option(0.0, group="objective")
    prediction_type: str | None = option(None, group="objective", choices=("epsilon", "v_prediction", "sample"))
    output_dir: str = option("craft-model", group="run", role="path")
    train_batch_size: int = option(16, group="run", role="incidental")  # the global batch is compared
    gradient_accumulation_steps: int = option(8, group="run", role="incidental")
    num_train_epochs: int | None = option(None, group="run", role="incidental")
    max_train_steps: int | None = option(None, group="run", role="incidental")
    gradient_checkpointing: bool = option(False, group="run", role="incidental")
    mixed_precision: str | None = option(None, group="run", choices=("no", "fp16", "bf16"))
    train_dtype: str = option("fp32", group="run", choices=("fp32", "bf16"), role="bound")
    allow_tf32: bool = option(False, group="run")
    channels_last: bool = option(False, group="run", role="incidental")
    torch_compile: bool = option(False, group="run", role="incidental")
    use_lora: bool = option(False, group="LoRA", role="bound")
    rank: int = option(_LORA_RANK, group="LoRA", role="bound")
    lora_alpha: int | None = option(None, group="LoRA", role="bound")
    lora_dropout: float = option(0.0, group="LoRA")
    learning_rate: float = option(5e-5, group="optimizer")
    scale_lr: bool = option(False, group="optimizer")
    lr_scheduler: str = option("constant", group="optimizer", choices=_SCHEDULES)
    lr_warmup_steps: int = option(0, group="optimizer")
    use_8bit_adam: bool = option(False, group="optimizer", role="bound")
    use_adafactor: bool = option(False, group="optimizer", role="bound")
    adam_beta1: float = option(0.9, group="optimizer")
    adam_beta2: float = option(0.999, group="optimizer")
    adam_weight_decay: float = option(1e-2, group="optimizer")
    adam_epsilon: float = option(1e-8, group="optimizer")
    max_grad_norm: float = option(1.0, group="optimizer")
    use_ema: bool = option(False, group="optimizer")
    checkpointing_steps: int | None = option(None, group="checkpoints", role="incidental")
    checkpoints_total_limit: int | None = option(None, group="checkpoints", role="incidental")
    resume_from_checkpoint: str | None = option(None, group="checkpoints", role="path")
    logging_dir: str = option("logs", group="logging and validation", role="path")
    report_to: str | None = option(None, group="logging and validation", choices=_TRACKERS, role="incidental")
    validation_prompt: str | None = option(None, group="logging and validation", role="incidental")
    num_validation_images: int = option(4, group="logging and validation", role="incidental")
    validation_epochs: int = option(50, group="logging and validation", role="incidental")
    push_to_hub: bool = option(False, group="Hub", role="incidental")
    hub_model_id: str | None = option(None, group="Hub", role="incidental")
    hub_private_repo: bool = option(False, group="Hub", role="incidental")
    hub_strategy: str = option("end", group="Hub", choices=("end", "checkpoint"), role="incidental")
    push_unet_only: bool = option(False, group="Hub", role="incidental")

    @property
    def source(self) -> ModelSource:
        """Where the base comes from."""
        where = (self.revision, self.variant, self.cache_dir, self.pretrained_vae_model_name_or_path)
        return ModelSource(self.pretrained_model_name_or_path, *where, config=self.single_file_config)

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.train_data_dir is None):
            given = "neither" if self.dataset_name is None else "both"
            raise UserError(f"--dataset_name, --train_data_dir: expected exactly one of the two, found {given}")
        super().__post_init__()
        if self.use_generated_latents and self.pretrained_vae_model_name_or_path is not None:
            wanted = "expected the VAE that the latents were generated for, found --pretrained_vae_model_name_or_path"
            raise UserError(f"--use_generated_latents: {wanted} {self.pretrained_vae_model_name_or_path}")
        for words, (allowed, names) in _RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not allowed(value):  # not a number is never allowed
                    raise UserError(f"--{name}: expected {words}, found {value}")
        self._check_lora()
        self._check_hub()
        object.__setattr__(self, "output_dir", os.path.expanduser(self.output_dir))
        self._check_output_dir()
        if self.checkpoints_total_limit is not None and self.checkpointing_steps is None:
            found = "none (by default only the latest checkpoint is kept, until the run has ended)"
            raise UserError(f"--checkpoints_total_limit: expected --checkpointing_steps with it, found {found}")
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            wanted = "expected a schedule that warms up, such as --lr_scheduler constant_with_warmup"
            raise UserError(f"--lr_warmup_steps: {wanted}, found constant, which ignores it")
        if self.use_8bit_adam and self.use_adafactor:
            raise UserError("--use_8bit_adam, --use_adafactor: expected at most one of the two, found both")
        if self.train_dtype == "bf16" and (self.use_lora or self.use_ema):
            small = "--use_lora, whose adapters are small"
            found = small if self.use_lora else "--use_ema, whose updates are smaller still"
            raise UserError(f"--train_dtype: expected fp32 with {found}, found bf16")

    def _check_lora(self) -> None:
        if not self.use_lora:
            if (self.rank, self.lora_alpha, self.lora_dropout) != (_LORA_RANK, None, 0.0):
                raise UserError("--rank, --lora_alpha, --lora_dropout: expected --use_lora with them, found none")
            return
        if self.use_ema:
            raise UserError("--use_ema: expected full fine-tuning, found --use_lora, whose adapters are not averaged")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise UserError(f"--lora_dropout: expected a probability in [0, 1), found {self.lora_dropout}")

    def _check_hub(self) -> None:
        if not self.push_to_hub:
            if self.hub_model_id or self.hub_private_repo or self.push_unet_only or self.hub_strategy != "end":
                flags = "--hub_model_id, --hub_private_repo, --hub_strategy, --push_unet_only"
                raise UserError(f"{flags}: expected --push_to_hub with them, found none")
        elif self.push_unet_only and self.use_lora:
            raise UserError("--push_unet_only: expected full fine-tuning, found --use_lora")

    def _check_output_dir(self) -> None:
        """One kind of result, since the older could be taken for this run's, and no file where a folder will be."""
        other, own = ("pipeline", "--use_lora") if self.use_lora else ("lora", "full fine-tuning")
        if (Path(self.output_dir) / TUNED_FILES[other]).is_file():
            wanted = f"expected a folder without {'a pipeline' if self.use_lora else 'LoRA weights'} for {own}"
            raise UserError(f"--output_dir: {wanted}, found {TUNED_FILES[other]} in {self.output_dir}; choose another")
        for name in (*DENOISERS, self.logging_dir):  # diffusers would only log that it saves nothing
            if (path := Path(self.output_dir) / name).is_file():
                raise UserError(f"--output_dir: expected a folder or nothing at {path}, found a file; move it away")


def add_objective_options(parser: argparse.ArgumentParser, kinds: Sequence[type[Objective]]) -> None:
    """Declares a flag for every field of the objectives, with its default and the text of its docstring.

    Fields that several objectives share become one flag without a default, so that each keeps its own.
    """
    group = parser.add_argument_group("objective's options")
    flags: dict[str, Flag] = {}
    texts: dict[str, dict[str, list[str]]] = {}  # field -> what it says -> names of the objectives that say so
    for kind in kinds:
        for flag in flags_of(kind):
            others = {kind.family_defaults(b.name).get(flag.name, flag.default): name for name, b in FAMILIES.items()}
            shown = ", ".join(f"{value} for {name}" for value, name in others.items())
            text = f"{flag.text} Default: {shown if len(others) > 1 else flag.default}."
            texts.setdefault(flag.name, {}).setdefault(text, []).append(kind.__name__)
            flags[flag.name] = flag
    for name, lines in texts.items():
        parts = [text if len(names) == len(kinds) else f"{', '.join(names)}: {text}" for text, names in lines.items()]
        add_flag(group, flags[name]._replace(text=" ".join(parts)), {"default": None})


def objective_from_args(
    kind: type[Objective], args: argparse.Namespace, kinds: Sequence[type[Objective]]
) -> Objective:
    """The objective that the flags describe; what they leave open is the paper's for `--backbone`, else the default."""
    own = {flag.name for flag in flags_of(kind)}
    for other in kinds:
        for flag in flags_of(other):
            if flag.name not in own and getattr(args, flag.name) is not None:
                raise UserError(f"--{flag.name}: expected an option of {kind.__name__}, found one of {other.__name__}")
    given = {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    return kind(**kind.family_defaults(FAMILIES[args.backbone].name) | given)


def rewards_from_args(args: argparse.Namespace) -> tuple[list[str], RewardSettings]:
    """What the flags of `add_reward_arguments` give to `train`."""
    return args.rewards, RewardSettings.from_args(args, list(parse_reward_weights(args.rewards or DEFAULT_REWARDS)))
