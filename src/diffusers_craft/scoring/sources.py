# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Images with captions from a folder, Parquet files or the Hub; any range of rows is read without the rest."""

import argparse
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.files import fingerprint, is_hidden
from ..core.load import HubSource, load_hub_dataset
from ..core.tables import read_text
from ..errors import UserError
from .captions import METADATA_FILES, check_caption, folder_captions, pick_caption_column, read_captions, read_schema
from .run import ImageRow


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
EXPECTED = "expected a folder, a Parquet file or a dataset of the Hub"


def add_image_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declares what `open_images` takes."""
    add, text = parser.add_argument, "Folder of images or Parquet files, Parquet file, or Hub id"
    add("--images", required=True, help=f"{text} (NAME, NAME:SPLIT or NAME:CONFIG:SPLIT).")
    add("--image_column", default="image", help="Column of Parquet and datasets that holds the images.")
    add("--caption_column", help="Column with the captions; default: prompt, caption or text.")
    add("--captions", help="CSV or JSONL file with a column file_name, for a folder of images.")
    add("--prompt", help="One prompt for all images, instead of captions.")


def open_images(
    source: str,
    image_column: str = "image",
    caption_column: str | None = None,
    captions: str | None = None,
    prompt: str | None = None,
) -> "ImageFiles":
    """Opens images and their captions.

    Args:
        source (`str`): a folder of images (with subfolders) or of Parquet files, a Parquet file, or a dataset of the
            Hub, `name`, `name:split` or `name:config:split` (default split `train`).
        image_column (`str`, *optional*, defaults to `"image"`): of Parquet and datasets.
        caption_column (`str`, *optional*): by default the first of `prompt`, `caption` and `text`.
        captions (`str`, *optional*): a `.csv` or `.jsonl` file with a column `file_name`, for a folder of images; by
            default its `metadata.jsonl` or `metadata.csv`, else the text file beside each image.
        prompt (`str`, *optional*): one prompt for all images instead of captions.

    Returns:
        `ImageFiles`: with `num_rows`, `read_rows(range)`, `name(row)`, `prompts()` and `identity`, which changes with
        the images or captions.

    Raises:
        UserError: if there is no such source or column, or an image has no caption; names the first one.
    """
    path = Path(source).expanduser()
    tables = [path] if path.suffix == ".parquet" and path.is_file() else _tables(path, image_column)
    if captions is not None and (prompt is not None or tables or not path.is_dir()):
        raise UserError(f"--captions: expected without --prompt and with a folder of images, found {captions!r}")
    if tables:
        return ParquetImages(tables, image_column, caption_column, prompt)
    if path.is_dir():
        return FolderImages(path, caption_column, captions, prompt)
    if path.exists() or path.suffix or source.startswith((".", "/", "~")):
        found = f"the file {source}" if path.exists() else f"nothing at {source}"
        raise UserError(f"--images: {EXPECTED}, found {found}")
    return DatasetImages(source, image_column, caption_column, prompt)


def _tables(folder: Path, image_column: str) -> list[Path]:
    """The Parquet files of a folder; in one with images only those that hold images, for another may be our own."""
    tables = sorted(path for path in folder.glob("*.parquet") if path.name not in METADATA_FILES)
    if not tables or not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        return tables
    return [path for path in tables if _holds_images(read_schema(path), image_column)]


def _holds_images(schema: pa.Schema, column: str) -> bool:
    """Whether a column is there and holds encoded files, as bytes or as `datasets`' struct."""
    kind = schema.field(column).type if column in schema.names else pa.null()
    encoded = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    return pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)


class FolderImages:
    """The images under a folder in the order of their names; captions as `open_images` finds them."""

    def __init__(self, folder: Path, caption_column: str | None, captions: str | None, prompt: str | None):
        found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
        self.files = sorted(path for path in found if not is_hidden(path, folder))
        if not self.files:
            raise UserError(f"--images: expected images ({', '.join(IMAGE_SUFFIXES)}) in {folder}, found none")
        self.names = [path.relative_to(folder).as_posix() for path in self.files]
        self.num_rows = len(self.files)
        if prompt is not None:
            self.captions = [prompt] * self.num_rows
        else:
            self.captions = self._read(folder, caption_column, captions)

    @property
    def identity(self) -> str:
        states = [path.stat() if path.exists() else path.lstat() for path in self.files]  # a link may lead nowhere
        facts = [(state.st_size, state.st_mtime_ns) for state in states]
        return f"{self.num_rows} images, hash {fingerprint([self.names, self.captions, facts])}"

    def name(self, row: int) -> str:
        return self.names[row]

    def prompts(self) -> list[str]:
        return self.captions

    def read_rows(self, rows: range) -> list[ImageRow]:
        return [ImageRow(self.names[row], self.captions[row], self._data(row)) for row in rows]

    def _data(self, row: int) -> bytes:
        """A link that leads nowhere is an image that cannot be read."""
        return self.files[row].read_bytes() if self.files[row].exists() else b""

    def _read(self, folder: Path, column: str | None, captions: str | None) -> list[str]:
        if captions is not None:
            found, place = read_captions(Path(captions).expanduser(), column), captions
        elif tables := folder_captions(folder, column):
            found, place = tables
        else:
            texts = {name: path.with_suffix(".txt") for name, path in zip(self.names, self.files)}
            found = {name: read_text(path, "--images").strip() for name, path in texts.items() if path.is_file()}
            place = "its text file"
        for name in self.names:
            if name not in found:
                wanted = f"expected a caption for {name} in {place}"
                raise UserError(f"--images: {wanted}, found none; give --captions FILE or --prompt TEXT")
        return [found[name] for name in self.names]


class ColumnImages:
    """Images and captions in columns; subclasses have `num_rows`, `facts` (what changes with the content) and read."""

    def __init__(self, image_column: str, caption_column: str | None, prompt: str | None):
        self.image_column, self.caption_column, self.prompt = image_column, caption_column, prompt

    @property
    def identity(self) -> str:
        chosen = [self.facts, self.image_column, self.caption_column, self.prompt]
        return f"{self.num_rows} rows, hash {fingerprint(chosen)}"

    @property
    def columns(self) -> list[str]:
        return [name for name in (self.image_column, self.caption_column) if name is not None]

    def name(self, row: int) -> str:
        return f"row {row}"

    def prompts(self) -> list[str]:
        """All captions, checked: one that is missing is known before anything is scored."""
        if self.prompt is not None:
            return [self.prompt] * self.num_rows
        return [check_caption(text, self.name(row)) for row, text in enumerate(self._captions())]

    def read_rows(self, rows: range) -> list[ImageRow]:
        found = []
        for row, record in zip(rows, self._records(rows)):
            label = self.name(row)
            prompt = self.prompt if self.prompt is not None else check_caption(record[self.caption_column], label)
            found.append(ImageRow(label, prompt, _image_bytes(record[self.image_column])))
        return found


class ParquetImages(ColumnImages):
    """The rows of Parquet files, one row group in memory at a time."""

    def __init__(self, files: Sequence[Path], image_column: str, caption_column: str | None, prompt: str | None):
        super().__init__(image_column, caption_column, prompt)
        self.files = files
        self._groups: list[tuple[pq.ParquetFile, int]] = []
        self._last: tuple[int, pa.Table] | None = None  # the row group that was read last
        sizes = []
        for path in files:
            try:
                file = pq.ParquetFile(path)
            except pa.ArrowInvalid:
                raise UserError(f"--images: expected a Parquet file, found other bytes in {path}") from None
            self._check_columns(file.schema_arrow, path)
            self._groups += [(file, group) for group in range(file.num_row_groups)]
            sizes += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        self.num_rows = self._starts[-1]
        if not self.num_rows:
            raise UserError(f"--images: expected rows in {files[0]}, found none")

    @property
    def facts(self) -> list[tuple[str, int, int]]:
        return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]

    def _check_columns(self, schema: pa.Schema, path: Path) -> None:
        columns = schema.names
        if self.image_column not in columns:
            found = f"{self.image_column!r} among {', '.join(columns)}"
            raise UserError(f"--image_column: expected the column of images in {path}, found no {found}")
        if not _holds_images(schema, self.image_column):
            wanted = f"expected encoded images in {self.image_column!r} of {path}"
            raise UserError(f"--image_column: {wanted}, found {schema.field(self.image_column).type}")
        if self.prompt is None:
            others = [name for name in columns if name != self.image_column]
            self.caption_column = pick_caption_column(others, self.caption_column, str(path))

    def _records(self, rows: range) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        while (row := rows.start + len(records)) < rows.stop:
            group = bisect_right(self._starts, row) - 1
            records += self._table(group).slice(row - self._starts[group], rows.stop - row).to_pylist()
        return records

    def _table(self, group: int) -> pa.Table:
        if self._last is None or self._last[0] != group:
            file, number = self._groups[group]
            self._last = group, file.read_row_group(number, columns=self.columns)
        return self._last[1]

    def _captions(self) -> list[str]:
        parts = [pq.read_table(path, columns=[self.caption_column])[self.caption_column] for path in self.files]
        return [text for part in parts for text in part.to_pylist()]


class DatasetImages(ColumnImages):
    """A dataset of the Hub, through `datasets` and its cache."""

    def __init__(self, source: str, image_column: str, caption_column: str | None, prompt: str | None):
        import datasets

        super().__init__(image_column, None if prompt is not None else caption_column, prompt)
        place = HubSource.parse(source)
        name, dataset = place.name, load_hub_dataset(place, expected=f"--images: {EXPECTED}", found=source)
        if not isinstance(dataset.features.get(image_column), datasets.Image):
            wanted = f"expected a column of images of {name} ({', '.join(dataset.column_names)})"
            raise UserError(f"--image_column: {wanted}, found {image_column!r}")
        others = [column for column in dataset.column_names if column != image_column]
        if prompt is None:
            self.caption_column = pick_caption_column(others, caption_column, name)
        # Still encoded, so that the decoding threads have something to do.
        self.dataset = dataset.select_columns(self.columns).cast_column(image_column, datasets.Image(decode=False))
        self.num_rows, self.facts = len(dataset), dataset._fingerprint

    def _captions(self) -> list[str]:
        return self.dataset[self.caption_column][:]

    def _records(self, rows: range) -> list[dict[str, Any]]:
        return self.dataset.select(rows).to_list()


ImageFiles = FolderImages | ParquetImages | DatasetImages


def _image_bytes(value: bytes | Mapping[str, Any] | None) -> bytes:
    """The encoded file of a cell: bytes, or `datasets`' struct of bytes and path. An empty cell is an unreadable image."""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        return data if data is not None else Path(path).read_bytes() if path and Path(path).is_file() else b""
    return value or b""
