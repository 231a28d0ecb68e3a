# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: random-weight Stable Diffusion pipelines of a few ten thousand parameters, and small images.

Everything runs offline, on a CPU, on one thread.
"""

import copy
import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


# Keeps the user's caches out of the tests, and the tests out of the user's caches; removed when the process ends.
_HF_HOME = tempfile.TemporaryDirectory(prefix="diffusers_craft_tests_")
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from chat_server import ChatServer
from hub_driver import HubDriver
from hub_server import HubServer
from PIL import Image
from training_driver import FIXED, load_script


torch.set_num_threads(1)

MAX_TOKENS = 16
TEXT_WIDTH = 16
SECOND_TEXT_WIDTH = 24  # of SDXL's other text encoder
RESOLUTION = 64


@pytest.fixture(scope="session")
def random_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random-weight `StableDiffusionPipeline`: 64 px images, 8x8 latents, 16 tokens."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=_random_vae(),
        text_encoder=_random_text_encoder(with_projection=False),
        tokenizer=_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        unet=_random_unet(cross_attention_dim=TEXT_WIDTH),
        scheduler=DDIMScheduler(**_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("models") / "random-sd15"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random-weight `StableDiffusionXLPipeline`: 64 px images, 8x8 latents, 16 tokens."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    time_width = 8
    pipeline = StableDiffusionXLPipeline(
        vae=_random_vae(),
        text_encoder=_random_text_encoder(with_projection=False),
        text_encoder_2=_random_text_encoder(with_projection=True),
        tokenizer=_tokenizer(tmp_path_factory.mktemp("tokenizer")),
        tokenizer_2=_tokenizer(tmp_path_factory.mktemp("tokenizer_2"), pad_token="!"),
        unet=_random_unet(
            cross_attention_dim=TEXT_WIDTH + SECOND_TEXT_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + SECOND_TEXT_WIDTH,
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(**{k: v for k, v in _SCHEDULE.items() if k != "clip_sample"}),
    )
    folder = tmp_path_factory.mktemp("models") / "random-sdxl"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def uneven_sd15(random_sd15, tmp_path_factory) -> Path:
    """`random_sd15` with norms as training leaves them: weights that are not 1, and no bfloat16 numbers either."""
    return _with_uneven_norms(random_sd15, tmp_path_factory.mktemp("models") / "uneven-sd15")


@pytest.fixture(scope="session")
def uneven_sdxl(random_sdxl, tmp_path_factory) -> Path:
    """`random_sdxl` with norms as training leaves them."""
    return _with_uneven_norms(random_sdxl, tmp_path_factory.mktemp("models") / "uneven-sdxl")


@pytest.fixture(scope="session")
def make_images() -> Callable[..., list[Image.Image]]:
    """`make_images(n, size=64, seed=0)`: n smooth, colourful and distinct RGB images."""
    return _make_images


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable:
    """`make_tokenizer(folder, pad_token, max_length)`: a CLIP tokenizer for which every letter is a token."""
    return _tokenizer


@pytest.fixture
def tiny_images() -> list[Image.Image]:
    """Eight distinct 64 px RGB images."""
    return _make_images(8)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory, make_images) -> Path:
    """Ten rows with advantages of both signs."""
    folder = tmp_path_factory.mktemp("data")
    columns = {"image": make_images(10), "prompt": [f"thing {row % 7}" for row in range(10)]}
    columns |= {"reward": [0.1 * row for row in range(10)], "advantage": [(row - 3) / 4 for row in range(10)]}
    (folder / "dataset").mkdir()
    _to_parquet(columns, folder / "dataset" / "train-0.parquet")
    return folder


@pytest.fixture(scope="session")
def preference_build(tmp_path_factory, make_images) -> Path:
    """A finished build of four prompts with three images each and one reward; the last prompt's images score alike."""
    import pyarrow as pa

    from diffusers_craft import normalization_constants
    from diffusers_craft.models.generation import encode_png
    from diffusers_craft.scripts import WorkDir, atomic_write_json

    folder = tmp_path_factory.mktemp("build")
    pictures = [{"bytes": encode_png(image), "path": None} for image in make_images(12)]
    rows = [(group, variant) for group in range(4) for variant in range(3)]
    scores = np.array([3.0 if group == 3 else group + variant for group, variant in rows], np.float32)
    columns = {"row": list(range(12)), "group": [g for g, _ in rows], "variant": [v for _, v in rows]}
    columns |= {"prompt": [f"thing {g}" for g, _ in rows], "image": pictures}
    work = WorkDir(folder)
    candidates, scored = work.stage("candidates", {}, 12, 5), work.stage("scores/brightness", {}, 12, 5)
    for shard in range(candidates.num_shards):
        place = candidates.rows(shard)
        candidates.write(shard, pa.table(columns).slice(place.start, len(place)))
        scored.write(shard, pa.table({"row": list(place), "score": scores[place.start : place.stop]}))
    atomic_write_json(folder / "normalization.json", normalization_constants({"brightness": scores}))
    atomic_write_json(folder / "craft_build.json", {"composite_weights": {"brightness": 1.0}})
    dataset = {"image": make_images(4), "prompt": [f"thing {i}" for i in range(4)], "advantage": [1.0] * 4}
    (folder / "dataset").mkdir()
    _to_parquet(dataset, folder / "dataset" / "train-0.parquet")
    return folder


@pytest.fixture
def arguments(dataset_folder, random_sd15, random_sdxl, tmp_path):
    """`arguments("sd15", "name", ...)`: a command line that trains into `tmp_path / name`."""
    models = {"sd15": random_sd15, "sdxl": random_sdxl}

    def make(family: str, output: str, *flags: str) -> list[str]:
        where = [f"--pretrained_model_name_or_path={models[family]}", f"--output_dir={tmp_path / output}"]
        return [*where, f"--dataset_name={dataset_folder}", *FIXED, *flags]

    return make


@pytest.fixture
def train(arguments, tmp_path):
    """`train("sd15", "name", ...)`: trains in this process, returns the output folder."""

    def run(family: str, output: str, *flags: str) -> Path:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        script = load_script(family)
        script.main(script.parse_args(arguments(family, output, *flags)))
        return tmp_path / output

    return run


@pytest.fixture
def kept(monkeypatch) -> dict:
    """The last run before it ends, and copies of its micro-batches: one list per step."""
    from diffusers_craft import TrainingRun

    found, micro_batches, finish = {"batches": []}, TrainingRun.micro_batches, TrainingRun.finish

    def watched(run, step):
        if step == 0:
            found["batches"] = []
        found["batches"].append([])
        for batch in micro_batches(run, step):
            found["batches"][-1].append(copy.deepcopy(batch))
            yield batch

    monkeypatch.setattr(TrainingRun, "micro_batches", watched)
    monkeypatch.setattr(TrainingRun, "finish", lambda run: (found.update(run=run), finish(run)))
    return found


_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def _to_parquet(columns: dict, path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as ImageFeature

    Dataset.from_dict(columns).cast_column("image", ImageFeature()).to_parquet(path)


def _make_images(n: int, size: int = RESOLUTION, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(n, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR) for pixels in coarse]


def _random_unet(**overrides: object):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **overrides,
    )


def _with_uneven_norms(source: Path, folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path, generator = folder / "unet" / "diffusion_pytorch_model.safetensors", torch.Generator().manual_seed(0)
    values = load_file(path)
    for name, value in values.items():
        if "norm" in name:
            value += 0.3 * torch.randn(value.shape, generator=generator)
    save_file(values, path, metadata={"format": "pt"})
    return folder


def _random_vae():
    from diffusers import AutoencoderKL

    channels = (4, 4, 8, 8)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=RESOLUTION,
        scaling_factor=0.18215,
    )


def _random_text_encoder(with_projection: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary, width = _vocabulary(), SECOND_TEXT_WIDTH if with_projection else TEXT_WIDTH
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu" if with_projection else "quick_gelu",
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config).eval()


def _vocabulary() -> dict[str, int]:
    """CLIP's byte alphabet without merges: every letter is a token."""
    characters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    characters += [chr(256 + i) for i in range(256 - len(characters))]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def _tokenizer(folder: Path, pad_token: str = "<|endoftext|>", max_length: int = MAX_TOKENS):
    from transformers import CLIPTokenizer

    (folder / "vocab.json").write_text(json.dumps(_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=max_length, pad_token=pad_token)


def pytest_collection_finish() -> None:
    """What the libraries made while they were imported stays: no collection of garbage has to go over it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_rewards():
    """Rewards that a test registers are gone after it."""
    from diffusers_craft.rewards import settings

    before = dict(settings._FACTORIES)
    yield
    settings._FACTORIES.clear()
    settings._FACTORIES.update(before)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    """`serve(reply, port)` starts a `ChatServer`; clients wait next to nothing between tries."""
    from diffusers_craft.core import chat

    monkeypatch.setattr(chat, "RETRY_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers = []

    def start(reply, port: int = 0) -> ChatServer:
        servers.append(ChatServer(reply, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def hub():
    """A Hub of this machine, empty for every file of tests."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def driver(hub, tmp_path_factory):
    """A process that speaks to `hub` and has loaded the package."""
    with HubDriver(hub, tmp_path_factory.mktemp("home")) as running:
        yield running
