# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Flags that say where models, data and logs are, and the faults of diffusers' own training scripts."""

import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, Image, load_dataset
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from training_driver import FIXED, load_script, losses, run_json, same, weights

from diffusers_craft import TrainingRun


STEP = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=1"]


@pytest.fixture
def train_on(random_sd15, tmp_path):
    """`train_on(folder, "name", ...)`: trains SD1.5 on another dataset."""

    def run(folder, output: str, *flags: str):
        AcceleratorState._reset_state(reset_partial_state=True)
        script = load_script("sd15")
        where = [f"--pretrained_model_name_or_path={random_sd15}", f"--dataset_name={folder}"]
        where += [f"--output_dir={tmp_path / output}", *FIXED, *STEP]
        script.main(script.parse_args([*where, *flags]))
        return tmp_path / output

    return run


def _rows(dataset_folder) -> Dataset:
    return load_dataset("parquet", data_files=str(dataset_folder / "dataset" / "*.parquet"), split="train")


def _write(dataset: Dataset, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(path)


def test_variant_revision_and_cache_dir_reach_diffusers(train, random_sd15, tmp_path, monkeypatch):
    folder = tmp_path / "variant"
    shutil.copytree(random_sd15, folder)
    pipeline = DiffusionPipeline.from_pretrained(random_sd15)
    with torch.no_grad():
        pipeline.unet.conv_in.weight += 0.1
    pipeline.save_pretrained(folder, variant="other")
    model = f"--pretrained_model_name_or_path={folder}"
    assert losses(train("sd15", "one", *STEP, model)) != losses(train("sd15", "two", *STEP, model, "--variant=other"))
    seen, load = [], DiffusionPipeline.from_pretrained.__func__

    def watched(cls, *args, revision=None, cache_dir=None, **kwargs):
        seen.append((revision, cache_dir))
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(watched))
    cache = tmp_path / "cache"
    train("sd15", "three", *STEP, "--revision=abc", f"--cache_dir={cache}")
    assert set(seen) == {("abc", str(cache))} and list(cache.rglob("*.safetensors"))  # encoded rows are there, too


def test_another_vae_encodes_and_is_saved(train, random_sdxl, tmp_path):
    vae = AutoencoderKL.from_pretrained(random_sdxl, subfolder="vae")
    with torch.no_grad():
        vae.encoder.conv_in.weight += 0.1
    vae.save_pretrained(tmp_path / "vae")
    plain = train("sdxl", "plain", *STEP)
    other = train("sdxl", "other", *STEP, f"--pretrained_vae_model_name_or_path={tmp_path / 'vae'}")
    assert losses(plain) != losses(other)
    saved = AutoencoderKL.from_pretrained(other, subfolder="vae").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in vae.state_dict().items())


def test_a_configuration_of_the_dataset_is_chosen(train_on, dataset_folder, tmp_path):
    rows, folder = _rows(dataset_folder), tmp_path / "configured"
    _write(rows, folder / "one" / "train.parquet")
    _write(rows.select(range(3)), folder / "two" / "train.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/train.parquet\n" for name in ("one", "two"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    found = [train_on(folder, name, f"--dataset_config_name={name}") for name in ("one", "two")]
    assert [run_json(path)["num_rows"] for path in found] == [10, 3]


def test_columns_of_other_names_and_further_columns(train, train_on, dataset_folder, tmp_path):
    """The stock SDXL script stops at any further column, and knows no caption column but `text`."""
    rows = _rows(dataset_folder)
    names = {"image": "picture", "prompt": "caption", "advantage": "weight"}
    renamed = rows.rename_columns(names).add_column("text", ["wrong"] * len(rows))
    renamed = renamed.add_column("hps_v2.1", [0.3] * len(rows)).add_column("tags", [["a", "b"]] * len(rows))
    _write(renamed, tmp_path / "renamed" / "train.parquet")
    flags = ["--image_column=picture", "--caption_column=caption", "--advantage_column=weight"]
    plain, other = train("sd15", "plain", *STEP), train_on(tmp_path / "renamed", "other", *flags)
    assert losses(plain) == losses(other) and same(weights(plain), weights(other))
    assert losses(train_on(tmp_path / "renamed", "text", *flags, "--caption_column=text")) != losses(plain)


def test_latents_of_another_column_are_used(train_on, dataset_folder, kept, tmp_path):
    rows = _rows(dataset_folder).remove_columns("image")
    value = torch.full((4, 8, 8), 0.25).tolist()
    _write(rows.add_column("z", [value] * len(rows)), tmp_path / "latents" / "train.parquet")
    train_on(tmp_path / "latents", "out", "--use_generated_latents", "--latent_column=z")
    assert (kept["batches"][0][0].latents == 0.25).all()


def test_caption_dropout_trains_on_what_the_pipeline_guides_away_from(train, kept, random_sdxl):
    train("sdxl", "out", *STEP, "--caption_dropout=1")
    pipeline = DiffusionPipeline.from_pretrained(random_sdxl)
    _, negative, _, pooled = pipeline.encode_prompt("x", do_classifier_free_guidance=True)
    conditioning = kept["batches"][0][0].conditioning
    for name, expected in (("encoder_hidden_states", negative), ("text_embeds", pooled)):
        torch.testing.assert_close(conditioning[name], expected.expand_as(conditioning[name]))
    train("sdxl", "plain", *STEP)
    assert not torch.equal(kept["batches"][0][0].conditioning["text_embeds"], conditioning["text_embeds"])
    assert kept["run"].data.prompts["text_embeds"].shape[0] == 7 + 1  # distinct captions, and the empty one


def test_seed_and_logging_dir(train):
    flags = [*STEP, "--report_to=tensorboard", "--logging_dir=journal"]
    one, two = train("sd15", "one", *flags), train("sd15", "two", *STEP, "--seed=1")
    assert losses(one) != losses(two)
    assert list((one / "journal").rglob("events.out.tfevents.*")) and not (one / "logs").exists()


def test_validation_leaves_weights_and_random_state_untouched(train, monkeypatch):
    """The stock scripts draw from the global generator, and cast the UNet that they share with the pipeline."""
    found, validate = [], TrainingRun.validate

    def watched(run):
        torch.manual_seed(11)
        state, before = torch.get_rng_state(), {k: v.clone() for k, v in run.denoiser.state_dict().items()}
        validate(run)
        after = run.denoiser.state_dict()
        found.append(torch.equal(state, torch.get_rng_state()) and run.denoiser.training)
        found.append(all(torch.equal(before[k], v) and before[k].dtype == v.dtype for k, v in after.items()))

    monkeypatch.setattr(TrainingRun, "validate", watched)
    flags = ["--validation_prompt=a thing", "--num_validation_images=2", "--validation_epochs=1", "--use_ema"]
    whole_pass = ["--train_batch_size=10", "--gradient_accumulation_steps=1", "--max_train_steps=2"]
    folder = train("sd15", "out", *whole_pass, *flags, "--mixed_precision=bf16")
    assert found == [True, True]
    assert len(list((folder / "validation" / "step-000001").glob("*.png"))) == 2


def test_sizes_reach_the_unet_in_float32(train, dataset_folder, tmp_path, monkeypatch):
    """1023 in bfloat16 is 1024."""
    rows = _rows(dataset_folder)
    large = [image.resize((1023, 70)) for image in rows["image"]]
    columns = {"image": large, "prompt": rows["prompt"], "advantage": rows["advantage"]}
    _write(Dataset.from_dict(columns).cast_column("image", Image()), tmp_path / "large" / "train.parquet")
    seen, embed = [], UNet2DConditionModel.get_aug_embed

    def watched(self, emb, encoder_hidden_states, added_cond_kwargs):
        seen.append(added_cond_kwargs["time_ids"])
        return embed(self, emb, encoder_hidden_states, added_cond_kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "get_aug_embed", watched)
    train("sdxl", "out", *STEP, "--mixed_precision=bf16", f"--dataset_name={tmp_path / 'large'}")
    assert seen[0].dtype == torch.float32 and set(seen[0][:, 1].tolist()) == {1023.0}
