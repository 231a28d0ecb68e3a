# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The scripts of the other objectives as a user runs them, on random-weight pipelines."""

import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset, Image
from training_driver import ROOT, losses, run_json, same, weights

from diffusers_craft import DPO, SD15, SPO, SFTSharpening, SmPO, TrainingRun, TrainingSettings, register_reward, train
from diffusers_craft.data.rows import shuffled_rows
from diffusers_craft.scoring.scorer import CompositeScorer
from diffusers_craft.scripts import DataSettings, load_preferences, objective_from_args
from diffusers_craft.training import data as training_data
from diffusers_craft.training import loop
from diffusers_craft.training.data import check_data_settings, load_pairs, score_preferences
from diffusers_craft.training.loop import TrainingContext


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
def brightness():
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
def align(uneven_sd15, uneven_sdxl, preference_build, tmp_path):
    """`align("smpo", "out", ...)`: trains in this process, returns the output folder."""
    models = {"sd15": uneven_sd15, "sdxl": uneven_sdxl}

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
    "sharpening-rlhf": (
        "sharpening",
        ["--sharpening=rlhf", "--generation_steps=2", "--num_states=2", "--eta=0", *ONLINE],
    ),
}
LN2_METHODS = ("dpo", "inpo", "spo", "smpo", "sharpening-rlhf")  # sharpening without its margin
AT_REFERENCE = dict.fromkeys(LN2_METHODS, math.log(2)) | {"kto": 0.5}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_starts_at_its_reference(align, method, uneven_sd15):
    script, flags = METHODS[method]
    folder = align(script, "out", *flags)
    first = run_json(folder)["loss_history"][0]
    if method in AT_REFERENCE:  # policy and reference go the same way: exactly equal, not nearly
        assert first["train_loss"] == pytest.approx(AT_REFERENCE[method], abs=1e-6)
    assert not same(weights(folder), weights(uneven_sd15))
    assert same(weights(folder, "vae"), weights(uneven_sd15, "vae"))
    names = {"smpo": "SmPO", "sharpening-sft": "SFTSharpening", "sharpening-rlhf": "RLHFSharpening"}
    options = run_json(folder)["options"]
    assert options["objective"] == names.get(method, method)
    assert options["grid_steps" if "sharpening" in method else "beta"] is not None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_sdxl_starts_at_its_reference(align, method, monkeypatch):
    script, flags = METHODS[method]
    runs = []
    monkeypatch.setattr(TrainingRun, "finish", lambda run: runs.append(run))  # saving the pipeline is tested elsewhere
    align(script, "out", *flags, "--max_train_steps=1", backbone="sdxl")
    runs[0].log.flush()
    (first,) = runs[0].log.history
    assert math.isfinite(first["train_loss"]) and first["grad_norm"] > 0
    if method in AT_REFERENCE:
        assert first["train_loss"] == pytest.approx(AT_REFERENCE[method], abs=1e-6)
    if method == "dspo":
        assert first["winner_change"] == first["loser_change"] == 0.0


def test_another_family_than_the_models_is_refused(align, random_sdxl, tmp_path):
    with pytest.raises(ValueError, match="expected a StableDiffusionPipeline .*found a StableDiffusionXLPipeline"):
        align("smpo", "out", f"--pretrained_model_name_or_path={random_sdxl}")


@pytest.mark.parametrize("method", ["dpo", "spo"])
def test_accumulation_does_not_change_the_run(align, method):
    """Noise, time, chains and candidates belong to the slot of the global batch, not to the micro-batch."""
    script, flags = METHODS[method]
    flags = [*flags, "--seed=1"]  # with 0, two candidates are so near that torch 2.4's rounding decides
    whole = align(script, "whole", *flags)
    parts = align(script, "parts", *flags, "--train_batch_size=1", "--gradient_accumulation_steps=2")
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-3, abs=1e-5)


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


@pytest.fixture
def pairs(make_images, tmp_path):
    """`pairs(score_0=[...], ...)`: folder of a dataset of four pairs and one tie, of captions a to e."""

    def write(**columns) -> Path:
        columns = {"image_0": make_images(5), "image_1": make_images(5, seed=1), "prompt": list("abcde")} | columns
        dataset = Dataset.from_dict({"label_0": [1, 0, 1, 0, 0.5]} | columns)
        for name in ("image_0", "image_1"):
            dataset = dataset.cast_column(name, Image())
        dataset.to_parquet(tmp_path / "pairs" / "train.parquet")
        return tmp_path / "pairs"

    return write


def _loaded(folder: Path, reward: Brightness | None = None, **changes):
    """SmPO's pairs before they are encoded, and their factors by caption."""
    settings = TrainingSettings(pretrained_model_name_or_path="x", dataset_name=str(folder), **changes)
    check_data_settings(settings, SmPO(), [])
    scorer = None if reward is None else lambda: CompositeScorer({"x": reward}, {"x": 1.0})
    found = load_pairs(settings, SmPO(), Accelerator(cpu=True), scorer)
    captions = [found.images[row]["prompt"] for row in found.pairs[:, 0].tolist()]
    factors = SmPO().pair_weights(torch.as_tensor(found.scores), found.score_range)
    return found, dict(zip(captions, factors.tolist(), strict=True))


def test_factors_do_not_depend_on_which_pairs_are_chosen(pairs, caplog):
    """The range is that of the dataset, ties too; pairs whose rewards abstained are left out, and counted."""
    folder = pairs(score_0=[0.22, 0.1, None, 0.3, 0.6], score_1=[0.20, 0.2, 0.4, 0.35, float("nan")])
    (_, factors), (one, best) = _loaded(folder), _loaded(folder, num_pairs=1)
    assert factors.keys() == {"a", "b", "d"} and "1 of 4 pairs have an image without a score" in caplog.text
    expected = {"a": 0.02, "b": 0.1, "d": 0.05}
    for caption, gap in expected.items():
        assert factors[caption] == pytest.approx(10 * math.tanh(gap / (2 * (0.6 - 0.1))))
    assert best == {"d": factors["d"]} and len(one.images) == 2
    _, some = _loaded(folder, max_train_samples=2, seed=3)
    assert len(some) == 2 and some.items() <= factors.items()
    assert len({tuple(_loaded(folder, max_train_samples=1, seed=i)[1]) for i in range(8)}) > 1
    _, factors = _loaded(folder, score_range=(0.11543526500463486, 0.28201571106910706))
    assert factors["a"] == pytest.approx(10 * math.tanh(0.02 / (2 * (0.28201571106910706 - 0.11543526500463486))))


def test_smpo_scores_pairs_that_have_no_scores(align, pairs, brightness):
    flags = [f"--dataset_name={pairs()}", "--inversion_steps=2"]
    first = run_json(align("smpo", "out", *flags, "--rewards=brightness"))["loss_history"][0]
    assert first["train_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert sorted(brightness.prompts) == sorted("abcde" * 2)  # each image once, ties too, which count for the range
    brightness.prompts.clear()
    _, factors = _loaded(pairs(), brightness, score_range=(0, 1), max_train_samples=1)
    assert len(brightness.prompts) == 2 and len(factors) == 1  # none that is not asked for
    with pytest.raises(ValueError, match="--dataset_name: expected score_0 and score_1, or --rewards to score with"):
        align("smpo", "none", *flags)


class Abstaining(Brightness):
    def score(self, prompts, images):
        scores = super().score(prompts, images)
        return np.where(np.array(prompts) == "b", np.nan, scores)


def test_processes_share_the_scoring(pairs, monkeypatch):
    """Two processes, one after the other: their parts come together in the images' order."""
    preferences = load_preferences(pairs(), DataSettings())
    scorer = CompositeScorer({"x": Abstaining()}, {"x": 1.0})
    whole = score_preferences(preferences, scorer, _process(0, 1))
    parts = []
    monkeypatch.setattr(training_data, "gather_object", lambda part: parts.append(part[0]) or [np.zeros(5)] * 2)
    for rank in range(2):
        score_preferences(preferences, scorer, _process(rank, 2))
    monkeypatch.setattr(training_data, "gather_object", lambda part: parts)
    both = score_preferences(preferences, scorer, _process(0, 2))
    np.testing.assert_array_equal(both.scores, whole.scores)
    assert both.score_range == whole.score_range > 0 and [len(part) for part in parts] == [5, 5]
    assert np.isnan(whole.scores).any(axis=1).tolist() == [False, True, False, False]


def _process(rank: int, processes: int) -> SimpleNamespace:
    return SimpleNamespace(process_index=rank, num_processes=processes, is_local_main_process=rank == 0)


def test_reference_memory(random_sd15):
    """A frozen copy for full fine-tuning, none with LoRA."""

    def context(**changes) -> TrainingContext:
        settings = TrainingSettings(pretrained_model_name_or_path=str(random_sd15), dataset_name="x", **changes)
        return TrainingContext(DPO(), settings, SD15, SD15.load(settings.source))

    assert not any(parameter.requires_grad for parameter in context()._frozen.parameters())
    assert context(use_lora=True)._frozen is None
    with pytest.raises(ValueError, match="--lora_dropout: expected 0 beside a reference model, found 0.1"):
        context(use_lora=True, lora_dropout=0.1)


def test_the_preference_is_learnt(align):
    """One pair by heart: the winner is denoised better, relative to the reference and the loser."""
    flags = ["--objective=dpo", "--beta=500", "--num_pairs=1", "--train_batch_size=8", "--max_train_steps=60"]
    curve = losses(align("preference", "out", *flags, "--learning_rate=3e-3"))
    assert sum(curve[-10:]) / 10 < 0.9 * curve[0]


def test_images_are_scored_for_the_captions_of_their_rows(align, brightness):
    """Two states of three noisings of each of the two images of a step, for two steps."""
    script, flags = METHODS["sharpening-sft"]
    align(script, "out", *flags)
    drawn = [shuffled_rows(4, step, 2, seed=0).tolist() for step in (0, 1)]
    states = [[f"thing {row}" for row in rows for _ in range(3)] for rows in drawn for _ in range(2)]
    # A state below t = 0 is scored too, and masked out afterwards.
    assert brightness.prompts == [caption for state in states for caption in state]
    assert len(set(brightness.prompts)) == 4


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
        ("smpo", ["--rewards=brightness"], "--rewards: expected pairs without scores to score, found a build in"),
        ("smpo", ["--score_range", "1", "1"], "--score_range: expected MIN below MAX, found 1 1"),
        ("smpo", ["--num_pairs=4"], r"--num_pairs: expected 1 to 3 \(pairs with a winner\), found 4"),
        (
            "smpo",
            ["--image_column=nope"],
            "--image_column: expected none with SmPO, which has no use for it, found nope",
        ),
        (
            "preference",
            ["--objective=dpo", "--score_range", "0", "1"],
            "--score_range: expected none with DPO, .* found",
        ),
        (
            "preference",
            ["--objective=dpo", "--use_generated_latents"],
            "--use_generated_latents: expected none with DPO",
        ),
        (
            "preference",
            ["--objective=kto", "--caption_column=nope"],
            "--caption_column: expected none with KTO, .* nope",
        ),
        (
            "preference",
            ["--objective=dpo", "--rewards=brightness"],
            "--rewards: expected none with DPO, .* found .*brightness",
        ),
        ("sharpening", ["--num_noises=1", "--rewards=brightness"], "--rewards: expected none with SFTSharpening"),
        ("preference", ["--objective=spo", "--num_pairs=2"], "--num_pairs: expected none with SPO, .* found 2"),
        (
            "preference",
            ["--objective=spo", "--caption_column=x"],
            "--caption_column: expected none with SPO, .* found x",
        ),
        ("preference", ["--objective=spo", "--resolution=60"], "--resolution: expected a multiple of 8 .* found 60"),
        ("sharpening", ["--advantage_column=x"], "--advantage_column: expected none with SFTSharpening, .* found x"),
    ],
)
def test_flags_that_do_not_fit_are_refused(align, script, flags, message):
    with pytest.raises(ValueError, match=message):
        align(script, "out", *flags)


@pytest.mark.parametrize(("method", "expected"), [("kto", 4), ("spo", 3), ("sharpening-sft", 3), ("dpo", 2)])
def test_training_on_a_random_subset(align, method, expected, monkeypatch):
    """Of images with a label, prompts, images, pairs: the seed says which, not the order of the data."""
    script, flags = METHODS[method]
    found = []
    monkeypatch.setattr(TrainingRun, "steps", lambda run: found.append(run.data) or iter(()))
    monkeypatch.setattr(TrainingRun, "finish", lambda run: None)
    for seed in range(3):
        align(script, str(seed), *flags, f"--max_train_samples={expected}", f"--seed={seed}")
    assert [len(data) for data in found] == [expected] * 3
    assert len({(*data.images.captions, data.images.latents.sum().item()) for data in found}) > 1


@pytest.mark.parametrize("objective", [SPO(), SFTSharpening()])
def test_rewards_have_a_default(objective, random_sd15, preference_build, monkeypatch):
    class Stop(Exception):
        pass

    def stop(rewards, *rest):
        raise Stop(rewards)

    monkeypatch.setattr(loop, "load_scorer", stop)
    settings = TrainingSettings(
        pretrained_model_name_or_path=str(random_sd15), dataset_name=str(preference_build), resolution=64
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(Stop, match="pickscore"):
        train(settings, objective)


def test_flags_reach_the_objective():
    module = _script("smpo")
    args = module.parse_args(["--pretrained_model_name_or_path=x", "--backbone=sdxl", "--grid=official", "--gamma=3"])
    objective = objective_from_args(SmPO, args, [SmPO])
    assert (objective.beta, objective.grid, objective.gamma) == (5000.0, "official", 3.0)
