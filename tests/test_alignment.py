# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The scripts of the other objectives as a user runs them, on random-weight pipelines."""

import importlib.util
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from datasets import Dataset, Image
from training_driver import ROOT, environment, losses, run_json, same, weights

from diffusers_craft.alignment_context import AlignmentContext, CompositeScorer
from diffusers_craft.objectives.dpo import DPO
from diffusers_craft.rewards import register_reward, registry


SCRIPTS = {
    "smpo": "smpo/train_smpo.py",
    "sharpening": "diffusion_sharpening/train_diffusion_sharpening.py",
    "preference": "preference/train_preference.py",
}
FIXED = ["--resolution=64", "--report_to=none", "--learning_rate=1e-3", "--train_batch_size=2"]
FIXED += ["--gradient_accumulation_steps=1", "--max_train_steps=2"]
ONLINE = ["--rewards=brightness", "--guidance_scale=2"]


class Brightness:
    def __init__(self):
        self.prompts = []

    def score(self, prompts, images):
        self.prompts += prompts
        return np.array([np.asarray(image).mean() / 255 for image in images], dtype=np.float32)


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))  # other tests do not get this reward
    reward = Brightness()
    register_reward("brightness", lambda: reward)
    return reward


def _script(name: str):
    path = ROOT / "examples" / SCRIPTS[name]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def align(random_sd15, random_sdxl, preference_build, tmp_path):
    """`align("smpo", "out", ...)`: trains in this process, returns the output folder."""
    models = {"sd15": random_sd15, "sdxl": random_sdxl}

    def run(script: str, output: str, *flags: str, backbone: str = "sd15") -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        where = [f"--pretrained_model_name_or_path={models[backbone]}", f"--output_dir={tmp_path / output}"]
        where += [f"--dataset_name={preference_build}", f"--backbone={backbone}"]
        module = _script(script)
        module.main(module.parse_args([*where, *FIXED, *flags]))
        return tmp_path / output

    return run


METHODS = {
    "dpo": ("preference", ["--objective=dpo"]),
    "kto": ("preference", ["--objective=kto"]),
    "mapo": ("preference", ["--objective=mapo"]),
    "dspo": ("preference", ["--objective=dspo"]),
    "inpo": ("preference", ["--objective=inpo", "--inversion_steps=3"]),
    "spo": ("preference", ["--objective=spo", "--chain_steps=4", "--first_step=1", "--states_per_prompt=2", *ONLINE]),
    "smpo": ("smpo", ["--inversion_steps=3"]),
    "sharpening-sft": ("sharpening", ["--num_states=2", "--rewards=brightness"]),
    "sharpening-rlhf": ("sharpening", ["--sharpening=rlhf", "--generation_steps=2", "--num_states=2", *ONLINE]),
}
AT_REFERENCE = dict.fromkeys(("dpo", "inpo", "spo", "smpo"), math.log(2)) | {"kto": 0.5}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_starts_at_its_reference(align, method, random_sd15):
    script, flags = METHODS[method]
    folder = align(script, "out", *flags)
    first = run_json(folder)["loss_history"][0]
    if method in AT_REFERENCE:  # policy and reference go the same way: exactly equal, not nearly
        assert first["train_loss"] == pytest.approx(AT_REFERENCE[method], abs=1e-6)
    assert not same(weights(folder), weights(random_sd15))
    assert same(weights(folder, "vae"), weights(random_sd15, "vae"))
    names = {"smpo": "SmPO", "sharpening-sft": "SFTSharpening", "sharpening-rlhf": "RLHFSharpening"}
    options = run_json(folder)["options"]
    assert options["objective"] == names.get(method, method)
    assert options["grid_steps" if "sharpening" in method else "beta"] is not None


@pytest.mark.parametrize("method", ["smpo", "sharpening-rlhf", "spo"])
def test_methods_on_sdxl(align, method):
    script, flags = METHODS[method]
    assert (align(script, "out", *flags, backbone="sdxl") / "text_encoder_2").is_dir()


def test_another_family_than_the_models_is_refused(align, random_sdxl, tmp_path):
    with pytest.raises(ValueError, match="expected a StableDiffusionPipeline .*found a StableDiffusionXLPipeline"):
        align("smpo", "out", f"--pretrained_model_name_or_path={random_sdxl}")


@pytest.mark.parametrize("method", ["dpo", "spo"])
def test_accumulation_does_not_change_the_run(align, method):
    """Noise, time, chains and candidates belong to the slot of the global batch, not to the micro-batch."""
    script, flags = METHODS[method]
    whole = align(script, "whole", *flags)
    parts = align(script, "parts", *flags, "--train_batch_size=1", "--gradient_accumulation_steps=2")
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_two_processes_give_the_curve_of_one(align, objective, random_sd15, preference_build, tmp_path):
    """KTO's mean gain is one over both processes."""
    common = [f"--objective={objective}", "--max_train_steps=4"]
    one = align("preference", "one", *common, "--train_batch_size=4")
    where = [f"--pretrained_model_name_or_path={random_sd15}", f"--dataset_name={preference_build}"]
    where += [f"--output_dir={tmp_path / 'two'}", *FIXED, *common]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(ROOT / "examples" / SCRIPTS["preference"]), *where]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-3, abs=1e-5)


def test_a_resumed_run_keeps_the_first_reference(align):
    """Bit for bit: the reference is the base, not the weights of the checkpoint."""
    script, flags = METHODS["dpo"]
    whole = align(script, "whole", *flags, "--max_train_steps=4")
    align(script, "parts", *flags, "--max_train_steps=2", "--checkpointing_steps=2")
    parts = align(script, "parts", *flags, "--max_train_steps=4", "--resume_from_checkpoint=latest")
    assert losses(whole) == losses(parts) and same(weights(whole), weights(parts))


@pytest.mark.parametrize("flag", ["--mixed_precision=bf16", "--train_dtype=bf16", "--channels_last"])
def test_policy_and_reference_compute_alike(align, flag):
    """No change is exactly no change, in any precision and layout."""
    flags = ["--objective=dpo", "--max_train_steps=1", flag]
    flags += ["--mixed_precision=bf16"] if "train_dtype" in flag else []
    (first,) = run_json(align("preference", "out", *flags))["loss_history"]
    assert first["winner_change"] == first["loser_change"] == 0.0


def test_with_lora_the_base_is_the_reference(align):
    pytest.importorskip("peft")
    script, flags = METHODS["dpo"]
    folder = align(script, "out", *flags, "--use_lora", "--max_train_steps=3")
    first, *later = run_json(folder)["loss_history"]
    assert first["train_loss"] == pytest.approx(math.log(2), abs=1e-6) and first["winner_change"] == 0.0
    assert all(entry["winner_change"] != 0.0 for entry in later)  # the adapters are back on


def test_smpo_scores_pairs_that_have_no_scores(align, make_images, tmp_path):
    columns = {
        "image_0": make_images(4),
        "image_1": make_images(4, seed=1),
        "prompt": list("abcd"),
        "label_0": [1, 0, 1, 0],
    }
    dataset = Dataset.from_dict(columns)
    for name in ("image_0", "image_1"):
        dataset = dataset.cast_column(name, Image())
    dataset.to_parquet(tmp_path / "pairs" / "train.parquet")
    flags = [f"--dataset_name={tmp_path / 'pairs'}", "--inversion_steps=2"]
    first = run_json(align("smpo", "out", *flags, "--rewards=brightness"))["loss_history"][0]
    assert first["train_loss"] == pytest.approx(math.log(2), abs=1e-6)
    with pytest.raises(ValueError, match="--dataset_name: expected score_0 and score_1 .* or --rewards"):
        align("smpo", "none", *flags)


def test_reference_memory(random_sd15):
    """A frozen copy for full fine-tuning, none with LoRA."""
    from diffusers_craft.backbones import SD15, ModelSource

    components = SD15.load(ModelSource(str(random_sd15)))
    base = {"prediction_type": None, "lora_dropout": 0.0, "seed": 0}
    full = AlignmentContext(DPO(), Namespace(use_lora=False, **base), SD15, components)
    assert full._frozen is not components.unet
    assert not any(parameter.requires_grad for parameter in full._frozen.parameters())
    assert AlignmentContext(DPO(), Namespace(use_lora=True, **base), SD15, components)._frozen is None
    with pytest.raises(ValueError, match="--lora_dropout: expected 0 beside a reference model, found 0.1"):
        AlignmentContext(DPO(), Namespace(use_lora=True, **base | {"lora_dropout": 0.1}), SD15, components)


def test_the_preference_is_learnt(align):
    """One pair by heart: the winner is denoised better, relative to the reference and the loser."""
    flags = ["--objective=dpo", "--beta=500", "--num_pairs=1", "--train_batch_size=8", "--max_train_steps=60"]
    curve = losses(align("preference", "out", *flags, "--learning_rate=3e-3"))
    assert sum(curve[-10:]) / 10 < 0.9 * curve[0]


def test_images_are_scored_for_the_captions_of_their_rows(align, brightness):
    align(*METHODS["sharpening-sft"][:1], "out", *METHODS["sharpening-sft"][1])
    assert set(brightness.prompts) <= {f"thing {i}" for i in range(4)}
    blocks = [brightness.prompts[i : i + 6] for i in range(0, len(brightness.prompts), 6)]  # 2 rows, 3 noises each
    assert all(block[:3] == block[:1] * 3 and block[3:] == block[3:4] * 3 for block in blocks)


def test_composite_scorer_adds_normalised_rewards(make_images):
    reward, images = Brightness(), make_images(3)
    raw = reward.score([""] * 3, images)
    constants = {"normalization": "zscore", "rewards": {"brightness": {"mean": 0.5, "std": 0.1, "count": 9}}}
    scorer = CompositeScorer({"brightness": reward}, {"brightness": 2.0}, constants)
    np.testing.assert_allclose(scorer.score([""] * 3, images), 2 * (raw - 0.5) / 0.1, rtol=1e-5)
    plain = CompositeScorer({"brightness": reward}, {"brightness": 2.0})
    np.testing.assert_allclose(plain.score([""] * 3, images), 2 * raw, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"--rewards: expected rewards that the build scored \(brightness\), found 'x'"
    ):
        CompositeScorer({"x": reward}, {"x": 1.0}, constants)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("preference", ["--objective=dpo", "--clip=0.2"], "--clip: expected an option of DPO, found one of SPO"),
        ("sharpening", ["--eta=2"], "--eta: expected an option of SFTSharpening, found one of RLHFSharpening"),
        ("smpo", ["--renoise=often"], "--renoise: expected one of none, final, every, found 'often'"),
        (
            "smpo",
            ["--prediction_type=v_prediction"],
            "--prediction_type: expected epsilon for SmPO, found v_prediction",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(align, script, flags, message):
    with pytest.raises(ValueError, match=message):
        align(script, "out", *flags)


def test_flags_reach_the_objective():
    module = _script("smpo")
    args = module.parse_args(
        ["--pretrained_model_name_or_path=x", "--backbone=sdxl", "--beta=5000", "--grid=official"]
    )
    assert (args.beta, args.grid, args.gamma, args.resolution) == (5000.0, "official", None, 1024)
