# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""LoRA through the training scripts: what is trained, what is saved, and what the pipeline makes of it."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from training_driver import losses, run_json, same

from diffusers_craft import SD15, SDXL, load_tuned_pipeline
from diffusers_craft.hub.model import load_trained, sample_pictures
from diffusers_craft.models.loading import LORA_FILE
from diffusers_craft.scripts import ModelSource


STEPS = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=4"]
LORA = [*STEPS, "--use_lora", "--rank=2", "--lora_alpha=6", "--learning_rate=1e-2"]


def _adapters(folder):
    return load_file(folder / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("backbone", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_the_pipeline_loads_what_was_trained(train, kept, backbone, random_sd15, random_sdxl):
    """The trained UNet and the one that `load_lora_weights` makes predict the same, at an alpha that is not the rank."""
    family, base = ("sd15", random_sd15) if backbone is SD15 else ("sdxl", random_sdxl)
    folder = train(family, "lora", *LORA, "--validation_prompt=a thing", "--num_validation_images=1")
    assert not (folder / "unet").exists() and (folder / "validation" / "step-000004" / "0.png").is_file()
    adapters = _adapters(folder)
    assert {value.shape[0] for name, value in adapters.items() if "lora_A" in name or "lora.down" in name} == {2}

    run, pipeline = kept["run"], DiffusionPipeline.from_pretrained(base)
    plain = backbone.load(ModelSource(str(base))).denoiser
    pipeline.load_lora_weights(folder, weight_name=LORA_FILE)  # diffusers 0.34 needs the name offline
    batch = next(run.micro_batches(0))
    with torch.no_grad():
        trained, loaded, untouched = (
            backbone.predict(unet, batch.noisy_latents, batch.timesteps, batch.conditioning)
            for unet in (run.denoiser.eval(), pipeline.unet, plain)
        )
    torch.testing.assert_close(trained, loaded, rtol=0, atol=1e-5)
    tuned = load_tuned_pipeline(str(folder), str(base), device="cpu").unet
    assert not any("lora" in name for name, _ in tuned.named_parameters())  # fused: as fast as the base
    with torch.no_grad():
        fused = backbone.predict(tuned, batch.noisy_latents, batch.timesteps, batch.conditioning)
    torch.testing.assert_close(fused, loaded, rtol=0, atol=1e-5)
    assert (trained - untouched).abs().max() > 1e-2
    for name, value in run.denoiser.named_parameters():
        assert ("lora_" in name) == value.requires_grad
        assert value.requires_grad or torch.equal(value, plain.state_dict()[name.replace(".base_layer", "")])


def test_resume_is_exact_with_dropout(train):
    common = [*LORA, "--max_train_steps=6", "--lora_dropout=0.4", "--checkpointing_steps=2"]
    whole = train("sd15", "whole", *common)
    resumed = train("sd15", "resumed", *common, f"--resume_from_checkpoint={whole}/checkpoint-2")
    assert same(_adapters(whole), _adapters(resumed)) and losses(whole) == losses(resumed)
    assert same(_adapters(whole), _adapters(whole / "checkpoint-6"))
    assert not same(_adapters(whole), _adapters(whole / "checkpoint-4"))


def test_rank_alpha_dropout_and_seed_each_change_the_run(train):
    """Adapters start as nothing, so the first loss is the base model's; from the second on every flag shows."""
    variants = {
        "plain": [],
        "rank": ["--rank=3"],
        "alpha": ["--lora_alpha=2"],
        "dropout": ["--lora_dropout=0.5"],
        "full": ["--lora_alpha=2"],
    }
    curves = {name: losses(train("sd15", name, *LORA, *flags)) for name, flags in variants.items()}
    assert curves.pop("full") == curves["alpha"]  # the same flags give the same run
    assert len({curve[0] for curve in curves.values()}) == 1
    assert len({curve[-1] for curve in curves.values()}) == len(curves)


def test_alpha_defaults_to_the_rank(train):
    common = [*STEPS, "--use_lora", "--rank=2"]
    assert same(_adapters(train("sd15", "one", *common)), _adapters(train("sd15", "two", *common, "--lora_alpha=2")))


def test_the_frozen_unet_is_bfloat16_and_the_adapters_float32(train, kept):
    flags = ["--mixed_precision=bf16", "--gradient_checkpointing", "--validation_prompt=a thing"]
    plain = train("sdxl", "plain", *LORA)
    folder = train("sdxl", "mixed", *LORA, *flags, "--num_validation_images=1", "--validation_epochs=1")
    for name, value in kept["run"].denoiser.named_parameters():
        assert value.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    assert losses(folder) == pytest.approx(losses(plain), abs=0.02) and losses(folder) != losses(plain)
    assert len(list((folder / "validation").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (STEPS, "--use_lora: expected True, as in .*checkpoint-2, found False; its state has that form"),
        ([*LORA, "--rank=3"], "--rank: expected 2, as in .*checkpoint-2, found 3"),
    ],
)
def test_another_kind_of_checkpoint_is_refused(train, flags, message):
    checkpoint = train("sd15", "lora", *LORA, "--checkpointing_steps=2") / "checkpoint-2"
    with pytest.raises(ValueError, match=message):
        train("sd15", "other", *flags, f"--resume_from_checkpoint={checkpoint}")


def test_a_full_checkpoint_is_refused(train):
    checkpoint = train("sd15", "full", *STEPS, "--checkpointing_steps=2") / "checkpoint-2"
    with pytest.raises(ValueError, match="--use_lora: expected False, as in .*checkpoint-2, found True"):
        train("sd15", "lora", *LORA, f"--resume_from_checkpoint={checkpoint}")


def test_a_missing_peft_is_named(train, monkeypatch):
    monkeypatch.setattr("diffusers_craft.training.model.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--use_lora: expected an installed peft, .*diffusers-craft\[lora\]"):
        train("sd15", "out", *LORA)


@pytest.mark.parametrize(
    ("flags", "there", "message"),
    [
        (LORA, "model_index.json", "--output_dir: expected a folder without a pipeline for --use_lora, found model_i"),
        (STEPS, LORA_FILE, "--output_dir: expected a folder without LoRA weights for full fine-tuning, found pytorch"),
    ],
)
def test_a_folder_with_another_kind_of_result_is_refused_at_once(train, tmp_path, monkeypatch, flags, there, message):
    monkeypatch.setattr("diffusers_craft.models.family.Family.load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "mix").mkdir()
    (tmp_path / "mix" / there).touch()
    with pytest.raises(ValueError, match=message):
        train("sd15", "mix", *flags)


def test_the_pictures_of_a_card_are_drawn_with_the_vae_of_the_run(train, random_sd15, tmp_path, capsys):
    vae = DiffusionPipeline.from_pretrained(random_sd15).vae
    for value in vae.decoder.parameters():
        value.data += 1
    vae.save_pretrained(tmp_path / "vae")
    folder = train("sd15", "lora", *LORA, f"--pretrained_vae_model_name_or_path={tmp_path / 'vae'}")
    record = run_json(folder)
    assert same(load_trained(folder, record).vae.state_dict(), vae.state_dict())
    capsys.readouterr()
    pictures, prompts = sample_pictures(folder, record | {"captions": record["captions"][:2]})
    assert len(pictures) == len(prompts) == 2 and all(path.is_file() for path in pictures)
    assert "Drawing for the card: 100%" in capsys.readouterr().err


def test_the_record_says_what_a_folder_with_both_kinds_holds(train, random_sd15, tmp_path, monkeypatch):
    """As an earlier version left them; and a relative base is found from another folder, too."""
    monkeypatch.chdir(random_sd15.parent)
    folder = train("sd15", "lora", *LORA, f"--pretrained_model_name_or_path={random_sd15.name}")
    monkeypatch.chdir(tmp_path)
    expected = load_tuned_pipeline(str(folder), str(random_sd15), device="cpu").unet.state_dict()
    shutil.copytree(random_sd15, folder, dirs_exist_ok=True)
    found = load_tuned_pipeline(str(folder), str(random_sd15), device="cpu").unet.state_dict()
    base = load_tuned_pipeline(str(random_sd15), str(random_sd15), device="cpu").unet.state_dict()
    assert same(found, expected) and not same(found, base)
    record = run_json(folder)
    assert any("lora" in name for name, _ in load_trained(folder, record).unet.named_parameters())

    (folder / LORA_FILE).unlink()
    with pytest.raises(ValueError, match=f"expected {LORA_FILE} of a run with --use_lora, found none"):
        load_tuned_pipeline(str(folder), str(random_sd15), device="cpu")
    (folder / "model_index.json").unlink()
    (folder / LORA_FILE).touch()  # of an older run
    (folder / "craft_run.json").write_text(json.dumps({"options": {"use_lora": False}}))
    shutil.copytree(random_sd15 / "unet", folder, dirs_exist_ok=True)
    assert same(load_tuned_pipeline(str(folder), str(random_sd15), device="cpu").unet.state_dict(), base)
