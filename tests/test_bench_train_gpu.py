# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The benchmark of full-size training, as far as a CPU can tell."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers.optimization import Adafactor


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_train_gpu.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("bench_train_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_sizes(benchmark):
    with torch.device("meta"):
        unets = {family: benchmark.build_unet(family) for family in ("sd15", "sdxl")}
    assert {family: unet.num_parameters() for family, unet in unets.items()} == {
        "sd15": 859_520_964,
        "sdxl": 2_567_463_684,
    }
    for family, tflop in (("sd15", 0.8033), ("sdxl", 6.7612)):  # of a forward pass at the recipe's resolution
        backbone, unet = benchmark.BACKBONES[family], unets[family]
        inputs = benchmark.unet_inputs(family, unet, 1, backbone.resolution)
        conditioning = inputs["prompts"] | inputs["sizes"]
        flops = benchmark.forward_flops(backbone, unet, torch.empty(1, *inputs["shape"]), conditioning)
        assert flops / 1e12 == pytest.approx(tflop, abs=1e-4)


def test_adapters_are_counted_as_peft_makes_them(benchmark):
    lora = pytest.importorskip("peft").LoraConfig(r=4, target_modules=list(benchmark.LORA_TARGETS))
    unet = benchmark.build_unet("sdxl", **benchmark.SMOKE["sdxl"])
    expected = benchmark.lora_parameters(unet, rank=4)
    unet.requires_grad_(False).add_adapter(lora)
    assert expected == sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad) > 0


def test_adafactor_is_counted_as_transformers_makes_it(benchmark):
    unet = benchmark.build_unet("sd15", **benchmark.SMOKE["sd15"])
    optimizer = Adafactor(unet.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [value for each in optimizer.state.values() for value in each.values() if torch.is_tensor(value)]
    assert sum(value.nbytes for value in state if value.dim()) == benchmark.adafactor_bytes(unet)


def test_batches_that_fit(benchmark):
    unet = torch.nn.Linear(10, 10, bias=False)
    assert benchmark.state_bytes(unet)["(none)"] == 1800
    assert benchmark.largest_batch(12, state_gb=9.0, image_gb=0.5) == 2  # 11 / 1.1 = 10: one left
    assert benchmark.largest_batch(12, state_gb=10.1, image_gb=0.5) is None
    assert benchmark.largest_batch(80, state_gb=10.0, image_gb=0.1) == 16


def test_every_configuration_has_flags_that_the_scripts_know(benchmark, tmp_path):
    for configuration in benchmark.CONFIGURATIONS.values():
        args = benchmark.parse_flags(configuration, str(tmp_path))
        assert args.mixed_precision == "bf16" and args.resolution == {"sd15": 512, "sdxl": 1024}[configuration.family]


def test_smoke_runs_the_measurement_of_both_families(benchmark, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    benchmark.main(benchmark.parse_args(["--smoke", "--rounds=1"]))
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["configuration"] for result in results] == ["sd15-checkpointing", "sdxl"]
    for result in results:
        assert result["images_per_second"] > 0 and 0 < result["forward_tflop"] < 0.01 and result["mfu"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_it_says_so_in_one_line(benchmark, capsys):
    benchmark.main(benchmark.parse_args([]))
    assert re.fullmatch(r"No GPU here: nothing was measured\. .*\n", capsys.readouterr().out)
