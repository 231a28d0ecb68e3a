# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What alignment_tiny.py compares: each method's script and flags, and the part of the tables that it stands in."""

from dataclasses import dataclass


MODEL = "tiny-sd15"
REWARDS = {"hps_v2.1": 0.4, "pickscore": 0.4, "aesthetic": 0.2}
BATCH, STEPS = 64, 150  # images with a gradient a step; steps of CRAFT
IMAGES = BATCH * STEPS
FORWARDS = 3 * IMAGES  # forward 1, backward 2
CRAFT = "craft/train_craft_sd15.py"
PREFERENCE = "preference/train_preference.py"
SMPO = "smpo/train_smpo.py"
SHARPENING = "diffusion_sharpening/train_diffusion_sharpening.py"
ONLINE = ["--rewards", *(f"{name}={weight}" for name, weight in REWARDS.items())]


@dataclass(frozen=True)
class Method:
    """A row of the tables: script, flags, and how many images with a gradient one unit of a batch is."""

    script: str
    flags: tuple[str, ...] = ()
    images_a_unit: float = 1.0
    learning_rate: float = 1e-4
    build: tuple[str, ...] = ()  # flags of another selection from the same candidates
    part: str = "methods"
    start: str = ""  # method that trains first, for half of the forwards

    @property
    def batch_size(self) -> int:
        return max(1, round(BATCH / self.images_a_unit))


# The papers' betas multiply mean squared errors of 4 x 64 x 64 numbers. Here a latent has 4 x 8 x 8, so that the same
# strength per unit of summed squared error is a 64th of it: a variant that is measured too.
SCALE = 1 / 64
METHODS = {
    "craft": Method(CRAFT),
    "sft": Method(CRAFT, ("--loss", "sft")),
    "dpo": Method(PREFERENCE, ("--objective", "dpo"), 2.0),
    "smpo": Method(SMPO, (), 2.0),
    "inpo": Method(PREFERENCE, ("--objective", "inpo"), 2.0),
    "kto": Method(PREFERENCE, ("--objective", "kto")),
    "mapo": Method(PREFERENCE, ("--objective", "mapo"), 2.0),
    "dspo": Method(PREFERENCE, ("--objective", "dspo"), 2.0),
    "spo": Method(PREFERENCE, ("--objective", "spo", "--guidance_scale", "2", *ONLINE), 8.0),
    "sharpening-sft": Method(SHARPENING, ("--sharpening", "sft", *ONLINE), 3.0),
    "sharpening-rlhf": Method(SHARPENING, ("--sharpening", "rlhf", "--guidance_scale", "2", *ONLINE), 6.0),
}
_DPO, _KTO = ("--objective", "dpo"), ("--objective", "kto")
METHODS |= {
    "dpo-scaled-beta": Method(PREFERENCE, (*_DPO, "--beta", str(5000 * SCALE)), 2.0, part="betas"),
    "smpo-scaled-beta": Method(SMPO, ("--beta", str(2000 * SCALE)), 2.0, part="betas"),
    "kto-scaled-beta": Method(PREFERENCE, (*_KTO, "--beta", str(5000 * SCALE)), part="betas"),
}
# What the papers or the released codes do otherwise than the defaults.
_RLHF = METHODS["sharpening-rlhf"].flags
_CODE = ("--image_sharing", "n", "--no-fresh_noise", "--form", "code")
METHODS |= {
    "sharpening-rlhf-images": Method(SHARPENING, (*_RLHF, "--image_sharing", "n"), 6.0, part="variants"),
    "sharpening-rlhf-code": Method(SHARPENING, (*_RLHF, *_CODE), 6.0, part="variants"),
    "sharpening-rlhf-weak": Method(SHARPENING, (*_RLHF, "--beta", str(2500 * SCALE)), 6.0, part="variants"),
    "mapo-code": Method(PREFERENCE, ("--objective", "mapo", "--form", "code", "--beta", "0.1"), 2.0, part="variants"),
    "smpo-from-sft": Method(SMPO, (), 2.0, part="variants", start="sft"),
    "dpo-from-sft": Method(PREFERENCE, _DPO, 2.0, part="variants", start="sft"),
}
SELECTIONS = {
    "top": (),
    "random": ("--selection", "random"),
    "low": ("--selection", "low"),
    "all": ("--selection", "all", "--max_per_prompt", "0"),
}
COMBINATIONS = {
    "h": ("--filter_rule", "h"),
    "p": ("--filter_rule", "p"),
    "a": ("--filter_rule", "a"),
    "ha": ("--filter_rule", "ha"),
    "pa": ("--filter_rule", "pa"),
    "none": ("--filter_rule", "none"),
}
for _loss in ("craft", "sft"):
    for _name, _flags in SELECTIONS.items():
        if _name != "top":
            METHODS[f"{_loss}-{_name}"] = Method(CRAFT, ("--loss", _loss), build=_flags, part="selection")
METHODS["craft-all-clipped"] = Method(CRAFT, ("--advantage_clip_min", "0"), build=SELECTIONS["all"], part="selection")
METHODS |= {f"craft-{rule}": Method(CRAFT, build=flags, part="rewards") for rule, flags in COMBINATIONS.items()}
