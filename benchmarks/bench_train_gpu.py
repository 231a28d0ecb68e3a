# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Training at full size on one GPU: images per second, MFU and peak memory of each configuration, and what memory to expect.

    python benchmarks/bench_train_gpu.py                  # every configuration, a process each; needs a GPU
    python benchmarks/bench_train_gpu.py --only sdxl-lora # those whose name contains it
    python benchmarks/bench_train_gpu.py --count          # memory counted without a GPU in ten minutes: results/memory.md
    python benchmarks/bench_train_gpu.py --smoke          # the same code on a CPU with small UNets; nothing is recorded

UNets have the published architecture (859.5 M and 2567.5 M parameters) and random weights; latents and embeddings are
random, too. The loop is that of the training scripts, run with their flags, and so is the report.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_craft import SD15, SDXL, SFT, TrainingRun, TrainingSettings, craft_loss
from diffusers_craft.scripts import (
    Components,
    NoisePath,
    TrainingData,
    add_fields,
    create_accelerator,
    forward_flops,
    from_args,
    run_script,
    speed_report,
)


RESULTS = Path(__file__).parent / "results"
ROWS = 100  # of the synthetic data: CRAFT's recipe
BACKBONES = {"sd15": SD15, "sdxl": SDXL}
FULL_SIZE: dict[str, dict[str, Any]] = {  # what differs from the defaults of UNet2DConditionModel
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
SMOKE = {"sd15": {"block_out_channels": (32, 32, 64, 64)}}
SMOKE["sdxl"] = {"block_out_channels": (32, 32, 64), "attention_head_dim": 4, "transformer_layers_per_block": 1}


class Configuration(NamedTuple):
    """A row of the benchmark."""

    family: str
    flags: str  # of the training script
    memory_gb: float | None = None  # of the GPU that the process may use


FAST = "--mixed_precision=bf16 --channels_last --train_batch_size="
SMALL = "--mixed_precision=bf16 --channels_last --gradient_checkpointing --train_batch_size="
CONFIGURATIONS = {
    "sd15": Configuration("sd15", f"{FAST}32"),
    "sd15-compiled": Configuration("sd15", f"{FAST}32 --torch_compile"),
    "sd15-checkpointing": Configuration("sd15", f"{SMALL}32"),
    "sd15-24gb": Configuration("sd15", f"{SMALL}8", memory_gb=24),
    "sd15-12gb": Configuration("sd15", f"{SMALL}8 --train_dtype=bf16 --use_8bit_adam", memory_gb=12),
    "sd15-lora-12gb": Configuration("sd15", f"{FAST}4 --use_lora", memory_gb=12),
    "sdxl": Configuration("sdxl", f"{FAST}4"),
    "sdxl-compiled": Configuration("sdxl", f"{FAST}4 --torch_compile"),
    "sdxl-checkpointing": Configuration("sdxl", f"{SMALL}8"),
    "sdxl-24gb": Configuration("sdxl", f"{SMALL}2 --train_dtype=bf16 --use_8bit_adam", memory_gb=24),
    "sdxl-24gb-adafactor": Configuration("sdxl", f"{SMALL}2 --train_dtype=bf16 --use_adafactor", memory_gb=24),
    "sdxl-lora": Configuration("sdxl", f"{SMALL}8 --use_lora"),
    "sdxl-lora-12gb": Configuration("sdxl", f"{SMALL}4 --use_lora", memory_gb=12),
}


def build_unet(family: str, **overrides: Any) -> UNet2DConditionModel:
    """A UNet of the published architecture with random weights, on torch's default device."""
    return UNet2DConditionModel(**{**FULL_SIZE[family], **overrides})


def unet_inputs(family: str, unet: UNet2DConditionModel, rows: int, resolution: int) -> dict[str, Any]:
    """Random conditioning (rows, ...) by name, `prompts` and `sizes` apart, and the shape of a latent."""
    config, side = unet.config, resolution // 8
    prompts = {"encoder_hidden_states": torch.randn(rows, 77, config.cross_attention_dim)}
    if BACKBONES[family].sizes_and_pooled:
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        prompts["text_embeds"] = torch.randn(rows, width)
    square = torch.full((rows, 2), resolution)
    sizes = BACKBONES[family].size_conditioning(square, torch.zeros(rows, 2), square)
    return {"prompts": prompts, "sizes": sizes, "shape": (config.in_channels, side, side)}


def parse_flags(configuration: Configuration, output_dir: str, *more: str) -> TrainingSettings:
    """The training script's settings for a configuration."""
    parser = argparse.ArgumentParser()
    add_fields(parser, TrainingSettings)
    fixed = [f"--backbone={configuration.family}", f"--resolution={BACKBONES[configuration.family].resolution}"]
    fixed += ["--pretrained_model_name_or_path=random", "--dataset_name=random", f"--output_dir={output_dir}"]
    fixed += ["--gradient_accumulation_steps=2", "--report_to=none"]
    return from_args(TrainingSettings, parser.parse_args([*fixed, *configuration.flags.split(), *more]))


def measure(configuration: Configuration, rounds: int, smoke: bool) -> dict[str, Any]:
    """Optimizer steps of a training run on random data, the first two of them not counted."""
    family, backbone = configuration.family, BACKBONES[configuration.family]
    overrides = SMOKE[family] if smoke else {}
    with tempfile.TemporaryDirectory() as folder:
        more = [f"--max_train_steps={rounds + 2}", *(["--resolution=64", "--train_batch_size=2"] if smoke else [])]
        args = parse_flags(configuration, folder, *more)
        accelerator = create_accelerator(args)
        if configuration.memory_gb is not None and not smoke:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, configuration.memory_gb * 1e9 / total))
        with accelerator.device:  # initialised where it trains: seconds instead of a minute
            unet = build_unet(family, **overrides)
        path = NoisePath.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear"))
        components = Components(unet, path, vae=None, pipeline=None)
        inputs = unet_inputs(family, unet, ROWS, args.resolution)
        latents = torch.randn(1, ROWS, *inputs["shape"])
        rows, ones = torch.arange(ROWS - 1).repeat(2)[:ROWS], torch.ones(ROWS)  # the last prompt is the empty one
        data = TrainingData(latents, torch.ones_like(latents), inputs["prompts"], rows, inputs["sizes"], ones)
        run = TrainingRun(args, accelerator, backbone, components, data, SFT())
        seconds = [step_seconds(run, backbone, step) for step in run.steps()][2:]
        run.progress.close()
    conditioning = {name: value[:1] for name, value in (inputs["prompts"] | inputs["sizes"]).items()}
    with run.meter.pause():
        flops = forward_flops(backbone, unet, latents[0, :1], conditioning)
    images = args.train_batch_size * args.gradient_accumulation_steps
    report = speed_report(run.meter, images, flops, accelerator.mixed_precision, frozen=args.use_lora)
    report["device_hours"] = backbone.max_train_steps * images / report["images_per_second"] / 3600  # of the recipe
    return report | {"seconds_per_step": statistics.median(seconds), "spread": [min(seconds), max(seconds)]}


def step_seconds(run: TrainingRun, backbone: Any, step: int) -> float:
    """One optimizer step of the scripts' loop, the device idle before and after it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in run.micro_batches(step):
        prediction = backbone.predict(run.denoiser, batch.noisy_latents, batch.timesteps, batch.conditioning)
        run.backward(craft_loss(prediction, batch.target, batch.weights), prediction, batch)
    run.finish_step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_apart(name: str, rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own, whose memory starts empty; running out of memory is a result."""
    command = [sys.executable, __file__, f"--one={name}", f"--rounds={rounds}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    errors = done.stderr.strip().splitlines()
    return {"error": "out of memory" if "OutOfMemoryError" in done.stderr else errors[-1] if errors else "killed"}


# --- memory, counted -------------------------------------------------------------------------------------------------

CARDS = (12, 16, 24, 48, 80)
BATCHES = (16, 8, 4, 2, 1)  # micro-batches that divide the recipe's 128
RESERVED_GB, FRAGMENTATION = 1.0, 1.1  # the CUDA context, and what the allocator loses
LORA_RANK, LORA_TARGETS = 4, ("to_q", "to_k", "to_v", "to_out.0")


def state_bytes(unet: torch.nn.Module) -> dict[str, int]:
    """What is there whatever the batch: weights, gradients, optimizer and autocast's bf16 copies, by training flags."""
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    return {
        "(none)": (4 + 4 + 8 + 2) * parameters,
        "`--use_8bit_adam`": (4 + 4 + 2 + 2) * parameters,
        "`--train_dtype bf16 --use_8bit_adam`": (2 + 2 + 2) * parameters,
        "`--train_dtype bf16 --use_adafactor`": (2 + 2) * parameters + adafactor_bytes(unet),
        "`--use_lora`": 2 * parameters + (4 + 4 + 8 + 2) * lora_parameters(unet),
    }


def adafactor_bytes(unet: torch.nn.Module) -> int:
    """State of transformers' Adafactor: a row and a column of the last two dimensions, so little saved on 3x3 kernels."""
    return 4 * sum(
        p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.dim() > 1 else p.numel() for p in unet.parameters()
    )


def lora_parameters(unet: torch.nn.Module, rank: int = LORA_RANK) -> int:
    """Parameters of the adapters: rank x (in + out) for each projection of an attention."""
    layers = [module for name, module in unet.named_modules() if name.endswith(LORA_TARGETS)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def activation_gb(family: str, resolution: int) -> float:
    """Peak of what an image adds under gradient checkpointing and bf16 autocast, by torch's tracker on fake tensors."""
    from torch.distributed._tools.mem_tracker import MemTracker

    peaks = []
    for batch_size in (1, 2):  # the difference leaves out what does not depend on the batch
        with FakeTensorMode():
            unet = build_unet(family).train()
            unet.enable_gradient_checkpointing()
            for parameter in unet.parameters():  # as from the second micro-batch on
                parameter.grad = torch.empty_like(parameter)
            inputs = unet_inputs(family, unet, batch_size, resolution)
            conditioning, latents = inputs["prompts"] | inputs["sizes"], torch.randn(batch_size, *inputs["shape"])
            tracker = MemTracker()
            tracker.track_external(unet, latents, *conditioning.values(), *(p.grad for p in unet.parameters()))
            with tracker:
                with torch.autocast("cpu", torch.bfloat16):
                    timesteps = torch.zeros(batch_size, dtype=torch.long)
                    prediction = BACKBONES[family].predict(unet, latents, timesteps, conditioning)
                craft_loss(prediction, latents, torch.ones(batch_size)).backward()
            peaks.append(next(iter(tracker.get_tracker_snapshot("peak").values()))["Total"])
    return (peaks[1] - peaks[0]) / 1e9


def largest_batch(card_gb: float, state_gb: float, image_gb: float) -> int | None:
    """The largest micro-batch that a card should hold."""
    room = (card_gb - RESERVED_GB) / FRAGMENTATION - state_gb
    return next((batch for batch in BATCHES if batch * image_gb <= room), None)


def count_memory() -> str:
    """A Markdown table: memory by UNet and flags, and the largest micro-batch of each card."""
    head = ["UNet", "flags", "state, GB", "an image, GB", *(f"{card} GB" for card in CARDS)]
    rows = [head, ["---"] * len(head)]
    for family, backbone in BACKBONES.items():
        with torch.device("meta"):
            unet = build_unet(family)
        image_gb = activation_gb(family, backbone.resolution)
        for flags, size in state_bytes(unet).items():
            batches = [largest_batch(card, size / 1e9, image_gb) for card in CARDS]
            place = [f"{family}, {backbone.resolution} px", flags, f"{size / 1e9:.1f}", f"{image_gb:.2f}"]
            rows.append([*place, *(str(batch or "-") for batch in batches)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(args: argparse.Namespace) -> None:
    if args.count:
        title = "# Memory of training with bf16 passes and gradient checkpointing: counted, not measured"
        source = "Written by `benchmarks/bench_train_gpu.py --count`. Card columns: the largest micro-batch up to 16."
        (RESULTS / "memory.md").write_text(f"{title}\n\n{source}\n\n{count_memory()}\n", encoding="utf-8")
        print((RESULTS / "memory.md").read_text(encoding="utf-8"))
        return
    if args.smoke:
        for name in ("sd15-checkpointing", "sdxl"):
            print(json.dumps({"configuration": name} | measure(CONFIGURATIONS[name], args.rounds, smoke=True)))
        return
    if not torch.cuda.is_available():
        print("No GPU here: nothing was measured. --smoke runs the same code on a CPU, --count counts the memory.")
        return
    if args.one is not None:
        print(json.dumps(measure(CONFIGURATIONS[args.one], args.rounds, smoke=False)))
        return
    for name, configuration in CONFIGURATIONS.items():
        if args.only in name:
            about = {"date": datetime.date.today().isoformat(), "hardware": torch.cuda.get_device_name()}
            about |= {"torch": torch.__version__, "configuration": name, **configuration._asdict()}
            result = about | measure_apart(name, args.rounds)
            print(json.dumps(result))
            with (RESULTS / "train_gpu.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Part of the names to measure.")
    parser.add_argument("--rounds", type=int, default=8, help="Optimizer steps that count.")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--one", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    return parser.parse_args(input_args)


if __name__ == "__main__":
    run_script(main, parse_args())
