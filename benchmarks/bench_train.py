# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images a second: our training loop against loops of the shape of diffusers' train_text_to_image[_sdxl].py.

    python benchmarks/bench_train.py

Both fine-tune the same embedded model on the same 128 images, 16 a pass and 128 an optimizer step, in turns within one
process. What the stock scripts do, written anew: the SD1.5 one decodes, transforms and encodes images and captions in
every pass; the SDXL one encodes once and reads latents and embeddings back as lists of Python floats. Both wait for the
loss in every pass. The embedded SDXL's samples are small, so how long one of the real size (1024 px: 224,512 floats) takes
to become tensors is measured beside it. Results are appended to benchmarks/results/train.jsonl.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from datasets import Image as ImageFeature
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from PIL import Image
from torchvision import transforms

from diffusers_craft import SD15, SDXL, SFT, TrainingRun, TrainingSettings, craft_loss
from diffusers_craft.scripts import (
    Components,
    ModelSource,
    NoisePath,
    TrainingData,
    create_accelerator,
    prepare_training_data,
)


RESULTS = Path(__file__).parent / "results"
RESOLUTION, ROWS = 64, 128
TOLERANCE = 0.2  # relative, between the mean losses of the two: their noise differs
Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]  # latents, conditioning


def make_dataset() -> Dataset:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (ROWS, 4, 4, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((RESOLUTION, RESOLUTION)) for pixels in coarse]
    colors = ("red", "blue", "green", "yellow")
    captions = [f"a {colors[row % 4]} circle and a {colors[row // 4 % 4]} square" for row in range(ROWS)]
    return Dataset.from_dict({"image": images, "prompt": captions}).cast_column("image", ImageFeature())


def encoding_batches(dataset: Dataset, components: Components, batch_size: int) -> Iterator[Batch]:
    """As train_text_to_image.py: pixels and tokens come from the loader, the encoders run in every pass."""
    steps = [transforms.Resize(RESOLUTION), transforms.CenterCrop(RESOLUTION), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize([0.5], [0.5])])
    tokenizer = components.pipeline.tokenizer

    def preprocess(rows: dict[str, list]) -> dict[str, list]:
        length = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
        tokens = tokenizer(rows["prompt"], **length, return_tensors="pt").input_ids
        return {"pixels": [transform(image.convert("RGB")) for image in rows["image"]], "tokens": list(tokens)}

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    loader = torch.utils.data.DataLoader(
        dataset.with_transform(preprocess), batch_size=batch_size, shuffle=True, collate_fn=collate
    )
    vae, text_encoder = components.vae, components.pipeline.text_encoder
    while True:
        for batch in loader:
            with torch.no_grad():
                latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
                hidden = text_encoder(batch["tokens"], return_dict=False)[0]
            yield latents, {"encoder_hidden_states": hidden}


def list_batches(dataset: Dataset, components: Components, batch_size: int) -> Iterator[Batch]:
    """As train_text_to_image_sdxl.py: encoded once into an Arrow table, whose lists become tensors in every pass."""
    vae = components.vae

    def encode(rows: dict[str, list]) -> dict[str, np.ndarray]:
        pixels = torch.stack([transforms.functional.to_tensor(image) * 2 - 1 for image in rows["image"]])
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        conditioning = SDXL.encode_prompts(components, rows["prompt"])
        return {name: value.numpy() for name, value in {"latents": latents, **conditioning}.items()}

    encoded = dataset.map(encode, batched=True, batch_size=batch_size, remove_columns=dataset.column_names)

    def collate(rows: list[dict[str, list]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([torch.tensor(row[name]) for row in rows]) for name in rows[0]}

    loader = torch.utils.data.DataLoader(encoded, batch_size=batch_size, shuffle=True, collate_fn=collate)
    while True:
        for batch in loader:
            latents, count = batch.pop("latents"), len(batch["text_embeds"])
            sizes = torch.tensor([[RESOLUTION, RESOLUTION]] * count)
            yield latents, batch | SDXL.size_conditioning(sizes, torch.zeros(count, 2), sizes)


SHAPES = {"tiny-sd15": (SD15, encoding_batches), "tiny-sdxl": (SDXL, list_batches)}


def stock_steps(model: str, dataset: Dataset, accelerator: Accelerator, args: TrainingSettings) -> Iterator[float]:
    """The stock loop; yields the mean loss of every optimizer step."""
    backbone, batches = SHAPES[model]
    components = backbone.load(ModelSource(model))
    unet = components.denoiser.train()
    scheduler = DDPMScheduler.from_config(backbone.pipeline(ModelSource(model)).scheduler.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    lr_scheduler, train_loss = get_scheduler("constant", optimizer), 0.0
    for latents, conditioning in batches(dataset, components, args.train_batch_size):
        with accelerator.accumulate(unet):
            noise = torch.randn_like(latents)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),)).long()
            noisy_latents = scheduler.add_noise(latents, noise, timesteps)
            prediction = backbone.predict(unet, noisy_latents, timesteps, conditioning)
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            average = accelerator.gather(loss.repeat(args.train_batch_size)).mean()
            train_loss += average.item() / args.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            accelerator.log({"train_loss": train_loss})
            yield train_loss
            train_loss = 0.0


def our_steps(model: str, dataset: Dataset, accelerator: Accelerator, args: TrainingSettings) -> Iterator[float]:
    """The loop of our scripts; yields the latest loss that it has read, if any."""
    backbone, objective = SHAPES[model][0], SFT()
    components = backbone.load(ModelSource(model))
    data = prepare_training_data(dataset, backbone, components, args, objective)
    run = TrainingRun(args, accelerator, backbone, components, data, objective)
    for step in run.steps():
        for batch in run.micro_batches(step):
            prediction = backbone.predict(run.denoiser, batch.noisy_latents, batch.timesteps, batch.conditioning)
            loss = craft_loss(prediction, batch.target, batch.weights, batch.timestep_weights)
            run.backward(loss, prediction, batch)
        run.finish_step()
        yield run.log.history[-1]["train_loss"] if run.log.history else float("nan")


def timed(steps: Iterator[float]) -> tuple[float, float]:
    start = time.perf_counter()
    loss = next(steps)
    return time.perf_counter() - start, loss


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Both loops in turns; the ratio is the median of each round's own."""
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingSettings(
            pretrained_model_name_or_path=model,
            backbone=model.removeprefix("tiny-"),
            dataset_name="x",
            resolution=RESOLUTION,
            output_dir=f"{folder}/out",
            cache_dir=folder,
            report_to="none",
            max_train_steps=rounds + 1,
        )
        accelerator, dataset = create_accelerator(args), make_dataset()
        loops = [loop(model, dataset, accelerator, args) for loop in (our_steps, stock_steps)]
        turns = [[timed(loop) for loop in loops] for _ in range(rounds + 1)][1:]  # the first one warms up
    ours, stock = (np.array(column) for column in zip(*turns))  # (rounds, 2): seconds, loss
    losses = ours[:, 1].mean(), stock[:, 1].mean()
    if abs(losses[0] / losses[1] - 1) > TOLERANCE:
        raise SystemExit(f"{model}: losses of {losses[0]:.3g} and {losses[1]:.3g}: not the same training")
    ratios, images = stock[:, 0] / ours[:, 0], args.train_batch_size * args.gradient_accumulation_steps
    return {
        "model": model,
        "images_a_pass": args.train_batch_size,
        "ours_images_per_second": round(images / statistics.median(ours[:, 0]), 1),
        "stock_images_per_second": round(images / statistics.median(stock[:, 0]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_10_90": [round(float(q), 3) for q in np.quantile(ratios, [0.1, 0.9])],
        "mean_losses": [round(float(loss), 4) for loss in losses],
    }


def milliseconds_a_sample(rows: int = 8) -> dict[str, float]:
    """How long one row of real SDXL size takes until it is tensors, noise included: the stock loader, and ours."""
    shapes = {"latents": (4, 128, 128), "encoder_hidden_states": (77, 2048), "text_embeds": (1280,)}
    tensors = {name: torch.randn(rows + 1, *shape) for name, shape in shapes.items()}
    table = Dataset.from_dict({name: value.numpy() for name, value in tensors.items()})
    latents, ones = tensors.pop("latents")[None, :rows], torch.ones(rows)
    sizes = SDXL.size_conditioning(torch.ones(rows, 2), torch.ones(rows, 2), torch.ones(rows, 2))
    data = TrainingData(latents, torch.ones_like(latents), tensors, torch.arange(rows), sizes, ones)
    path = NoisePath.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear"))

    def stock(row: int) -> None:
        sample = {name: torch.tensor(value) for name, value in table[row].items()}
        torch.randn_like(sample["latents"])

    def ours(row: int) -> None:
        data.draw(0, [row], torch.tensor([row]), seed=0, path=path, caption_dropout=0.0)

    result = {}
    for name, read in (("stock", stock), ("ours", ours)):
        read(0)
        start = time.perf_counter()
        for row in range(rows):
            read(row)
        result[f"{name}_ms_to_read_a_1024px_sample"] = round(1000 * (time.perf_counter() - start) / rows, 2)
    return result


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{name}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="Optimizer steps of each loop.")
    args = parser.parse_args()
    about = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "rounds": args.rounds}
    for model, (backbone, _) in SHAPES.items():
        result = about | measure(model, args.rounds) | {"hardware": hardware()}
        result |= milliseconds_a_sample() if backbone is SDXL else {}
        with (RESULTS / "train.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
