# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""`sharded_on_cpus.py SCRIPT FLAGS...` runs a training script under FSDP or DeepSpeed on CPUs.

accelerate (1.15) sets up either for accelerators alone and leaves CPUs with DDP, though both work there through gloo;
this lifts that one restriction. ACCELERATE_USE_FSDP, ACCELERATE_USE_DEEPSPEED and what belongs to them are read as under
`accelerate launch`.
"""

import runpy
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType


_init = AcceleratorState.__init__


def _init_sharded(self, mixed_precision=None, *args, fsdp_plugin=None, deepspeed_plugin=None, **kwargs):
    _init(self, mixed_precision, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
    if deepspeed_plugin is not None:
        deepspeed_plugin.set_mixed_precision(self._mixed_precision)
        deepspeed_plugin.select(_from_accelerator_state=True)
        self.deepspeed_plugins = deepspeed_plugin
    # Every later look at the state copies PartialState's type.
    if getattr(self, "fsdp_plugin", None) is not None:
        self.distributed_type = DistributedType.FSDP
    if self.deepspeed_plugins is not None:
        self.distributed_type = DistributedType.DEEPSPEED


AcceleratorState.__init__ = _init_sharded
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
