# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishes a finished training run: the whole pipeline, its denoiser alone, or LoRA weights; with pictures and a card."""

import io
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from tqdm.auto import tqdm

from ..core.files import atomic_write_json, fingerprint, read_json
from ..core.records import derive_seed
from ..core.run_record import read_run_json, recorded_option
from ..core.workdir import RUN_FILE
from ..errors import UserError
from ..figures.grid import image_grid
from ..models.loading import LORA_FILE, TUNED_FILES, denoiser_folder, denoiser_name, load_vae
from ..models.tuned import load_tuned_pipeline
from ..tiny import is_tiny
from .card import License, without_paths
from .model_card import Published, model_card, read_results
from .upload import RETRY, Files, HubRepo, as_hub_id, hub_license, published_id


logger = logging.getLogger(__name__)

NUM_SAMPLES = 4
NUM_INFERENCE_STEPS = 25
LAST_CHECKPOINT = "last-checkpoint"  # folder in the repository while a run goes on
_REPLACED = ("images/*", f"{LAST_CHECKPOINT}/*", "*diffusion_pytorch_model*", "*/model*.safetensors*")
_REPLACED += tuple(TUNED_FILES.values())  # of another kind of model
_NAMES_OF_ORIGIN = ("_name_or_path", "name_or_path")  # where diffusers and transformers note a local path


def publish_model(
    folder: str | Path,
    repo_id: str,
    unet_only: bool = False,
    evaluation: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    retry: str = RETRY,
) -> str:
    """Publishes what a training script left in its `--output_dir`; nothing is trained again.

    Args:
        folder (`str` or `Path`): the run's `--output_dir`: a pipeline, or LoRA weights.
        repo_id (`str`): e.g. `"org/craft-sd15"`.
        unet_only (`bool`, *optional*, defaults to `False`): leave out all of the pipeline but its UNet or transformer.
        evaluation (`str` or `Path`, *optional*): `--output_dir` of `evaluate_craft.py`, for results on the card.
        base_model (`str`, *optional*): Hub id of the base model; by default the one that was trained on, if it has one.
        license (`str`, *optional*): by default the one that the base model states.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): defaults to `HF_TOKEN` or the login.
        revision (`str`, *optional*): branch to push to.
        retry (`str`, *optional*): what the user shall do after a failed upload.

    Returns:
        `str`: address of the commit.

    Raises:
        UserError: if the run is not finished, was not evaluated in `evaluation`, or the upload fails.
    """
    folder = Path(folder)
    record = _finished_run(folder)
    options, paths = record["options"], record.get("paths")
    if options.get("use_lora") and unet_only:
        raise UserError("--push_unet_only: expected a run that trained the UNet, found one with --use_lora")
    kind = "lora" if options.get("use_lora") else "unet" if unet_only else "pipeline"
    if base_model is not None and as_hub_id(base_model) is None:
        raise UserError(f"--base_model: expected a Hub id ORG/NAME, found {base_model!r}")
    base, data = (recorded_option(record, name) for name in ("pretrained_model_name_or_path", "dataset_name"))
    base_id = base_model or as_hub_id(base, paths) or published_id(base)
    results = None if evaluation is None else read_results(evaluation, folder, repo_id)
    named_ids = {value for value in options.values() if isinstance(value, str) and as_hub_id(value, paths)}
    files = model_files(folder, kind, base_id, None if paths is None else named_ids)

    repo = HubRepo(repo_id, "model", private, token, revision, retry, license)
    full_id = repo.open()
    pictures, prompts = sample_pictures(folder, record)
    config = folder / denoiser_folder(folder) / "config.json"
    published = Published(
        repo_id=full_id,
        kind=kind,
        base_id=base_id,
        dataset_id=as_hub_id(data, paths) or published_id(data),
        license=License((license,)) if license else _license_of(base, base_id, token),
        prompts=prompts,
        component=config.parent.name,
        part_class=read_json(config)["_class_name"] if config.is_file() else "",  # only LoRA weights have no config
    )
    files |= _picture_files(pictures, prompts)
    files |= results.grids if results else {}
    public = {key: value for key, value in record.items() if key != "paths"}
    files[RUN_FILE] = _json_bytes(without_paths(public, paths))
    files["README.md"] = str(model_card(record, published, results)).encode()
    return repo.upload(folder, files, "End of training", _REPLACED)


def _finished_run(folder: Path) -> dict[str, Any]:
    """The record of a training run, with all that the card needs."""
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"{folder}: expected the --output_dir of a finished training run, found no {RUN_FILE}")
    record = read_run_json(folder / RUN_FILE)
    if missing := sorted({"family", "captions", "device", "speed"} - record.keys()):
        raise UserError(f"{folder}: expected a run of this version, found no {missing[0]} in {RUN_FILE}; train again")
    return record


def model_files(folder: Path, kind: str, base_id: str | None = None, known: Collection[str] | None = None) -> Files:
    """The files of the model alone; see `Published` for `kind`.

    Configurations name as their origin no path of this machine, but `base_id` and the Hub ids `known` (by default all
    that look like one).
    """
    component = denoiser_folder(folder)
    wanted = {"pipeline": "model_index.json", "unet": f"{component}/config.json", "lora": LORA_FILE}[kind]
    if not (folder / wanted).is_file():
        raise UserError(f"{folder}: expected a finished training run, found no {wanted}")
    if kind == "lora":
        return {LORA_FILE: folder / LORA_FILE}
    if kind == "unet":
        paths = {path.name: path for path in sorted((folder / component).iterdir())}
    else:
        index = read_json(folder / "model_index.json")
        parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
        found = [path for part in parts for path in sorted((folder / part).rglob("*")) if path.is_file()]
        paths = {path.relative_to(folder).as_posix(): path for path in [folder / "model_index.json", *found]}
    return {name: _without_origin(path, base_id, known) for name, path in paths.items() if not name.endswith(".tmp")}


def _license_of(base: str, base_id: str | None, token: str | None) -> License | None:
    """The licence of the base model: from the Hub, or from the card in its folder."""
    if is_tiny(base):
        return License(("apache-2.0",))
    if base_id is not None:
        return hub_license(base_id, "model", token)
    card = Path(base) / "README.md"
    return License.stated(ModelCard.load(card).data.to_dict()) if card.is_file() else None


def sample_pictures(folder: Path, record: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """Pictures and prompts for the card: of the last validation, or drawn once by the tuned model into `samples/`.

    Only a run that has neither a validation prompt nor captions has none.
    """
    options, prompt = record["options"], record["options"].get("validation_prompt")
    validation = folder / "validation" / f"step-{options['max_train_steps']:06d}"
    if prompt and (found := sorted(validation.glob("*.png"), key=lambda p: int(p.stem))[:NUM_SAMPLES]):
        return found, [prompt] * len(found)
    prompts = [prompt] * NUM_SAMPLES if prompt else record["captions"]
    target, run = folder / "samples", fingerprint(record)
    drawn = target / "samples.json"
    pictures = [target / f"{index}.png" for index in range(len(prompts))]
    if not drawn.is_file() or read_json(drawn)["run"] != run:
        logger.info("Drawing %d pictures for the card", len(prompts))
        pipeline = load_trained(folder, record)
        pipeline.set_progress_bar_config(disable=True)
        target.mkdir(exist_ok=True)
        bar = tqdm(zip(pictures, prompts), total=len(prompts), desc="Drawing for the card", unit="image")
        for index, (path, text) in enumerate(bar):
            generator = torch.Generator().manual_seed(derive_seed(options["seed"], "card", index))
            size, steps = options["resolution"], NUM_INFERENCE_STEPS
            images = pipeline(text, height=size, width=size, num_inference_steps=steps, generator=generator).images
            images[0].save(path)
        about = {"run": run, "prompts": prompts, "num_inference_steps": NUM_INFERENCE_STEPS, "seed": options["seed"]}
        atomic_write_json(drawn, about)
    return pictures, prompts


def load_trained(folder: Path, record: Mapping[str, Any]) -> DiffusionPipeline:
    """The pipeline that a finished run made, in float16 on a GPU: its own, or the base with its LoRA."""
    where = {name: record["options"][name] for name in ("revision", "variant")}
    paths = ("pretrained_model_name_or_path", "single_file_config", "cache_dir", "pretrained_vae_model_name_or_path")
    base, config, where["cache_dir"], vae = (recorded_option(record, name) for name in paths)
    if vae and record["options"].get("use_lora"):  # a pipeline has it in its folder
        where["vae"] = load_vae(vae, where["cache_dir"])
    pipeline = load_tuned_pipeline(str(folder), base, dtype=torch.float16, config=config, fuse=False, **where)
    pipeline.vae.to(getattr(pipeline, denoiser_name(pipeline)).dtype)  # as the pipeline's own would be
    return pipeline


def _picture_files(pictures: Sequence[Path], prompts: Sequence[str]) -> Files:
    files: Files = {f"images/{index}.png": path for index, path in enumerate(pictures)}
    if pictures:
        images, buffer = [Image.open(path) for path in pictures], io.BytesIO()
        image_grid(images, len(images), captions=prompts).save(buffer, "PNG")
        files["images/grid.png"] = buffer.getvalue()
    return files


def _without_origin(path: Path, base_id: str | None, known: Collection[str] | None) -> Path | bytes:
    """The file itself, or the bytes of a configuration whose note of origin is a path of this machine."""
    if path.suffix != ".json" or not path.name.endswith(("config.json", "model_index.json")):
        return path
    content = read_json(path)
    origins = {name: content[name] for name in _NAMES_OF_ORIGIN if isinstance(content.get(name), str)}
    if all(as_hub_id(origin) if known is None else origin in {*known, base_id} for origin in origins.values()):
        return path
    for name in origins:
        content.pop(name)
    return _json_bytes(content | ({"_name_or_path": base_id} if base_id and "_name_or_path" in origins else {}))


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
