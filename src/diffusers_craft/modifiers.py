# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Words that ask a text-to-image model for a good picture, whatever its subject.

The template refiner appends them; in the tiny world they come with clean pictures, as they do in web data.
"""

MODIFIERS = (
    "sharp focus",
    "vivid colors",
    "crisp edges",
    "clean composition",
    "high quality",
    "masterpiece",
    "professional",
    "highly detailed",
)
MAX_MODIFIERS = 4  # added to a prompt at once
