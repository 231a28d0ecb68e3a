# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Reward models behind one interface: `load_reward(name).score(prompts, images)` gives raw scores."""

from .registry import check_reward_name, load_reward, register_reward, register_spec, reward_names


__all__ = ["check_reward_name", "load_reward", "register_reward", "register_spec", "reward_names"]
