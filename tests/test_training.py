# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The training scripts as a user runs them, on random-weight pipelines."""

import importlib.util
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from training_driver import FIXED, ROOT, environment, load_script, losses, run_json, same, weights

from diffusers_craft import TrainingRun
from diffusers_craft.hub.upload import published_id
from diffusers_craft.training.checkpoints import Checkpoints, list_checkpoints


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_trained_pipeline_loads_and_only_its_unet_changed(train, family, random_sd15, random_sdxl):
    base = {"sd15": random_sd15, "sdxl": random_sdxl}[family]
    flags = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=3", "--use_ema"]
    folder = train(family, "out", *flags, "--validation_prompt=a thing", "--num_validation_images=1")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is type(DiffusionPipeline.from_pretrained(base))
    assert pipeline("a thing", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)
    assert not same(weights(folder), weights(base))
    assert same(weights(folder, "vae"), weights(base, "vae"))
    assert [path.name for path in sorted((folder / "validation").rglob("*.png"))] == ["0.png"]
    run = run_json(folder)
    assert run["options"]["learning_rate"] == 1e-3 and run["seed"] == 0 and "torch" in run["versions"]
    assert [entry["step"] for entry in run["loss_history"]] == [1, 2, 3]


def test_overfitting_one_row_drives_the_error_down(train):
    flags = ["--max_train_samples=1", "--loss=sft", "--train_batch_size=32", "--gradient_accumulation_steps=1"]
    curve = losses(train("sd15", "out", *flags, "--max_train_steps=40", "--learning_rate=1e-2"))
    assert 0.9 < curve[0] < 1.5  # a random UNet predicts next to nothing of unit-variance noise
    assert sum(curve[-5:]) / 5 < 0.8 * curve[0]


def test_accumulation_does_not_change_the_run(train):
    whole = train("sd15", "whole", "--train_batch_size=12", "--gradient_accumulation_steps=1", "--max_train_steps=4")
    parts = train("sd15", "parts", "--train_batch_size=3", "--gradient_accumulation_steps=4", "--max_train_steps=4")
    assert losses(whole) == pytest.approx(losses(parts), abs=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], rtol=0, atol=1e-4)


def test_resume_is_exact_in_the_middle_of_a_pass(train, tmp_path):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=8", "--use_ema"]
    common += ["--lr_scheduler=cosine", "--caption_dropout=0.2", "--checkpointing_steps=3"]
    whole = train("sd15", "whole", *common)
    part = train("sd15", "part", *common, "--checkpoints_total_limit=1")
    assert [path.name for path in part.glob("checkpoint-*")] == ["checkpoint-6"]
    resumed = train("sd15", "resumed", *common, f"--resume_from_checkpoint={whole}/checkpoint-3/")
    assert same(weights(whole), weights(resumed)) and same(weights(whole), weights(part))
    assert losses(whole) == losses(resumed)
    for kind in ("unet", "unet_ema"):
        assert same(weights(whole / "checkpoint-6", kind), weights(resumed / "checkpoint-6", kind))
    assert not same(weights(whole / "checkpoint-6"), weights(whole / "checkpoint-6", "unet_ema"))


def test_a_new_run_among_old_checkpoints_is_refused_and_a_changed_one_warned_about(train, caplog):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--checkpointing_steps=1"]
    train("sd15", "out", *common, "--max_train_steps=1")
    with pytest.raises(
        ValueError, match="--output_dir: expected a folder without checkpoints, .* found checkpoint-1 in"
    ):
        train("sd15", "out", *common, "--max_train_steps=2")
    folder = train("sd15", "out", *common, "--max_train_steps=2", "--seed=5", "--resume_from_checkpoint=latest")
    assert "seed of the checkpoint is 0, now 5: not the same run." in caplog.text
    assert [entry["step"] for entry in run_json(folder)["loss_history"]] == [1, 2]


def test_a_resumed_run_takes_the_flags_it_is_given(train, caplog):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--checkpointing_steps=1"]
    out = train("sd15", "out", *common, "--max_train_steps=2")
    again = [*common, f"--resume_from_checkpoint={out}/checkpoint-1", "--max_train_steps=4"]
    faster = train("sd15", "faster", *again, "--learning_rate=2e-4", "--adam_beta1=0.5", "--lr_scheduler=linear")
    rates = [entry["lr"] for entry in run_json(faster)["loss_history"]]
    assert rates == pytest.approx([1e-3, 2e-4 * 3 / 4, 2e-4 * 2 / 4, 2e-4 / 4])  # linear to 0 in four steps
    for line in (
        "learning_rate of the checkpoint is 0.001, now 0.0002",
        "adam_beta1 of the checkpoint is 0.9, now 0.5",
    ):
        assert f"--{line}: not the same run." in caplog.text
    slower = train("sd15", "slower", *again, "--learning_rate=2e-4", "--lr_scheduler=linear")
    assert not same(weights(faster), weights(slower))  # the betas count too


@pytest.mark.parametrize(
    ("made_with", "flags", "message"),
    [
        ([], ["--use_adafactor"], "--use_adafactor: expected False, as in .*checkpoint-2, found True; its state"),
        (["--use_adafactor"], [], "--use_adafactor: expected True, as in .*checkpoint-2, found False"),
        (
            [],
            ["--train_dtype=bf16", "--mixed_precision=bf16"],
            "--train_dtype: expected fp32, as in .*checkpoint-2, found bf16",
        ),
        ([], ["--max_train_steps=1"], "--max_train_steps: expected at least 2, the steps of .*checkpoint-2, found 1"),
    ],
)
def test_what_a_checkpoint_cannot_go_on_with_is_refused(train, made_with, flags, message):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--checkpointing_steps=1"]
    train("sd15", "out", *common, *made_with, "--max_train_steps=2")
    with pytest.raises(ValueError, match=message):
        train("sd15", "out", *common, "--resume_from_checkpoint=latest", "--max_train_steps=3", *flags)


def test_a_run_does_not_go_on_beside_later_checkpoints(train):
    """Rotation and `latest` would take those of the earlier run for its own."""
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--checkpointing_steps=1"]
    out = train("sd15", "out", *common, "--max_train_steps=3")
    message = "expected no later checkpoint than checkpoint-1 in .*, found checkpoint-3; move it away, or give another"
    with pytest.raises(ValueError, match=message):
        train("sd15", "out", *common, "--resume_from_checkpoint=checkpoint-1", "--max_train_steps=3")
    other = train("sd15", "other", *common, f"--resume_from_checkpoint={out}/checkpoint-1", "--max_train_steps=3")
    assert losses(other) == losses(out)


def test_rotation_keeps_one_more_until_the_next_loss(train, monkeypatch):
    seen, save = [], Checkpoints.save

    def saved(checkpoints, *rest):
        path = save(checkpoints, *rest)
        seen.append([folder.name for folder in list_checkpoints(checkpoints.output_dir)])
        return path

    monkeypatch.setattr(Checkpoints, "save", saved)
    flags = [
        "--train_batch_size=2",
        "--gradient_accumulation_steps=1",
        "--max_train_steps=4",
        "--checkpointing_steps=1",
    ]
    folder = train("sd15", "out", *flags, "--checkpoints_total_limit=1")
    assert [len(names) for names in seen] == [1, 2, 2, 2] and seen[-1] == ["checkpoint-3", "checkpoint-4"]
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-4"]


def test_the_checkpoint_before_a_bad_one_outlives_rotation(train, tmp_path):
    """The weights of step 2 give the loss of step 3: until that is known, checkpoint-1 has to stay."""
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=5"]
    common += ["--checkpointing_steps=1", "--checkpoints_total_limit=1"]
    with pytest.raises(
        ValueError, match="step 3: train_loss is nan .*; the last good checkpoint is .*checkpoint-1; try"
    ):
        train("sd15", "out", *common, "--learning_rate=1e30", "--lr_scheduler=linear", "--lr_warmup_steps=1")
    assert (tmp_path / "out" / "checkpoint-1").is_dir()
    calm = train(
        "sd15", "calm", *common, f"--resume_from_checkpoint={tmp_path}/out/checkpoint-1", "--learning_rate=1e-5"
    )
    assert len(losses(calm)) == 5 and [path.name for path in calm.glob("checkpoint-*")] == ["checkpoint-5"]


def test_what_was_published_is_forgotten_once_the_weights_are_others(train):
    """A model that is trained on this folder next must not name the published one as its base."""
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--checkpointing_steps=1"]
    common += ["--resume_from_checkpoint=latest"]
    folder = train("sd15", "out", *common, "--max_train_steps=1")
    (folder / "craft_hub.json").write_text(json.dumps({"repo_id": "org/published"}))
    train("sd15", "out", *common, "--max_train_steps=1")
    assert published_id(folder) == "org/published", "no step was done: the same weights"
    train("sd15", "out", *common, "--max_train_steps=2")
    assert published_id(folder) is None


def test_a_killed_run_resumes_to_the_same_weights(train, arguments, tmp_path):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=24"]
    common += ["--checkpointing_steps=8", "--resume_from_checkpoint=latest"]
    undisturbed = train("sd15", "undisturbed", *common)
    script = ROOT / "examples" / "craft" / "train_craft_sd15.py"
    command = [sys.executable, str(script), *arguments("sd15", "killed", *common)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed" / "checkpoint-8").is_dir():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "craft_run.json").exists()
    killed = train("sd15", "killed", *common)
    assert same(weights(undisturbed), weights(killed))
    assert losses(undisturbed) == losses(killed)
    assert not list(killed.glob(".checkpoint-*"))


def test_checkpoints_and_validation_leave_the_run_alone(train):
    common = ["--train_batch_size=5", "--gradient_accumulation_steps=1", "--max_train_steps=4", "--use_ema"]
    plain = train("sd15", "plain", *common)
    watched = train(
        "sd15",
        "watched",
        *common,
        *["--validation_prompt=a thing", "--num_validation_images=1", "--validation_epochs=1"],
        *["--checkpointing_steps=1", "--checkpoints_total_limit=2"],
    )
    assert same(weights(plain), weights(watched))
    assert sorted(path.name for path in watched.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    # ten rows in batches of five: a pass ends after steps 2 and 4
    assert sorted(path.name for path in (watched / "validation").iterdir()) == ["step-000002", "step-000004"]


def test_sft_is_craft_with_advantages_of_one(train, dataset_folder, tmp_path, make_images):
    common = ["--train_batch_size=5", "--gradient_accumulation_steps=1", "--max_train_steps=2"]
    sft = train("sd15", "sft", *common, "--loss=sft")
    craft = train("sd15", "craft", *common)
    without = train("sd15", "without", *common, "--advantage_column=missing")
    assert same(weights(sft), weights(without)) and not same(weights(sft), weights(craft))
    history = run_json(craft)["loss_history"]
    assert sum(entry["share_negative"] for entry in history) / 2 == pytest.approx(0.3)  # rows 0, 1, 2 of 10
    assert all("error_negative" not in entry for entry in run_json(sft)["loss_history"])


def test_the_schedule_counts_optimizer_steps_under_accumulation(train):
    common = ["--max_train_steps=4", "--lr_scheduler=linear", "--train_batch_size=2"]
    rates = [
        e["lr"] for e in run_json(train("sd15", "out", *common, "--gradient_accumulation_steps=3"))["loss_history"]
    ]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_epochs_become_steps(train):
    folder = train("sd15", "out", "--num_train_epochs=2", "--train_batch_size=8", "--gradient_accumulation_steps=1")
    assert run_json(folder)["options"]["max_train_steps"] == 3  # 20 rows in batches of 8


def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(train, tmp_path, monkeypatch):
    micro_batches = TrainingRun.micro_batches

    def poisoned(self, step):
        for batch in micro_batches(self, step):
            yield batch._replace(weights=batch.weights * (float("nan") if step == 3 else 1.0))

    monkeypatch.setattr(TrainingRun, "micro_batches", poisoned)
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=9"]
    with pytest.raises(ValueError, match="step 4: train_loss is nan .*; the last good checkpoint is .*checkpoint-2;"):
        train("sd15", "out", *common, "--checkpointing_steps=2")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "model_index.json").exists()


def test_bfloat16_and_checkpointing_train_and_a_tracker_records(train):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=2", "--max_train_steps=2", "--use_ema"]
    plain = train("sdxl", "plain", *common)
    flags = ["--mixed_precision=bf16", "--gradient_checkpointing", "--report_to=tensorboard"]
    flags += ["--validation_prompt=a thing", "--num_validation_images=2", "--validation_epochs=1"]
    mixed = train("sdxl", "mixed", *common, *flags)
    assert losses(mixed) == pytest.approx(losses(plain), abs=0.02) and losses(mixed) != losses(plain)
    assert all(value.dtype == torch.float32 for value in weights(mixed).values())
    assert list((mixed / "logs").rglob("events.out.tfevents.*"))


def test_velocity_prediction_is_trained_and_recorded(train):
    common = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=1"]
    folder = train("sd15", "v", *common, "--prediction_type=v_prediction")
    assert DiffusionPipeline.from_pretrained(folder).scheduler.config.prediction_type == "v_prediction"
    assert losses(folder) != losses(train("sd15", "eps", *common))


def test_an_image_folder_trains_as_sft(train, make_images, tmp_path, random_sd15):
    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for index, image in enumerate(make_images(3)):
        image.save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": f"thing {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    script = load_script("sd15")
    flags = [f"--pretrained_model_name_or_path={random_sd15}", f"--train_data_dir={folder}", "--caption_column=text"]
    flags += [*FIXED, f"--output_dir={tmp_path / 'out'}", "--max_train_steps=1", "--train_batch_size=2"]
    AcceleratorState._reset_state(reset_partial_state=True)
    script.main(script.parse_args(flags))
    assert run_json(tmp_path / "out")["num_rows"] == 3


def test_user_errors_are_one_line_and_exit_code_2(arguments, capsys):
    script = load_script("sd15")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit) as exit_:
        script.run_script(script.main, script.parse_args(arguments("sd15", "out", "--caption_column=text")))
    assert exit_.value.code == 2
    expected = "error: --caption_column: expected one of the dataset's columns (image, prompt, reward, advantage)"
    assert capsys.readouterr().err.splitlines()[-1] == f"{expected}, found 'text'"


@pytest.mark.parametrize(
    ("family", "flags", "message"),
    [
        ("sd15", ["--report_to=wandb"], "--report_to: expected an installed tracker, found wandb"),
        ("sd15", ["--resume_from_checkpoint=nowhere"], "--resume_from_checkpoint: expected `latest` or the folder"),
        ("sd15", ["--dataset_name=no/such-dataset"], "--dataset_name: expected a Hub dataset"),
    ],
)
def test_errors_name_the_flag(train, monkeypatch, family, flags, message):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "diffusers_craft.training.accelerator.find_spec", lambda name: None if name == "wandb" else find_spec(name)
    )
    with pytest.raises(ValueError, match=message):
        train(family, "out", *flags)


def test_a_pipeline_of_another_family_is_refused(train, random_sdxl):
    with pytest.raises(ValueError, match="expected a StableDiffusionPipeline for this script, found a .*XLPipeline"):
        train("sd15", "out", f"--pretrained_model_name_or_path={random_sdxl}")
