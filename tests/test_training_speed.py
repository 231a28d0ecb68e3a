# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the report at the end of a run says, against closed forms and a clock that is set by hand."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from training_driver import run_json

from diffusers_craft import SD15, SDXL
from diffusers_craft.scripts import forward_flops, speed_report
from diffusers_craft.training import speed as training_speed
from diffusers_craft.training.speed import SpeedMeter


CPU = torch.device("cpu")
SD15_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
}
SDXL_UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(training_speed.time, "perf_counter", lambda: time.now)
    return time


def test_the_first_step_and_pauses_are_left_out(clock):
    meter = SpeedMeter(CPU)
    assert meter.seconds_a_step() is None
    clock.now += 50  # warm-up
    meter.step_done()
    assert meter.seconds_a_step() == 50
    for _ in range(4):
        clock.now += 2
        meter.step_done()
        with meter.pause():
            clock.now += 7
    assert meter.seconds_a_step() == 2


def test_the_report_counts_useful_work_only(clock, monkeypatch):
    monkeypatch.setattr(training_speed, "_peak_flops", lambda device: 1e15)
    earlier = {"seconds_a_step": 1.0, "device_seconds": 7200.0, "peak_gb": 1e6}
    meter = SpeedMeter(CPU, num_processes=8, earlier=earlier)
    meter.step_done()
    clock.now += 2
    meter.step_done()
    report = speed_report(meter, images_a_step=128, flops=5 * 10**12, precision="bf16")
    assert report["images_per_second"] == 64 and report["forward_tflop"] == 5
    assert report["mfu"] == pytest.approx(64 * 15e12 / 8e15)  # forward and twice that backward, of eight devices
    assert report["device_hours"] == pytest.approx(2 + 2 * 2 * 8 / 3600)  # before the resume and since
    assert report["peak_gb"] == 1e6
    assert speed_report(meter, 128, 10**12, precision="no")["mfu"] is None
    adapters = speed_report(meter, 128, 5 * 10**12, precision="bf16", frozen=True)
    assert adapters["mfu"] == pytest.approx(report["mfu"] * 2 / 3)  # no gradients of frozen weights


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_peaks_belong_to_the_device(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert training_speed._peak_flops(torch.device("cuda")) == tflops * 1e12
    assert training_speed._peak_flops(CPU) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another 9000")
    assert training_speed._peak_flops(torch.device("cuda")) is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' own figure")
def test_peak_memory_grows_with_what_was_in_use():
    meter = SpeedMeter(CPU)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    before = meter.peak_gigabytes()
    assert before > 0.99 * resident / 1e9
    held = np.ones(int(before * 1e9 - resident) + 3 * 10**8, dtype=np.uint8)  # 0.3 GB more than ever before
    assert meter.peak_gigabytes() == pytest.approx(before + 0.3, abs=0.1)
    del held


@pytest.mark.parametrize(
    ("backbone", "config", "tflops"),
    [(SD15, SD15_UNET, {64: 0.803}), (SDXL, SDXL_UNET, {128: 6.761, 64: 1.589})],
    ids=["sd15", "sdxl"],
)
def test_flops_of_the_full_size_models(backbone, config, tflops):
    """Figures of an independent count; nothing is allocated, whatever the size."""
    conditioning = {"encoder_hidden_states": torch.empty(1, 77, config["cross_attention_dim"])}
    if backbone.sizes_and_pooled:
        conditioning |= {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    for side, tflop in tflops.items():
        found = forward_flops(backbone, unet, torch.empty(1, 4, side, side), conditioning)
        assert found / 1e12 == pytest.approx(tflop, abs=6e-4)


def test_a_run_reports_and_records(train, caplog):
    caplog.set_level("INFO", logger="diffusers_craft")
    flags = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=3"]
    speed = run_json(train("sdxl", "out", *flags))["speed"]
    assert speed["images_per_second"] > 0 and speed["mfu"] is None
    assert speed["device_hours"] == pytest.approx(3 * 4 / speed["images_per_second"] / 3600)
    for line in ("Memory = ", "Speed = ", "Cost = ", "(the paper's 200 steps: 4.0 on H100)"):
        assert line in caplog.text


def test_a_resumed_run_reports_all_of_its_cost(train, tmp_path):
    flags = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--checkpointing_steps=2"]
    folder = train("sd15", "out", *flags, "--max_train_steps=4")
    cost = json.loads((folder / "checkpoint-4" / "training_state.json").read_text())["cost"]
    assert cost["device_seconds"] == pytest.approx(4 * cost["seconds_a_step"])
    again = ["--resume_from_checkpoint=latest"]
    same = run_json(train("sd15", "out", *flags, *again, "--max_train_steps=4"))["speed"]  # no step is left to do
    assert same["images_per_second"] == pytest.approx(4 / cost["seconds_a_step"])
    assert same["device_hours"] == pytest.approx(cost["device_seconds"] / 3600)
    longer = run_json(train("sd15", "out", *flags, *again, "--max_train_steps=6"))["speed"]
    added = 2 * 4 / longer["images_per_second"] / 3600
    assert longer["device_hours"] == pytest.approx(same["device_hours"] + added)


def test_the_device_is_waited_for_at_the_first_step_in_pauses_and_at_the_end_only(train, monkeypatch):
    """Not once per step: the CPU must run ahead of the GPU."""
    waits, now = [], SpeedMeter._now
    monkeypatch.setattr(SpeedMeter, "_now", lambda meter: waits.append(meter._steps) or now(meter))
    flags = ["--train_batch_size=4", "--gradient_accumulation_steps=1", "--max_train_steps=6"]
    train("sd15", "out", *flags, "--checkpointing_steps=4")
    assert waits == [0, 1, 4, 4, 4, 6]  # the pause of the checkpoint, and the cost that it keeps
