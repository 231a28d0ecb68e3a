# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Reward models behind one interface: `load_reward(name).score(prompts, images)` gives raw scores."""

from .registry import load_reward, register_reward, reward_names


__all__ = ["load_reward", "register_reward", "reward_names"]
