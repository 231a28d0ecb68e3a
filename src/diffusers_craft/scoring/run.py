# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Stage 3: raw scores of every image by every reward, always against the original prompt.

A shard is decoded, given to a reward in one call and written as a whole, so its scores depend neither on which rank makes
it, nor on interruptions, nor on whether other rewards are scored beside it. Filters and weights come later, from raw scores.
"""

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from ..core.records import SCORE_SCHEMA
from ..core.workdir import Stage, rank_and_world
from ..errors import UserError


if TYPE_CHECKING:
    from ..rewards.base import Reward

logger = logging.getLogger(__name__)


class ImageRow(NamedTuple):
    """An image to score, still encoded."""

    label: str  # for error texts, e.g. "row 4"
    prompt: str
    data: bytes | None  # a PNG, JPEG, ... file; None is not scored and gets NaN


class ImageSource(Protocol):
    """Images in a fixed order, of which any range can be read."""

    num_rows: int

    def read_rows(self, rows: range) -> list[ImageRow]: ...


@dataclass(frozen=True)
class CandidateImages:
    """A stage of `CANDIDATE_SCHEMA` as an `ImageSource`; candidates that are not valid have no data."""

    candidates: Stage

    @property
    def num_rows(self) -> int:
        return self.candidates.num_rows

    def read_rows(self, rows: range) -> list[ImageRow]:
        """The candidates with the given positions, whatever the size of their own shards."""
        stage, columns = self.candidates, ["row", "prompt", "image", "valid"]
        first, last = rows.start // stage.rows_per_shard, (rows.stop - 1) // stage.rows_per_shard
        table = pa.concat_tables([stage.read_shard(shard, columns) for shard in range(first, last + 1)])
        return [
            ImageRow(f"row {record['row']}", record["prompt"], record["image"]["bytes"] if record["valid"] else None)
            for record in table.slice(rows.start - stage.rows(first).start, len(rows)).to_pylist()
        ]


@dataclass(frozen=True)
class ScoringJob:
    """Images and where their scores go: `stages` holds a stage of `SCORE_SCHEMA` for each reward's name."""

    images: ImageSource
    stages: Mapping[str, Stage]


def score_images(
    jobs: Sequence[ScoringJob],
    rewards: "Mapping[str, Reward | Any]",
    residency: str = "sequential",
    num_workers: int = 0,
    skip_unreadable: bool = False,
) -> None:
    """Scores all images of all jobs by all rewards: this rank's share of what is missing; waits for the other ranks.

    Args:
        jobs (`Sequence[ScoringJob]`): the images and the stages of their scores.
        rewards (`Mapping[str, Reward]`): name to an object with `score(prompts, images)`.
        residency (`str`, *optional*, defaults to `"sequential"`): `"sequential"` has one reward in memory at a time and
            decodes the images once for each; `"together"` keeps all loaded and decodes every image once. Same scores.
        num_workers (`int`, *optional*, defaults to 0): threads that decode images.
        skip_unreadable (`bool`, *optional*, defaults to `False`): whether an image that cannot be decoded gets NaN and
            a warning, instead of ending the run.

    Raises:
        UserError: if a reward returns NaN, infinity or another number of scores, or an image cannot be read.
    """
    named: set[str] = set()
    for names in _passes(rewards, residency):
        chosen = {name: rewards[name] for name in names}
        _score_pass(jobs, chosen, num_workers, named if skip_unreadable else None)
        for reward in chosen.values():
            getattr(reward, "release", lambda: None)()
    for job in jobs:
        for name in rewards:
            job.stages[name].finish()


def _passes(rewards: "Mapping[str, Reward | Any]", residency: str) -> list[list[str]]:
    """Which rewards are in memory together. Those that share an image tower are one model, and go over the images once."""
    if residency == "together":
        return [list(rewards)]
    passes: dict[int, list[str]] = {}
    for name, reward in rewards.items():
        passes.setdefault(id(getattr(reward, "tower", reward)), []).append(name)
    return list(passes.values())


class _Task(NamedTuple):
    """Rows that one or several rewards score from one decoding."""

    job: ScoringJob
    rows: range
    shards: dict[str, int]  # reward -> which shard of its stage these rows are


def read_scores(stage: Stage, valid: np.ndarray | None = None) -> np.ndarray:
    """(n,) raw scores of a finished stage, NaN where there is none; what `score_images` never writes is a `UserError`.

    That is an infinite score, and none for a row that is `valid`, (n,) bool.
    """
    scores = stage.read(["score"])["score"].to_numpy()
    wrong = np.isinf(scores) if valid is None else np.isinf(scores) | (np.isnan(scores) & valid)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise stage.damage(row // stage.rows_per_shard, "finite scores", f"{scores[row]} in row {row}")
    return scores


def _score_pass(
    jobs: Sequence[ScoringJob], rewards: "Mapping[str, Reward | Any]", num_workers: int, unreadable: set[str] | None
) -> None:
    """Scores this rank's shards of each job with rewards that are in memory together.

    `unreadable` collects the labels of images that cannot be read; without it the first one ends the run.
    """
    tasks = [task for job in jobs for task in _tasks(job, rewards)]
    total = sum(len(task.rows) * len(task.shards) for task in tasks)
    title = next(iter(rewards)) if len(rewards) == 1 else f"{len(rewards)} rewards"
    bar = tqdm(total=total, desc=f"Scoring {title}", unit="image", disable=not total or rank_and_world()[0] > 0)
    # Pillow lets go of the interpreter while it decompresses: on two cores two threads decode 1.9 times as many PNG files
    # as one, and 1.3 times (JPEG: 3 times) as many as two processes, which have to send the pixels back.
    threads = ThreadPoolExecutor(num_workers, "decode") if num_workers else None
    with bar, ExitStack() as stack:
        begun = (_begin(task, threads) for task in tasks)
        if threads:  # every task is begun while the one before it is scored; what is queued dies with a failed run
            stack.callback(threads.shutdown, cancel_futures=True)
            begun = (earlier for earlier, _ in pairwise(chain(begun, [None])))
        for task, rows, decoded in begun:
            pictures = _pictures(rows, decoded, unreadable)
            for name, shard in task.shards.items():
                scores = _score_rows(name, rewards[name], rows, pictures)
                table = pa.table({"row": np.asarray(task.rows), "score": scores}, schema=SCORE_SCHEMA)
                task.job.stages[name].write(shard, table)
                bar.update(len(rows))


def _tasks(job: ScoringJob, rewards: Iterable[str]) -> list[_Task]:
    """This rank's share of the shards of several rewards, those of the same rows as one task."""
    tasks: dict[range, dict[str, int]] = {}
    for name in rewards:
        stage = job.stages[name]
        if job.images.num_rows != stage.num_rows:
            raise UserError(f"candidates: expected {stage.num_rows} rows, found {job.images.num_rows}")
        for shard in stage.share():
            tasks.setdefault(stage.rows(shard), {})[name] = shard
    return [_Task(job, rows, tasks[rows]) for rows in sorted(tasks, key=lambda rows: rows.start)]


def _begin(
    task: _Task, threads: ThreadPoolExecutor | None
) -> tuple[_Task, list[ImageRow], Iterable[Image.Image | str]]:
    """Reads the rows of a task; the pictures of those with data are made by the threads, or when they are asked for."""
    rows = task.job.images.read_rows(task.rows)
    start = threads.map if threads else map
    return task, rows, start(decode_image, [row.data for row in rows if row.data is not None])


def decode_image(data: bytes) -> Image.Image | str:
    """The picture in an encoded image of any format, upright, with its own mode, or one line on what is wrong."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _upright(image)
    except UnidentifiedImageError:
        return "no image of a known format"
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        return " ".join(f"{type(error).__name__}: {error}".split())


def _upright(image: Image.Image) -> Image.Image:
    """A copy as training sees it; as it is stored where only its tags are broken."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as for pictures: Pillow raises whatever comes
        return image.copy()


def _pictures(
    rows: list[ImageRow], decoded: Iterable[Image.Image | str], unreadable: set[str] | None
) -> dict[int, Image.Image]:
    """Index to picture of the rows to score; what cannot be read ends the run or is named in one warning."""
    pictures = {}
    for index, picture in zip((index for index, row in enumerate(rows) if row.data is not None), decoded):
        label = rows[index].label
        if isinstance(picture, Image.Image):
            pictures[index] = picture
        elif unreadable is None:
            raise UserError(f"image of {label}: expected an image file, found {picture}")
        else:
            if label not in unreadable:
                logger.warning("image of %s cannot be read and gets no score (%s)", label, picture)
            unreadable.add(label)
    return pictures


def as_array(scores: Any) -> np.ndarray:
    """What a reward gave: a user's own tensor may be on a GPU, in bfloat16, or ask for gradients."""
    return np.asarray(scores.detach().float().cpu() if hasattr(scores, "detach") else scores)


def _score_rows(name: str, reward: "Reward | Any", rows: list[ImageRow], pictures: dict[int, Any]) -> np.ndarray:
    """Raw scores of the rows of one shard, NaN where there is no picture: (n,) float32."""
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    if not pictures:
        return scores
    chosen = list(pictures)
    found = as_array(reward.score([rows[i].prompt for i in chosen], list(pictures.values()))).astype(np.float32)
    if found.shape != (len(chosen),):
        raise UserError(f"reward {name}: expected {len(chosen)} scores, found shape {found.shape}")
    # A reward that may abstain (a grader without an answer, a rule for other prompts) says so by NaN.
    accepted = np.isfinite(found) | (np.isnan(found) & getattr(reward, "abstains", False))
    if not accepted.all():
        bad = int(np.flatnonzero(~accepted)[0])
        row = rows[chosen[bad]]
        raise UserError(
            f"reward {name}: expected a finite score for every valid image, found {found[bad]} "
            f"for {row.label} ({row.prompt!r})"
        )
    scores[chosen] = found
    return scores
