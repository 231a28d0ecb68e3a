# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Training objectives: pure functions of tensors that know neither models nor files."""
