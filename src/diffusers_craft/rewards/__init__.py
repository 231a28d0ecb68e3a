# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
