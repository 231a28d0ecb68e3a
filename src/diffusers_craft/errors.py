# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What a user can put right, told apart from a defect by its class."""


class UserError(ValueError):
    """One line that names the flag or column, what was expected and what was found; scripts end with it, and exit code 2.

    Every other exception is a defect, whose traceback is needed.
    """
