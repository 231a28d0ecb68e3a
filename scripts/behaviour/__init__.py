# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What `record_behaviour.py` records, how it runs it, and how it compares two records."""
