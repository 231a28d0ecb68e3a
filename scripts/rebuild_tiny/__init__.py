# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Trains what `diffusers_craft.tiny` embeds; see `rebuild_tiny_models.py`."""
