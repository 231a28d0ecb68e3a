# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a run cost: peak memory, images per second, and the share of the device's arithmetic that they amount to."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping

import torch
from diffusers import ModelMixin
from torch.utils.flop_counter import FlopCounterMode

from ..models.family import Family


logger = logging.getLogger(__name__)

# Dense bfloat16 / float16 tensor-core TFLOP/s with float32 accumulation, from the makers' data sheets. The first name
# that the device's contains counts.
_PEAK_TFLOPS = {"B200": 2250.0, "GH200": 989.4, "H200": 989.4, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4}
_PEAK_TFLOPS |= {"A100": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "RTX 4090": 165.2, "RTX 3090": 71.0}
# In forward passes: the gradients of activations cost one, those of weights another, which frozen weights do without
# (LoRA's own are left out). What checkpointing repeats is no useful work.
_BACKWARD, _FROZEN_BACKWARD = 2, 1


class SpeedMeter:
    """Times optimizer steps without waiting for the device, except at the first step, in pauses and at the end.

    The first step warms up (compilation, choice of kernels) and is left out if there is another one. `earlier` is the
    `state` of the run up to the checkpoint from which it goes on.
    """

    def __init__(self, device: torch.device, num_processes: int = 1, earlier: Mapping | None = None) -> None:
        self.device, self.num_processes, self._earlier = device, num_processes, dict(earlier or {})
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._steps, self._paused, self._first = 0, 0.0, 0.0
        self._start = self._now()

    def step_done(self) -> None:
        """To be called at the end of every optimizer step."""
        self._steps += 1
        if self._steps == 1:
            now = self._now()
            self._first, self._start, self._paused = now - self._start - self._paused, now, 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out what is no training: checkpoints, validation."""
        begin = self._now()
        yield
        self._paused += self._now() - begin

    def seconds_a_step(self) -> float | None:
        """Mean over all steps but the first; of the first if it is the only one; without any, of the run before."""
        if self._steps > 1:
            return (self._now() - self._start - self._paused) / (self._steps - 1)
        return self._first if self._steps else self._earlier.get("seconds_a_step")

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps: `seconds_a_step`, `device_seconds` of all steps of all devices, `peak_gb`."""
        pace, earlier = self.seconds_a_step(), self._earlier.get("device_seconds") or 0.0
        spent = None if pace is None else earlier + pace * self._steps * self.num_processes
        return {"seconds_a_step": pace, "device_seconds": spent, "peak_gb": self.peak_gigabytes()}

    def peak_gigabytes(self) -> float | None:
        """Most memory in use at a time, GB: allocated on the GPU, or resident where the CPU trains."""
        earlier = self._earlier.get("peak_gb")
        if self.device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self.device) / 1e9
        else:
            try:
                import resource
            except ImportError:  # Windows
                return None
            unit = 1 if sys.platform == "darwin" else 1024
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        return now if earlier is None else max(now, earlier)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def forward_flops(family: Family, denoiser: ModelMixin, latents: torch.Tensor, conditioning: dict) -> int:
    """Floating-point operations (2 a multiply-add) of one forward pass for all rows of `latents` (B, C, h, w).

    Products, convolutions and attention are counted without computing anything; values and weights do not matter.
    """

    def like(value: torch.Tensor) -> torch.Tensor:
        return torch.empty(value.shape, device="meta")

    with torch.device("meta"):
        blank = type(denoiser).from_config(denoiser.config)
    inputs = {name: like(value) for name, value in conditioning.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        family.predict(blank, like(latents), like(latents[:, 0, 0, 0]), inputs)
    return counter.get_total_flops()


def speed_report(
    meter: SpeedMeter, images_a_step: int, flops: int, precision: str, frozen: bool = False
) -> dict[str, float | None]:
    """Memory and speed of a run with `flops` for one image forward; `frozen` weights get no gradient (LoRA).

    `peak_gb` a process, `images_per_second` over all, `forward_tflop` an image, `mfu` in [0, 1] (`None` for an unknown
    device or precision), `device_hours` of the whole run, the steps before a resume included.
    """
    state = meter.state()
    seconds, spent = state["seconds_a_step"], state["device_seconds"]
    images = images_a_step / seconds if seconds else None
    peak = _peak_flops(meter.device) if precision in ("fp16", "bf16") else None
    useful = None if images is None else images * flops * (1 + (_FROZEN_BACKWARD if frozen else _BACKWARD))
    return {
        "peak_gb": state["peak_gb"],
        "images_per_second": images,
        "forward_tflop": flops / 1e12,
        "mfu": None if peak is None or useful is None else useful / (peak * meter.num_processes),
        "device_hours": None if spent is None else spent / 3600,
    }


def announce_speed(speed: Mapping[str, float | None], paper: str = "") -> None:
    """Logs a `speed_report`, and beside it what the objective's paper spent."""
    shown = {name: "unknown" if value is None else f"{value:.3g}" for name, value in speed.items()}
    logger.info("  Memory = %s GB at its peak, a process", shown["peak_gb"])
    logger.info("  Speed = %s images/s, model FLOPs utilization %s", shown["images_per_second"], shown["mfu"])
    logger.info("  Cost = %s device-hours%s", shown["device_hours"], f" ({paper})" if paper else "")


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in _PEAK_TFLOPS.items() if part in name), None)
