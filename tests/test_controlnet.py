# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""A tuned UNet drops into diffusers' ControlNet pipelines (the paper's Figure 6): same keys, same pictures, still steered."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from PIL import Image, ImageFilter

from diffusers_craft import load_pipeline


PIPELINES = {
    "random_sd15": StableDiffusionControlNetPipeline,
    "random_sdxl": StableDiffusionXLControlNetPipeline,
}


def canny_map(image: Image.Image) -> Image.Image:
    """Edges as white lines on black, three channels, as a canny ControlNet reads them."""
    edges = np.asarray(image.convert("L").filter(ImageFilter.FIND_EDGES)) > 24
    return Image.fromarray((edges * 255).astype(np.uint8)).convert("RGB")


@pytest.fixture(params=PIPELINES)
def tuned(request, tmp_path):
    """A folder as training leaves it: the base's pipeline with another UNet; and its ControlNet pipeline's class."""
    pipeline = load_pipeline(str(request.getfixturevalue(request.param)), device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    pipeline.save_pretrained(tmp_path)
    return tmp_path, PIPELINES[request.param], str(request.getfixturevalue(request.param))


def draw(pipeline, **condition):
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    return pipeline("ab", generator=torch.Generator().manual_seed(0), **options, **condition).images


def test_the_tuned_unet_draws_in_a_controlnet_pipeline(tuned, make_images):
    folder, kind, base_folder = tuned
    plain, base = load_pipeline(str(folder), device="cpu"), load_pipeline(base_folder, device="cpu")
    controlnet = ControlNetModel.from_unet(
        base.unet, conditioning_channels=3
    )  # trained on the base, as published ones
    pipeline = kind.from_pretrained(folder, controlnet=controlnet)
    for name, tensor in plain.unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], tensor), name
    edges = canny_map(make_images(1)[0])
    silent = draw(pipeline, image=edges)
    # A ControlNet's output layers start at zero: it must not change a pixel, and the UNet must be the tuned one.
    np.testing.assert_allclose(silent, draw(plain), atol=1e-5)
    assert np.abs(silent - draw(base)).max() > 1e-2

    with torch.no_grad():
        for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            layer.weight.normal_(0, 0.5)
        controlnet.controlnet_cond_embedding.conv_out.weight.normal_(0, 0.5)
    steered = draw(pipeline, image=edges)
    other = draw(pipeline, image=canny_map(make_images(1, seed=9)[0]))
    assert np.abs(steered - silent).max() > 1e-2 and np.abs(steered - other).max() > 1e-4
    off = draw(pipeline, image=edges, controlnet_conditioning_scale=0.0)
    np.testing.assert_allclose(off, silent, atol=1e-5)
