# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Which rows a training reads, and how."""

from dataclasses import dataclass, fields, replace

from ..core.flags import option
from ..errors import UserError
from ..models.families import FAMILIES
from ..models.family import Components, Family
from ..selection.filtering import PAIRINGS


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What a training reads.

    Args:
        backbone (`str`, *optional*, defaults to SD1.5's): Family of the model.
        dataset_name (`str`, *optional*): Hub id, or the folder that build_craft_dataset.py wrote.
        dataset_config_name (`str`, *optional*): Configuration of the dataset, if it has several.
        train_data_dir (`str`, *optional*): Folder of images, all of them, with a metadata.jsonl or .csv or with a .txt
            file beside each (column text).
        image_column (`str`, *optional*, defaults to `"image"`): The images.
        caption_column (`str`, *optional*, defaults to `"prompt"`): The text that training conditions on.
        advantage_column (`str`, *optional*, defaults to `"advantage"`): Weight of a row; a dataset without it trains as
            SFT.
        latent_column (`str`, *optional*, defaults to `"latent"`): Scaled latents, see --use_generated_latents.
        use_generated_latents (`bool`, *optional*, defaults to `False`): Train on the latents that the base model
            generated instead of encoding the images again.
        max_train_samples (`int`, *optional*): Train on a random subset of this many rows.
        resolution (`int`, *optional*): Side of the training images, pixels; the default is the model's own.
        center_crop (`bool`, *optional*, defaults to `False`): Crop the centre; the default is a random place per image.
        random_flip (`bool`, *optional*, defaults to `False`): Flip every other draw (no good for texts or sides).
        pairing (`str`, *optional*, defaults to `"best_worst"`): Pairs of a build's folder: the best against the worst
            image of a prompt, or the best refined one against the image of the original prompt.
        num_pairs (`int`, *optional*): Only the pairs with the best winners, by the scores of a build or of a dataset; the
            default is all.
        score_range (`tuple[float, float]`, *optional*): SmPO: lowest and highest score, which scale its factors; the
            default is those of all images of the data.
        seed (`int`, *optional*, defaults to 0): All randomness derives from it and the step.
        cache_dir (`str`, *optional*): Where downloads and caches are kept; default: HF_HOME.

    Raises:
        UserError: names the flag whose value cannot be.
    """

    backbone: str = option("sd15", choices=FAMILIES)
    dataset_name: str | None = option(None, group="data", role="path")
    dataset_config_name: str | None = option(None, group="data", role="path")
    train_data_dir: str | None = option(None, group="data", role="path")
    image_column: str = option("image", group="data")
    caption_column: str = option("prompt", group="data")
    advantage_column: str = option("advantage", group="data")
    latent_column: str = option("latent", group="data")
    use_generated_latents: bool = option(False, group="data")
    max_train_samples: int | None = option(None, group="data", role="incidental")  # the number of rows is compared
    resolution: int | None = option(None, group="data")
    center_crop: bool = option(False, group="data")
    random_flip: bool = option(False, group="data")
    pairing: str = option("best_worst", group="preferences", choices=PAIRINGS)
    num_pairs: int | None = option(None, group="preferences")
    score_range: tuple[float, float] | None = option(None, group="preferences", metavar=("MIN", "MAX"))
    seed: int = option(0, group="run", role="incidental")  # compared by itself
    cache_dir: str | None = option(None, group="model", role="path")

    def __post_init__(self) -> None:
        for field in fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise UserError(f"--{field.name}: expected one of {', '.join(choices)}, found {value!r}")
        if self.use_generated_latents and self.random_flip:
            raise UserError("--random_flip: expected no flips with --use_generated_latents, which are not images")

    def for_model(self, family: Family, components: Components) -> "DataSettings":
        """The same settings with the resolution that the model was made for, where none is given."""
        return self if self.resolution else replace(self, resolution=family.native_resolution(components))

    @property
    def data_source(self) -> str | None:
        """Hub id or folder."""
        return self.dataset_name or self.train_data_dir

    @property
    def data_flag(self) -> str:
        """The flag that named it."""
        return "--train_data_dir" if self.dataset_name is None and self.train_data_dir else "--dataset_name"
