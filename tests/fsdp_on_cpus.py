# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`fsdp_on_cpus.py SCRIPT FLAGS...` runs a training script under FSDP on CPUs.

accelerate (1.15) sets up FSDP for every kind of accelerator but leaves CPUs with DDP, though PyTorch's FSDP works there
through gloo; this lifts that one restriction. ACCELERATE_USE_FSDP and FSDP_* are read as under `accelerate launch`.
"""

import runpy
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


_init = AcceleratorState.__init__


def _init_with_fsdp(self, mixed_precision=None, *args, fsdp_plugin=None, **kwargs):
    _init(self, mixed_precision, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        if self.mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self.mixed_precision)
    if getattr(self, "fsdp_plugin", None) is not None:  # every later look at the state copies PartialState's type
        self.distributed_type = DistributedType.FSDP


AcceleratorState.__init__ = _init_with_fsdp
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
