# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The optimizer that the flags ask for, and bfloat16 weights that do not lose small updates."""

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec

import torch

from ..core.records import derive_seed
from ..errors import UserError
from .settings import TrainingSettings


_CHUNK = 2**24  # elements that are updated together in float32: 64 MB each for weights and gradients
_DROPPED_BITS = 16  # of float32's 23 bits of fraction, bfloat16 keeps the upper 7


def create_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: TrainingSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW (fused, or with 8-bit state) or Adafactor over the parameters that require a gradient."""

    def create(trained: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        options = {"lr": learning_rate, "weight_decay": settings.adam_weight_decay}
        if settings.use_adafactor:
            from transformers.optimization import Adafactor

            # The plain learning rate, as Diffusion-DPO uses it on SDXL, not a share of each weight's size.
            return Adafactor(trained, scale_parameter=False, relative_step=False, **options)
        options |= {"betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon}
        if not settings.use_8bit_adam:
            return torch.optim.AdamW(trained, **options, fused=True)
        if find_spec("bitsandbytes") is None:
            fix = "pip install diffusers-craft[8bit]"
            raise UserError(f"--use_8bit_adam: expected an installed bitsandbytes, found none ({fix})")
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(trained, **options)

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.train_dtype == "bf16":
        return StochasticRounding(trained, create, settings.seed)
    return create(trained)


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 to bfloat16, up or down with the probability that makes the expectation exact; inf and NaN stay."""
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 2**_DROPPED_BITS, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = (bits + noise).bitwise_and_(-(2**_DROPPED_BITS)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


class StochasticRounding(torch.optim.Optimizer):
    """Runs the optimizer that `create` makes on bfloat16 weights in float32, and rounds its result stochastically.

    Rounding to nearest would drop every update below 1/256 of a weight, that is nearly all of them at a learning rate
    of 5e-5. The same seed and step give the same rounding in every process, so that copies of the weights stay equal.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        create: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        seed: int,
    ) -> None:
        # The inner optimizer knows stand-ins that hold a copy of their weight during its chunk's update only.
        device = parameters[0].device
        self._stand_ins = [torch.nn.Parameter(torch.empty(0, device=device)) for _ in parameters]
        self.inner = create(self._stand_ins)
        self.steps, self._seed = 0, seed
        self._generator = torch.Generator(device)
        super().__init__(parameters, {k: v for k, v in self.inner.param_groups[0].items() if k != "params"})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        group = self.inner.param_groups[0]
        group.update({key: value for key, value in self.param_groups[0].items() if key != "params"})
        self._generator.manual_seed(derive_seed(self._seed, "rounding", self.steps))
        for chunk in self._chunks():
            for parameter, stand_in in chunk:
                stand_in.data, stand_in.grad = parameter.float(), parameter.grad.float()
            group["params"] = [stand_in for _, stand_in in chunk]
            self.inner.step()
            for parameter, stand_in in chunk:
                parameter.copy_(round_stochastically(stand_in.data, self._generator))
                stand_in.data, stand_in.grad = stand_in.new_empty(0), None
        group["params"] = self._stand_ins
        self.steps += 1

    def state_dict(self) -> dict:
        """The inner optimizer's state, the options that a schedule may have changed, and the count of steps."""
        return {"inner": self.inner.state_dict(), "steps": self.steps} | super().state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Reads what `state_dict` wrote."""
        self.inner.load_state_dict(state_dict["inner"])
        self.steps = state_dict["steps"]
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})

    def _chunks(self) -> Iterator[list[tuple[torch.nn.Parameter, torch.nn.Parameter]]]:
        chunk, size = [], 0
        for parameter, stand_in in zip(self.param_groups[0]["params"], self._stand_ins, strict=True):
            if parameter.grad is None:
                continue
            if chunk and size + parameter.numel() > _CHUNK:
                yield chunk
                chunk, size = [], 0
            chunk.append((parameter, stand_in))
            size += parameter.numel()
        if chunk:
            yield chunk
