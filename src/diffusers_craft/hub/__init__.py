# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Publishing on the Hugging Face Hub: datasets and models, each with a card and in one commit."""
