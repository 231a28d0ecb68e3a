# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Weights that even out the timesteps' pull on the weights (min-SNR-gamma, arXiv 2303.09556, section 3.4)."""

import torch


def min_snr_weights(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, gamma: float, prediction_type: str
) -> torch.Tensor:
    """min(SNR, gamma) on the error of x_0, restated for what the model predicts; SNR = abar / (1 - abar).

    With d = the error of x_0, the error of the noise is SNR * d and that of the velocity (SNR + 1) * d. Without noise,
    as at the last timestep of a zero-terminal-SNR schedule, the weight is its limit (1 for noise, 0 else), not 0 / 0.

    Args:
        alphas_cumprod (`torch.Tensor`): (T,) abar of every timestep, in [0, 1).
        timesteps (`torch.Tensor`): (B,) int64, in [0, T).
        gamma (`float`): above 0; the paper's value is 5.
        prediction_type (`str`): `epsilon`, `v_prediction` or `sample`.

    Returns:
        `torch.Tensor`: (B,) dimensionless weights, float32.
    """
    abar = alphas_cumprod[timesteps].float()
    capped = (abar / (1 - abar)).clamp(max=gamma)
    if prediction_type == "sample":
        return capped
    if prediction_type == "v_prediction":
        return capped * (1 - abar)  # 1 / (SNR + 1) = 1 - abar
    return (gamma * (1 - abar) / abar).clamp(max=1.0)
