# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Rewards against plain restatements of the official code, on random-weight models in the official formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rebuild_tiny.lexicon import build_tokenizer, build_tokenizer_files

from diffusers_craft import UserError, load_reward
from diffusers_craft.rewards.preprocessing import ClipProcessor, crop_center, fit_and_pad, to_rgb


SIZE = 32  # pixels that the random models take
TOKENS = 16
PROMPTS = ["a red circle", "", "two blue stars on a black background", "a red circle", "a green cross, " * 100]
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def picture(seed: int, size: tuple[int, int] = (40, 40), mode: str = "RGB") -> Image.Image:
    """A random picture with coarse structure; size is (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """One picture a prompt, of several shapes."""
    return [picture(i, size) for i, size in enumerate([(40, 40), (32, 32), (96, 32), (20, 60), (32, 20)])]


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hps")
    bpe = build_tokenizer_files(folder)["bpe_simple_vocab_16e6.txt.gz"]
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
        "text_cfg": {"context_length": TOKENS, "width": 32, "heads": 2, "layers": 2},
    }
    config["text_cfg"]["vocab_size"] = SimpleTokenizer(str(bpe)).vocab_size
    state = {name: tensor.half() for name, tensor in CLIP(**config).state_dict().items()}
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    text = {**VISION, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision = {**VISION, "image_size": SIZE, "patch_size": 8, "projection_dim": 24}
    config = CLIPConfig(vision_config=vision, text_config={**text, **special}, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head in the format of the official `.pth`: linear layers between the numbers that its dropouts take."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    state = {}
    for number, (inner, outer) in {0: (24, 16), 2: (16, 8), 4: (8, 8), 6: (8, 4), 7: (4, 1)}.items():
        state[f"layers.{number}.weight"] = torch.randn(outer, inner)
        state[f"layers.{number}.bias"] = torch.randn(outer)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def aesthetic_folder(clip_folder: Path, head_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aesthetic")
    for source in (head_file, *clip_folder.iterdir()):
        (folder / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="module")
def checkpoints(hps_folder: Path, clip_folder: Path, aesthetic_folder: Path) -> dict[str, str]:
    return {"hps_v2.1": str(hps_folder), "pickscore": str(clip_folder), "aesthetic": str(aesthetic_folder)}


@torch.no_grad()
def hpsv2_score(folder: Path, prompt: str, image: Image.Image) -> float:
    """The steps of `hpsv2.score` on one picture: its transform on the float tensor, `model(image, text)`, the cosine."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tvf

    model = CLIP(**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"], output_dict=True).eval()
    state = torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    tokenizer = SimpleTokenizer(str(folder / "bpe_simple_vocab_16e6.txt.gz"), context_length=TOKENS)
    pixels = tvf.to_tensor(image)
    height, width = pixels.shape[1:]
    scale = SIZE / float(max(height, width))
    new_size = tuple(round(side * scale) for side in (height, width))
    pixels = tvf.resize(pixels, new_size, InterpolationMode.BICUBIC, antialias=True)
    pad_h, pad_w = SIZE - new_size[0], SIZE - new_size[1]
    pixels = tvf.pad(pixels, [pad_w // 2, pad_h // 2, pad_w - pad_w // 2, pad_h - pad_h // 2], fill=0)
    pixels = tvf.normalize(pixels, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    out = model(pixels[None], tokenizer([prompt]))
    return torch.diagonal(out["image_features"] @ out["text_features"].T).item()


def features(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def pil_processor(folder: Path) -> object:
    """transformers' processor with PIL's resizing, which the published scores were made with."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    except ImportError:
        from transformers import CLIPImageProcessor as Processor
    return Processor.from_pretrained(folder)


@torch.no_grad()
def pickscore_readme(folder: Path, prompt: str, image: Image.Image) -> float:
    """`calc_probs` of PickScore's README up to its softmax."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_inputs = pil_processor(folder)(images=[image], return_tensors="pt")
    text_inputs = tokenizer(text=prompt, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
    image_embs = features(model.get_image_features(**image_inputs))
    image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
    text_embs = features(model.get_text_features(**text_inputs))
    text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
    return (model.logit_scale.exp() * (text_embs @ image_embs.T)[0]).item()


def test_hps_is_hpsv2_score(hps_folder: Path, images: list[Image.Image]):
    scores = load_reward("hps_v2.1", str(hps_folder), batch_size=3).score(PROMPTS, images)
    expected = [hpsv2_score(hps_folder, prompt, image) for prompt, image in zip(PROMPTS, images)]
    assert scores.dtype == np.float32 and scores.shape == (5,)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    assert np.ptp(expected) > 1e-2, "the random model must tell the pictures apart"


def test_hps_takes_the_file_itself(hps_folder: Path, images: list[Image.Image]):
    by_file = load_reward("hps_v2.1", str(hps_folder / "HPS_v2.1_compressed.pt")).score(PROMPTS, images)
    np.testing.assert_array_equal(by_file, load_reward("hps_v2.1", str(hps_folder)).score(PROMPTS, images))


def test_pickscore_is_its_readme(clip_folder: Path, images: list[Image.Image]):
    scores = load_reward("pickscore", str(clip_folder), batch_size=2).score(PROMPTS, images)
    expected = [pickscore_readme(clip_folder, prompt, image) for prompt, image in zip(PROMPTS, images)]
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert np.ptp(expected) > 1e-1


def test_aesthetic_is_plain_matmul(aesthetic_folder: Path, head_file: Path, images: list[Image.Image]):
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(aesthetic_folder).eval()
    state = torch.load(head_file, weights_only=True)
    images = [image.resize((40, 40)) for image in images]  # even margins: every library crops the same
    pixels = pil_processor(aesthetic_folder)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        x = features(clip.get_image_features(pixels)).numpy()
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    for number in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{number}.weight"].numpy().T + state[f"layers.{number}.bias"].numpy()
    scores = load_reward("aesthetic", str(aesthetic_folder)).score(PROMPTS, images)
    np.testing.assert_allclose(scores, x[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore", "aesthetic"])
def test_batch_size_does_not_change_scores(name: str, checkpoints: dict[str, str], images: list[Image.Image]):
    scores = [load_reward(name, checkpoints[name], batch_size=size).score(PROMPTS, images) for size in (1, 2, 16)]
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=2e-5)
    alone = load_reward(name, checkpoints[name]).score(PROMPTS[3:4], images[3:4])
    np.testing.assert_allclose(alone, scores[0][3:4], atol=2e-5)


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore", "aesthetic"])
def test_modes_score_as_their_rgb(name: str, checkpoints: dict[str, str]):
    reward = load_reward(name, checkpoints[name])
    rgba, rgb = picture(0, mode="RGBA"), picture(0)
    sixteen = Image.fromarray(np.asarray(picture(0, mode="L")).astype(np.uint16) * 257)
    modes = [rgba, rgb.convert("L"), sixteen, rgb.convert("P"), rgb.convert("1"), rgb.convert("CMYK")]
    plain = [rgb, *(mode.convert("RGB") for mode in (modes[1], modes[1], *modes[3:]))]
    np.testing.assert_allclose(reward.score([""] * 6, modes), reward.score([""] * 6, plain), atol=1e-6)
    assert np.isfinite(reward.score([""] * 2, [picture(3, (300, 100)), picture(3, (1, 1))])).all()


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore"])
def test_each_distinct_prompt_is_encoded_once(name: str, checkpoints: dict[str, str], images: list[Image.Image]):
    reward = load_reward(name, checkpoints[name], batch_size=2)
    seen: list[str] = []
    encode = reward.encode_prompts
    reward.encode_prompts = lambda prompts: seen.extend(prompts) or encode(prompts)
    reward.score(PROMPTS, images)
    assert seen == list(dict.fromkeys(PROMPTS))


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore", "aesthetic"])
def test_weights_load_late_and_can_be_released(name: str, checkpoints: dict[str, str], images: list[Image.Image]):
    reward = load_reward(name, checkpoints[name])
    assert "model" not in vars(reward)
    first = reward.score(PROMPTS, images)
    reward.release()
    assert "model" not in vars(reward)
    np.testing.assert_array_equal(reward.score(PROMPTS, images), first)


@pytest.mark.parametrize("name", ["hps_v2.1", "mps"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_cpu_is_refused_before_a_checkpoint_is_looked_for(name, dtype, tmp_path):
    """Where the layers rest in the checkpoint's half precision; on a GPU autocast takes the mix."""
    found = str(dtype).removeprefix("torch.")
    words = f"^--reward_precision: expected fp32 or auto for {name} on a CPU, found {found}$"
    with pytest.raises(UserError, match=words):
        load_reward(name, str(tmp_path / "nowhere"), device="cpu", dtype=dtype)
    with pytest.raises(UserError, match="--reward_checkpoint"):
        load_reward(name, str(tmp_path / "nowhere"), device="cpu", dtype=torch.float32)


def test_low_precision_towers_stay_close(clip_folder: Path, images: list[Image.Image]):
    exact = load_reward("pickscore", str(clip_folder))
    rough = load_reward("pickscore", str(clip_folder), dtype=torch.bfloat16)
    drift = np.abs(rough.score(PROMPTS, images) - exact.score(PROMPTS, images)).max()
    assert 0 < drift < 0.02 * exact.model.clip.logit_scale.exp().item()
    assert rough.score(PROMPTS, images).dtype == np.float32
    assert (rough.source["dtype"], exact.source["dtype"]) == ("bfloat16", "float32")


def test_float32_is_not_tf32(clip_folder: Path, images: list[Image.Image]):
    """PyTorch convolves in TF32 by default, so that patch embeddings on a GPU would keep ten bits of them."""
    new = hasattr(torch.backends.cudnn, "conv")
    owner = torch.backends.cudnn.conv if new else torch.backends.cudnn
    name, tf32 = ("fp32_precision", "tf32") if new else ("allow_tf32", True)
    reward, seen = load_reward("pickscore", str(clip_folder), dtype=torch.float32), []
    reward.model.clip.vision_model.register_forward_pre_hook(lambda *_: seen.append(getattr(owner, name)))
    before = getattr(owner, name)
    setattr(owner, name, tf32)  # whatever earlier tests left
    try:
        reward.score(PROMPTS, images)
        assert seen == ["ieee" if new else False] and getattr(owner, name) == tf32
    finally:
        setattr(owner, name, before)


def test_empty_batch_needs_no_weights(clip_folder: Path):
    reward = load_reward("pickscore", str(clip_folder))
    assert reward.score([], []).shape == (0,)
    assert "model" not in vars(reward)


def test_source_names_version_and_unit(hps_folder: Path, tmp_path: Path):
    source = load_reward("hps_v2.1", str(hps_folder)).source
    assert source["unit"] == "cosine, no logit scale" and source["revision"].startswith("sha256:")
    moved = tmp_path / hps_folder.name
    moved.mkdir()
    for file in hps_folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    by_file = load_reward("hps_v2.1", str(moved / "HPS_v2.1_compressed.pt")).source
    assert by_file == source, "a checkpoint that moved is the same checkpoint"
    state = torch.load(moved / "HPS_v2.1_compressed.pt", weights_only=True)
    state["state_dict"]["logit_scale"] += 1
    torch.save(state, moved / "HPS_v2.1_compressed.pt")
    assert load_reward("hps_v2.1", str(moved)).source["revision"] != source["revision"]


def test_fit_and_pad_keeps_everything_and_pads_with_black():
    white = Image.new("RGB", (30, 10), "white")
    pixels = fit_and_pad(white, 12)
    assert pixels.shape == (3, 12, 12)
    torch.testing.assert_close(pixels[0, :, 6], torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4))
    already = fit_and_pad(Image.new("RGB", (12, 7), "white"), 12)  # no resize, and still padded: 2 above, 3 below
    torch.testing.assert_close(already[0, :, 0], torch.tensor([0.0] * 2 + [1.0] * 7 + [0.0] * 3))
    assert fit_and_pad(Image.new("RGB", (400, 1), "white"), 12).shape == (3, 12, 12)


@pytest.mark.parametrize("size", [(40, 40), (96, 32), (31, 77), (64, 64), (32, 33), (5, 9)])
def test_crop_center_is_transformers_pil_processor(size: tuple[int, int], clip_folder: Path):
    image = picture(1, size)
    expected = pil_processor(clip_folder)(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ClipProcessor.from_folder(clip_folder)([image]), expected, atol=1e-6, rtol=0)
    assert crop_center(image, SIZE, SIZE).shape == (3, SIZE, SIZE)


def test_to_rgb_scales_sixteen_bits():
    ramp = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(ramp)))[0, :, 0], [0, 0, 1, 128, 255])
    wide = Image.fromarray(ramp.astype(np.int32))
    np.testing.assert_array_equal(np.asarray(to_rgb(wide))[0, :, 2], [0, 0, 1, 128, 255])
    eight = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    np.testing.assert_array_equal(np.asarray(to_rgb(eight))[0, :, 1], [0, 7, 255])


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_unknown_name():
    with pytest.raises(ValueError) as error:
        load_reward("hps")
    assert one_line(error) == (
        "--rewards: expected one of hps_v2.1, pickscore, aesthetic, image_reward, mps, clip_score, geneval, t2i_compbench, mllm or MODULE:CLASS, found 'hps'"
    )


@pytest.mark.parametrize(
    "name, words",
    [
        ("hps_v2.1", ["HPS_v2.1_compressed.pt of xswu/HPSv2", "1.97 GB", "--reward_checkpoint hps_v2.1=PATH"]),
        ("pickscore", ["yuvalkirstain/PickScore_v1", "3.94 GB", "--reward_checkpoint pickscore=PATH"]),
        ("aesthetic", ["sac+logos+ava1-l14-linearMSE.pth", "3.7 MB", "github.com/christophschuhmann"]),
    ],
)
def test_missing_checkpoint_offline_is_one_line(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError) as error:
        load_reward(name)
    text = one_line(error)
    assert all(word in text for word in words) and "offline" in text, text


def test_missing_clip_of_a_lone_head(head_file: Path):
    with pytest.raises(ValueError) as error:
        load_reward("aesthetic", str(head_file))
    text = one_line(error)
    assert "openai/clip-vit-large-patch14" in text and "1.71 GB" in text


@pytest.mark.parametrize("name", ["hps_v2.1", "pickscore", "aesthetic"])
def test_checkpoint_path_that_does_not_exist(name: str):
    with pytest.raises(ValueError) as error:
        load_reward(name, "./no/such/place")
    assert one_line(error).startswith(f"--reward_checkpoint {name}: expected a file")
    assert "./no/such/place" in str(error.value)


def test_folder_without_the_file(tmp_path: Path):
    with pytest.raises(ValueError, match="hps_v2.1: expected a file HPS_v2.1_compressed.pt in"):
        load_reward("hps_v2.1", str(tmp_path))
    with pytest.raises(ValueError, match="pickscore: expected a CLIPModel folder"):
        load_reward("pickscore", str(tmp_path))


def test_wrong_weights(hps_folder: Path, clip_folder: Path, tmp_path: Path, images: list[Image.Image]):
    torch.save({"state_dict": {"visual.proj": torch.zeros(2)}}, tmp_path / "HPS_v2.1_compressed.pt")
    (tmp_path / "open_clip_config.json").write_text((hps_folder / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match="hps_v2.1: expected HPS v2.1's state dict in") as error:
        load_reward("hps_v2.1", str(tmp_path)).score(PROMPTS, images)
    assert "\n" not in str(error.value)
    torch.save({"layers.0.weight": torch.zeros(1, 7), "layers.0.bias": torch.zeros(1)}, tmp_path / "head.pth")
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "HPS_v2.1_compressed.pt").unlink()
    with pytest.raises(ValueError, match="aesthetic: expected a head for 24 features, found 7 in"):
        load_reward("aesthetic", str(tmp_path)).score(PROMPTS, images)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"layers.0.weight": torch.zeros(4, 3), "layers.0.bias": torch.zeros(4)}, "one output in .*, found 4"),
        ({"layers.0.weight": torch.zeros(1, 3)}, "chain of linear layers in .*, found layers.0"),
        ({"bias": torch.zeros(3)}, "one output in .*, found None"),
    ],
)
def test_head_that_is_none(state: dict[str, torch.Tensor], message: str, tmp_path: Path):
    torch.save(state, tmp_path / "head.pth")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        load_reward("aesthetic", str(tmp_path)).score([""], [picture(0)])


def test_pickles_are_never_executed(tmp_path: Path, hps_folder: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "open_clip_config.json").write_text((hps_folder / "open_clip_config.json").read_text())
    torch.save({"state_dict": Evil()}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ValueError, match="hps_v2.1: expected tensors only in .*, found a pickle with code"):
        load_reward("hps_v2.1", str(tmp_path)).score([""], [picture(0)])
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text("{}")
    torch.save({"layers.0.weight": Evil()}, tmp_path / "clip" / "head.pth")
    with pytest.raises(ValueError, match="aesthetic: expected tensors only in .*head.pth, found a pickle with code"):
        load_reward("aesthetic", str(tmp_path / "clip")).score([""], [picture(0)])
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "prompts, pictures, message",
    [
        (["a", "b"], [picture(0)], "images of reward pickscore: expected one for each of 2 prompts, found 1"),
        ("ab", [picture(0)] * 2, "prompts of reward pickscore: expected a list of texts, found one text"),
        (
            ["a", None],
            [picture(0)] * 2,
            "prompts of reward pickscore: expected builtins.str, found NoneType at index 1",
        ),
        (["a"], [np.zeros((4, 4))], "images of reward pickscore: expected PIL.Image.Image, found ndarray at index 0"),
    ],
)
def test_bad_input(prompts: list, pictures: list, message: str, clip_folder: Path):
    with pytest.raises(ValueError) as error:
        load_reward("pickscore", str(clip_folder)).score(prompts, pictures)
    assert one_line(error) == message


def test_batch_size_below_one(clip_folder: Path):
    with pytest.raises(ValueError, match="batch_size of reward pickscore: expected at least 1, found 0"):
        load_reward("pickscore", str(clip_folder), batch_size=0)
