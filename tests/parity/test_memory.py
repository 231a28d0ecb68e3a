# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Loading and running HPS v2.1 in float32 takes no more memory than its float16 checkpoint and 15 %."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from open_clip import get_model_config
from open_clip.model import CLIP

from diffusers_craft import load_reward


# Peaks of the process's resident memory: before the weights, after loading them, and after a score.
MEASURE = """
import sys, threading, time
import torch
from PIL import Image
from diffusers_craft import load_reward

torch.set_num_threads(1)

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

reward = load_reward("hps_v2.1", sys.argv[1])
torch.nn.functional.gelu(torch.randn(4, 4) @ torch.randn(4, 4))
load_reward("hps_v2.1", sys.argv[2]).score(["warm up"], [Image.new("RGB", (8, 8))])  # libraries and their buffers
before = resident("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
assert reward.model is not None
loaded = resident("VmHWM:")
reward.score(["a"], [Image.new("RGB", (8, 8))])
print(loaded - before, resident("VmHWM:") - before)
"""


def config(width: int, layers: int) -> dict:
    vision = {"image_size": 32, "patch_size": 8, "width": width, "head_width": 64, "layers": layers}
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": layers}
    return {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}


def write(folder: Path, settings: dict) -> Path:
    with torch.device("meta"):
        model = CLIP(**settings)
    state = {
        name: torch.full_like(tensor, 0.01, dtype=torch.float16, device="cpu")
        for name, tensor in model.state_dict().items()
    }
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "settings",
    [config(512, 6), pytest.param(get_model_config("ViT-H-14"), marks=pytest.mark.slow)],
    ids=["small", "ViT-H"],
)
def test_peak_is_the_checkpoint_and_fifteen_percent(settings: dict, tmp_path: Path):
    for name in ("big", "tiny"):
        (tmp_path / name).mkdir()
    big, tiny = write(tmp_path / "big", settings), write(tmp_path / "tiny", config(64, 1))
    size = (big / "HPS_v2.1_compressed.pt").stat().st_size
    command = [sys.executable, "-c", MEASURE, str(big), str(tiny)]
    loading, scoring = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    print(f"  checkpoint {size / 1e6:.0f} MB, peak of loading {loading / size:.3f}, of scoring {scoring / size:.3f}")
    assert 0.9 * size < loading <= 1.15 * size, loading / size
    assert scoring <= 1.15 * size + 60e6, scoring / size  # the activations and one block in float32


def test_weights_rest_in_half_and_compute_in_float32(tmp_path: Path):
    """The blocks keep the checkpoint's precision between calls; the scores are those of a model cast as a whole."""
    from PIL import Image

    torch.manual_seed(0)
    settings = config(64, 2)
    write(tmp_path, settings)
    state = {name: torch.randn(tensor.shape).half() * 0.2 for name, tensor in CLIP(**settings).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "HPS_v2.1_compressed.pt")
    reward = load_reward("hps_v2.1", str(tmp_path))
    image = Image.effect_noise((32, 32), 50).convert("RGB")
    found = reward.score(["a", "b"], [image] * 2)
    clip = reward.model.clip
    block = clip.visual.transformer.resblocks[0]
    assert {weight.dtype for weight in block.parameters()} == {torch.float16}
    assert clip.visual.proj.dtype == torch.float32 and clip.token_embedding.weight.dtype == torch.float16

    whole = CLIP(**settings).eval()
    whole.load_state_dict(state)
    assert whole.visual.proj.dtype == torch.float32
    from diffusers_craft.rewards.preprocessing import fit_and_pad, normalize_pixels

    with torch.no_grad():
        pixels = whole.encode_image(normalize_pixels(fit_and_pad(image, 32)[None]), normalize=True)
        text = whole.encode_text(reward.model.tokenizer(["a", "b"]), normalize=True)
    torch.testing.assert_close(torch.from_numpy(found), (text @ pixels.T)[:, 0], atol=1e-6, rtol=0)
