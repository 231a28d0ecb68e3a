# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""UNets, text encoders and VAEs of the published size, with random weights, through the real scripts on a CPU.

Ten minutes and up to 20 GB each; `OMP_NUM_THREADS` sets the threads. What was measured is printed (`pytest -s`).
"""

import gc
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from reference_training import error, first_step
from safetensors import safe_open

from diffusers_craft.models.loading import dtype_argument


ROOT = Path(__file__).parents[1]
PROMPTS = ["a red circle on a table", "two green stars above the sea"]
ADVANTAGES = [1.25, -0.5]
NEEDED_GB, LIMIT_GB = 19, 23

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark():
    """The module that holds the published architectures."""
    spec = importlib.util.spec_from_file_location("bench_train_gpu", ROOT / "benchmarks" / "bench_train_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Removed at the end: pytest would keep tens of gigabytes."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024 / 1e9
    if available < NEEDED_GB:
        pytest.skip(f"needs {NEEDED_GB} GB of free memory, found {available:.0f}")
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    yield tmp_path
    torch.set_num_threads(threads)
    shutil.rmtree(tmp_path)


@pytest.fixture
def save_pipeline(benchmark, make_tokenizer, tmp_path):
    """`save_pipeline(family, dtype)`: a folder with all parts in `dtype`, one in memory at a time."""

    def save(family: str, dtype: torch.dtype) -> Path:
        target = tmp_path / "model"
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            benchmark.build_unet(family).save_pretrained(target / "unet")
            _vae(0.18215 if family == "sd15" else 0.13025).save_pretrained(target / "vae")
            parts = {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}
            for name, (kind, encoder) in _text_encoders(family).items():
                encoder.save_pretrained(target / name)
                parts[name] = ("transformers", kind)
                tokenizer = name.replace("text_encoder", "tokenizer")
                pad = "<|endoftext|>" if name == "text_encoder" else "!"
                (tmp_path / tokenizer).mkdir()
                made = make_tokenizer(tmp_path / tokenizer, pad, 77)
                made.save_pretrained(target / tokenizer)
                parts[tokenizer] = ("transformers", type(made).__name__)
        finally:
            torch.set_default_dtype(torch.float32)
        schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
        DDIMScheduler(**schedule, steps_offset=1).save_pretrained(target / "scheduler")
        parts["scheduler"] = ("diffusers", "DDIMScheduler")
        (target / "model_index.json").write_text(
            json.dumps({"_class_name": benchmark.BACKBONES[family].pipeline_class, **parts})
        )
        gc.collect()
        return target

    return save


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
        scaling_factor=scaling_factor,
    )


def _text_encoders(family: str) -> dict[str, tuple[str, torch.nn.Module]]:
    """CLIP ViT-L's text encoder and, for SDXL, OpenCLIP ViT-bigG's."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(width: int, layers: int, heads: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=activation,
            bos_token_id=512,  # of `make_tokenizer`
            eos_token_id=513,
        )

    encoders = {"text_encoder": ("CLIPTextModel", CLIPTextModel(config(768, 12, 12, "quick_gelu")))}
    if family == "sdxl":
        second = CLIPTextModelWithProjection(config(1280, 32, 20, "gelu"))
        encoders["text_encoder_2"] = ("CLIPTextModelWithProjection", second)
    return encoders


def _train(family: str, model: Path, images: list, *flags: str) -> tuple[Path, list[float]]:
    """Two steps with both rows in each, through the script; prints what they took."""
    data, output = model.parent / "data", model.parent / "out"
    (data / "dataset").mkdir(parents=True)
    columns = {"image": images, "prompt": PROMPTS, "advantage": ADVANTAGES}
    Dataset.from_dict(columns).to_parquet(data / "dataset" / "train-0.parquet")
    script = ROOT / "examples" / "craft" / f"train_craft_{family}.py"
    command = [sys.executable, str(script), f"--pretrained_model_name_or_path={model}", f"--dataset_name={data}"]
    command += [f"--output_dir={output}", "--resolution=512", "--train_batch_size=2", "--max_train_steps=2"]
    command += ["--gradient_accumulation_steps=1", "--gradient_checkpointing", "--report_to=none", *flags]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    run = json.loads((output / "craft_run.json").read_text())
    losses = [entry["train_loss"] for entry in run["loss_history"]]
    print(f"\n{family}: {seconds:.0f} s for the script, {peak:.1f} GB at its peak, losses {losses}, {run['speed']}")
    assert peak < LIMIT_GB and len(losses) == 2
    return output, losses


def _reference_loss(model: Path, images: list, dtype: torch.dtype) -> float:
    """Step 1's loss, a row at a time."""
    examples = list(first_step(model, images, PROMPTS))
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", **dtype_argument(dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return sum(ADVANTAGES[example.row] * error(unet, example).item() for example in examples) / len(examples)


def _draw(pipeline: DiffusionPipeline) -> np.ndarray:
    """(512, 512, 3) of two steps, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    size = {"height": 512, "width": 512}
    return pipeline(PROMPTS[0], num_inference_steps=2, generator=generator, output_type="np", **size).images[0]


def _first_weights(folder: Path) -> torch.Tensor:
    (path,) = (folder / "unet").glob("*.safetensors")
    with safe_open(path, "pt") as file:
        return file.get_tensor("conv_in.weight")


def test_sd15_in_full(folder, save_pipeline, make_images):
    images = make_images(2, size=512)
    model = save_pipeline("sd15", torch.float32)
    output, losses = _train("sd15", model, images)
    assert losses[0] == pytest.approx(_reference_loss(model, images, torch.float32), rel=1e-4)
    assert losses[1] != losses[0]
    gc.collect()
    change = (_first_weights(output) - _first_weights(model)).abs().max().item()
    assert 0 < change < 2 * 2 * 5e-5  # two steps of Adam at 5e-5
    image = _draw(DiffusionPipeline.from_pretrained(output))
    assert image.shape == (512, 512, 3) and np.isfinite(image).all() and image.std() > 0


def test_sdxl_with_lora_in_bfloat16(folder, save_pipeline, make_images):
    pytest.importorskip("peft")
    images = make_images(2, size=512)
    model = save_pipeline("sdxl", torch.bfloat16)
    output, losses = _train("sdxl", model, images, "--use_lora", "--mixed_precision=bf16", "--learning_rate=1e-2")
    assert losses[0] == pytest.approx(_reference_loss(model, images, torch.bfloat16), rel=5e-3)
    gc.collect()
    assert [path.name for path in output.glob("*.safetensors")] == ["pytorch_lora_weights.safetensors"]
    pipeline = DiffusionPipeline.from_pretrained(model, **dtype_argument(torch.bfloat16))
    base = _draw(pipeline)
    pipeline.load_lora_weights(output)
    tuned = _draw(pipeline)
    assert tuned.shape == (512, 512, 3) and np.isfinite(tuned).all()
    assert np.abs(tuned - base).max() > 0
