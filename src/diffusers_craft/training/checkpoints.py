# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints that appear whole, and what may change where a run goes on from one."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from ..core.files import atomic_write_json, checksums, read_json
from ..core.output import full_disk_named
from ..errors import UserError
from ..objectives.base import Objective
from .model import TrainedModel
from .settings import TrainingSettings


logger = logging.getLogger(__name__)

_STATE_FILE = "training_state.json"
_DEFAULT_STEPS = 50  # of the recipe's 120 and 200


def checkpoint_step(path: Path) -> int:
    """Of a folder `checkpoint-{step}`."""
    return int(path.name.rpartition("-")[2])


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    named = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in named if (path / _STATE_FILE).is_file()), key=checkpoint_step)


def find_checkpoint(resume_from: str, output_dir: str | Path) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` means; `None` for `latest` in a folder that has none yet."""
    if resume_from == "latest":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            logger.warning("--resume_from_checkpoint: no checkpoint in %s, starting a new run.", output_dir)
        return checkpoints[-1] if checkpoints else None
    given = Path(resume_from)
    for path in (given, Path(output_dir) / given.name):  # diffusers takes the name alone, too
        if (path / _STATE_FILE).is_file():
            return path
    wanted = "expected `latest` or the folder of a finished checkpoint"
    raise UserError(f"--resume_from_checkpoint: {wanted}, found {resume_from!r}")


class Checkpoints:
    """The checkpoints that a run writes, every `period` steps; all processes call its methods.

    Where the user asks for none, the latest one is kept to go on from, until the run has ended; those that an earlier
    run was asked for stay. `size` is a checkpoint's in bytes.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, size: int) -> None:
        self.accelerator, self.output_dir, self.size = accelerator, Path(settings.output_dir), size
        self.passing = settings.checkpointing_steps is None
        self.period = _DEFAULT_STEPS if self.passing else settings.checkpointing_steps
        self.total_limit = 1 if self.passing else settings.checkpoints_total_limit
        self.newest: int | None = None  # until the loss after it is known
        if accelerator.is_main_process:
            self._remove_leftovers()

    def space(self, step: int, last_step: int, result: int) -> int:
        """Bytes that the steps after `step` need at once, with the `result` in the end, beside what is there already.

        While a checkpoint is written the one before it stays; the result is written beside those that are kept.
        """
        there = len(self._own())
        count = last_step // self.period - step // self.period
        if self.passing and last_step % self.period == 0:  # the end itself needs none
            count = max(0, count - 1)
        kept = there + count if self.total_limit is None else min(there + count, max(self.total_limit, there))
        extra = self.size if kept < there + count else 0
        return self.size * (kept - there) + max(extra, result)

    def _own(self) -> list[Path]:
        """The checkpoints that rotation may remove, oldest first."""
        there = list_checkpoints(self.output_dir)
        return [path for path in there if _is_passing(path)] if self.passing else there

    def _remove_leftovers(self) -> None:
        for leftover in self.output_dir.glob(".checkpoint-*.tmp"):  # of a killed run, or one that met a full disk
            shutil.rmtree(leftover, ignore_errors=True)

    def save(self, step: int, state: dict) -> Path:
        """Writes `checkpoint-{step}` under a temporary name and renames it; `state` is what else to remember, as JSON."""
        final = self.output_dir / f"checkpoint-{step}"
        temporary = final.with_name(f".{final.name}.tmp")
        if self.accelerator.is_main_process:
            self._remove_leftovers()
        self.accelerator.wait_for_everyone()
        try:
            with full_disk_named(self.output_dir, self.size, f"checkpoint-{step}"):
                self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                passing = self.passing or step % self.period != 0  # as of SIGTERM
                state = state | {"step": step, "passing": passing, "checksums": checksums(temporary)}
                atomic_write_json(temporary / _STATE_FILE, state)
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
                logger.info("Saved %s", final)
        except Exception:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()
        self.newest = step
        return final

    def drop_old(self, finite_step: int) -> None:
        """Rotation, once the loss after the newest checkpoint is known to be finite: until then the one before it stays."""
        if self.newest is None or finite_step <= self.newest:
            return
        self.newest = None
        if self.accelerator.is_main_process:
            for old in self._own()[: -self.total_limit if self.total_limit else 0]:
                shutil.rmtree(old)

    def end(self) -> None:
        """Removes what only a run that did not end would have needed."""
        if self.accelerator.is_main_process:
            for old in filter(_is_passing, list_checkpoints(self.output_dir)):
                shutil.rmtree(old, ignore_errors=True)


def _is_passing(path: Path) -> bool:
    """Whether a checkpoint is one that nobody asked for."""
    try:
        return read_json(path / _STATE_FILE).get("passing") is True
    except (OSError, UserError):
        return False


def recipe(settings: TrainingSettings, objective: Objective) -> dict[str, Any]:
    """What decides what a training computes, as JSON keeps it; no paths, since checkpoints may be published."""
    other = ("path", "incidental")
    fields = [field for field in dataclasses.fields(settings) if field.metadata.get("role") not in other]
    chosen = {field.name: getattr(settings, field.name) for field in fields} | objective.record()
    return json.loads(json.dumps(chosen))


def resume(model: TrainedModel, objective: Objective, identity: Mapping[str, int], max_train_steps: int) -> dict:
    """Puts `model` back as `--resume_from_checkpoint` has it; the state of that checkpoint, empty for a new run.

    `identity` are the seed and sizes, which the state holds too.
    """
    settings = model.settings
    there = list_checkpoints(settings.output_dir)
    if settings.resume_from_checkpoint is None:
        if there:
            wanted = "expected a folder without checkpoints, or --resume_from_checkpoint"
            raise UserError(f"--output_dir: {wanted}, found {there[-1].name} in {settings.output_dir}")
        return {}
    path = find_checkpoint(settings.resume_from_checkpoint, settings.output_dir)
    if path is None:
        return {}
    state = _read_state(path, identity)
    step = state["step"]
    if there and checkpoint_step(there[-1]) > step:  # rotation and `latest` would take it for this run's
        wanted = f"expected no later checkpoint than {path.name} in {settings.output_dir}"
        fix = "move it away, or give another --output_dir"
        raise UserError(f"--resume_from_checkpoint: {wanted}, found {there[-1].name}; {fix}")
    if step > max_train_steps:
        raise UserError(f"--max_train_steps: expected at least {step}, the steps of {path}, found {max_train_steps}")
    _check_recipe(state["recipe"], recipe(settings, objective), path)
    if model.accelerator.is_main_process:
        _check_files(path, state.get("checksums", {}))
    _load(model, path)
    logger.info("Resuming from %s after step %d", path, step)
    _warn_of_changes("%s of the checkpoint is %s, now %s: not the same run.", state, identity)
    return state


def _read_state(path: Path, identity: Iterable[str]) -> dict:
    try:
        state = read_json(path / _STATE_FILE)
        kinds = {"step": int, "recipe": dict, "history": list, "cost": dict} | dict.fromkeys(identity, int)
        if wrong := [name for name, kind in kinds.items() if not isinstance(state.get(name), kind)]:
            raise UserError(f"{path / _STATE_FILE}: no {wrong[0]}")
    except (OSError, UserError) as error:
        raise _damaged(path, str(error)) from error
    return state


def _check_files(path: Path, expected: Mapping[str, str]) -> None:
    """Refuses a checkpoint of which a file is not as it was written; those of earlier versions do not say."""
    found = checksums(path) if expected else {}
    if wrong := next((name for name in expected if found.get(name) != expected[name]), None):
        raise _damaged(path, f"{wrong} is {'not as it was written' if wrong in found else 'missing'}")


def _damaged(path: Path, reason: str) -> UserError:
    wanted, fix = "expected a whole checkpoint", "move it away to go on from the one before"
    reason = " ".join(reason.split())
    return UserError(f"--resume_from_checkpoint: {wanted}, found {path} ({reason:.200}); {fix}")


def _check_recipe(then: Mapping, now: Mapping, path: Path) -> None:
    """What the form of the state depends on must be the same, and any other change is logged."""
    for field in dataclasses.fields(TrainingSettings):
        name, is_bound = field.name, field.metadata.get("role") == "bound"
        if is_bound and name in then and then[name] != now[name]:
            why = "its state has that form; start anew in another --output_dir"
            raise UserError(f"--{name}: expected {then[name]}, as in {path}, found {now[name]}; {why}")
    shared = {name: now[name] for name in sorted(set(then) & set(now))}
    _warn_of_changes("--%s of the checkpoint is %s, now %s: not the same run.", then, shared)


def _warn_of_changes(words: str, then: Mapping, now: Mapping) -> None:
    for name, value in now.items():
        if then[name] != value:
            logger.warning(words, name, then[name], value)


def _load(model: TrainedModel, path: Path) -> None:
    """Weights, optimizer and schedule of a checkpoint; rate, betas, decay and so on stay those of this run's flags."""
    accelerator, groups = model.accelerator, model.optimizer.param_groups
    wanted = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    try:
        accelerator.load_state(str(path))
    except UserError:
        raise
    except Exception as error:  # torch, safetensors, diffusers and json each have their own for a damaged file
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    accelerator.step = 0  # accelerate's count of micro-batches; every checkpoint lies between two batches
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # which keeps rates of its own
        return
    schedule = model.lr_scheduler.scheduler
    schedule.base_lrs = [group["initial_lr"] for group in wanted]
    rates = [base * share(schedule.last_epoch) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas)]
    for group, options, rate in zip(model.optimizer.param_groups, wanted, rates, strict=True):
        group.update(options | {"lr": rate})
    schedule._last_lr = rates
