# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The flags of optimizer, schedule and precision through the scripts, against a loop of PyTorch's own."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.optimization import get_scheduler
from training_driver import losses, run_json, same, weights
from transformers.optimization import Adafactor

from diffusers_craft import SD15, TrainingSettings, craft_loss
from diffusers_craft.training.model import trained_weights


STEPS = ["--train_batch_size=4", "--gradient_accumulation_steps=2", "--max_train_steps=3"]
WARMUP = ["--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=4"]


def _reference(base, batches, create, max_grad_norm: float = 1.0, schedule=("constant", 0)) -> dict[str, torch.Tensor]:
    """Trains on the same micro-batches with PyTorch alone."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").train()
    optimizer = create(unet.parameters())
    scheduler = get_scheduler(schedule[0], optimizer, num_warmup_steps=schedule[1], num_training_steps=len(batches))
    for step in batches:
        for batch in step:
            hidden = batch.conditioning["encoder_hidden_states"]
            prediction = unet(batch.noisy_latents, batch.timesteps, hidden).sample
            (craft_loss(prediction, batch.target, batch.weights) / len(step)).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return unet.state_dict()


def _adamw(**changes):
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2} | changes
    return lambda parameters: torch.optim.AdamW(parameters, **options)


def _adafactor(weight_decay: float = 1e-2):
    options = {"lr": 1e-3, "scale_parameter": False, "relative_step": False, "weight_decay": weight_decay}
    return lambda parameters: Adafactor(parameters, **options)


@pytest.mark.parametrize(
    ("flags", "create", "options"),
    [
        ([], _adamw(), {}),
        (["--learning_rate=3e-3"], _adamw(lr=3e-3), {}),
        (["--scale_lr", "--learning_rate=1e-4"], _adamw(lr=8e-4), {}),
        (["--adam_beta1=0.5"], _adamw(betas=(0.5, 0.999)), {}),
        (["--adam_beta2=0.5"], _adamw(betas=(0.9, 0.5)), {}),
        (["--adam_weight_decay=10"], _adamw(weight_decay=10.0), {}),
        (["--adam_epsilon=0.1"], _adamw(eps=0.1), {}),
        (["--max_grad_norm=1e-8"], _adamw(), {"max_grad_norm": 1e-8}),
        (WARMUP, _adamw(), {"schedule": ("constant_with_warmup", 4)}),
        (["--lr_scheduler=cosine"], _adamw(), {"schedule": ("cosine", 0)}),
        (["--use_adafactor"], _adafactor(), {}),
        (["--use_adafactor", "--adam_weight_decay=10"], _adafactor(10.0), {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_is_the_plain_loop(train, kept, random_sd15, flags, create, options):
    found = weights(train("sd15", "out", *STEPS, *flags))
    expected = _reference(random_sd15, kept["batches"], create, **options)
    default = _reference(random_sd15, kept["batches"], _adamw())
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-5)
    if flags:  # the flag is seen
        assert max((value - default[name]).abs().max() for name, value in found.items()) > 2e-4


@pytest.mark.parametrize("train_dtype", ["fp32", "bf16"])
def test_8bit_adam_trains_and_resumes_exactly(train, kept, train_dtype):
    pytest.importorskip("bitsandbytes")
    common = [*STEPS, "--use_8bit_adam", f"--train_dtype={train_dtype}", "--checkpointing_steps=1"]
    common += ["--mixed_precision=bf16"] if train_dtype == "bf16" else []
    whole = train("sd15", "whole", *common)
    optimizer = kept["run"].model.optimizer.optimizer
    assert type(getattr(optimizer, "inner", optimizer)).__name__ == "AdamW8bit"
    resumed = train("sd15", "resumed", *common, f"--resume_from_checkpoint={whole}/checkpoint-1")
    assert same(weights(whole), weights(resumed))
    assert max(losses(whole)) < 1.1 * losses(train("sd15", "plain", *STEPS))[0]


@pytest.mark.parametrize("flags", [[], ["--use_adafactor"]], ids=["adamw", "adafactor"])
def test_bfloat16_weights_train_resume_exactly_and_load(train, kept, flags, random_sd15):
    common = [*STEPS, *flags, "--checkpointing_steps=1"]
    plain = train("sd15", "plain", *common)
    common += ["--train_dtype=bf16", "--mixed_precision=bf16", "--gradient_checkpointing"]
    common += ["--validation_prompt=a thing", "--num_validation_images=1", "--validation_epochs=1"]
    folder = train("sd15", "out", *common)
    assert {value.dtype for value in weights(folder).values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in kept["run"].denoiser.parameters()} == {torch.bfloat16}
    resumed = train("sd15", "resumed", *common, f"--resume_from_checkpoint={folder}/checkpoint-1")
    assert same(weights(folder), weights(resumed)) and losses(folder) == losses(resumed)
    assert losses(folder) == pytest.approx(losses(plain), abs=0.03)
    base, moved, compared = weights(random_sd15), weights(folder), 0
    for name, value in weights(plain).items():  # three steps of 1e-3 each, lost by rounding where it is to nearest
        if value.numel() > 500 and (value - base[name]).abs().mean() > 5e-4:
            cosine = torch.cosine_similarity(
                *((w.float() - base[name]).flatten() for w in (value, moved[name])), dim=0
            )
            assert cosine > 0.5, name
            compared += 1
    assert compared > 3
    assert len(list((folder / "validation").rglob("*.png"))) >= 2
    assert UNet2DConditionModel.from_pretrained(folder, subfolder="unet").dtype == torch.float32


def test_master_weights_and_vae_stay_float32_in_mixed_precision(train, kept, monkeypatch):
    from diffusers import AutoencoderKL

    seen, encode = [], AutoencoderKL.encode
    monkeypatch.setattr(
        AutoencoderKL, "encode", lambda vae, pixels: seen.append((pixels.dtype, vae.dtype)) or encode(vae, pixels)
    )
    train("sdxl", "out", *STEPS, "--mixed_precision=bf16", "--resolution=32")
    assert set(seen) == {(torch.float32, torch.float32)}
    run = kept["run"]
    assert {parameter.dtype for parameter in run.denoiser.parameters()} == {torch.float32}
    assert {value.dtype for state in run.model.optimizer.state.values() for value in state.values()} == {torch.float32}
    batch = kept["batches"][0][0]
    assert batch.conditioning["encoder_hidden_states"].dtype == torch.bfloat16
    assert batch.conditioning["time_ids"].dtype == batch.noisy_latents.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_a_frozen_unet_takes_the_precision_of_the_passes(random_sd15, dtype):
    """fp16 needs a GPU to train; that its master weights are float32 shows without one."""
    for use_lora in (False, True):
        settings = TrainingSettings(pretrained_model_name_or_path="x", dataset_name="x", use_lora=use_lora)
        unet = UNet2DConditionModel.from_pretrained(random_sd15, subfolder="unet")
        trained_weights(settings, SD15).prepare(unet, dtype)
        for name, parameter in unet.named_parameters():
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else dtype), name
            assert parameter.requires_grad is ("lora_" in name or not use_lora)


def test_gradient_checkpointing_changes_memory_only(train, kept):
    plain = train("sd15", "plain", *STEPS)
    folder = train("sd15", "out", *STEPS, "--gradient_checkpointing")
    assert kept["run"].denoiser.is_gradient_checkpointing
    assert losses(folder) == pytest.approx(losses(plain), abs=1e-6)


def test_channels_last_changes_the_layout_only(train, kept):
    plain = train("sd15", "plain", *STEPS, "--checkpointing_steps=2")
    folder = train("sd15", "out", *STEPS, "--channels_last", "--use_ema", "--checkpointing_steps=2")
    assert kept["run"].denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert losses(folder) == pytest.approx(losses(plain), abs=1e-5)


def test_allow_tf32_is_off_unless_asked_for(train, monkeypatch):
    found = []
    for flag, flags in ((False, []), (True, ["--allow_tf32"])):
        train("sd15", f"tf32-{flag}", *STEPS[:2], "--max_train_steps=1", *flags)
        found += [torch.backends.cuda.matmul.allow_tf32 is flag, torch.backends.cudnn.allow_tf32 is flag]
    torch.backends.cuda.matmul.allow_tf32 = False
    assert all(found)


def test_torch_compile_compiles_every_transformer_block_and_leaves_names_alone(train, kept, monkeypatch):
    """With a backend that runs each graph as it is: that blocks are compiled at all, and that nothing else changes."""
    graphs, compile_module = [], torch.nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compile_module(module, backend=backend, **options)
    )
    torch._dynamo.reset()
    plain = train("sd15", "plain", *STEPS)
    assert not graphs
    folder = train("sd15", "out", *STEPS, "--torch_compile", "--checkpointing_steps=2", "--use_ema")
    assert graphs
    blocks = [module for module in kept["run"].denoiser.modules() if isinstance(module, BasicTransformerBlock)]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    assert losses(folder) == pytest.approx(losses(plain), abs=1e-5)
    for part in (folder, folder / "checkpoint-2"):
        assert weights(part).keys() == weights(plain).keys()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_inductor_gives_the_same_run(train, family):
    flags = ["--mixed_precision=bf16", "--gradient_checkpointing"]
    plain = train(family, "plain", *STEPS, *flags)
    compiled = train(family, "compiled", *STEPS, *flags, "--torch_compile")
    assert losses(compiled) == pytest.approx(losses(plain), abs=0.01)
    assert weights(compiled).keys() == weights(plain).keys()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mixed_precision=fp16"], "--mixed_precision: expected bf16 or no without a GPU, found fp16"),
        (["--train_dtype=bf16"], "--train_dtype bf16: expected --mixed_precision bf16 with it, found no"),
    ],
)
def test_precisions_that_do_not_fit_are_refused(train, flags, message):
    with pytest.raises(ValueError, match=message):
        train("sd15", "out", *STEPS, *flags)


def test_accelerates_environment_does_not_change_the_accumulation(train, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    assert run_json(train("sd15", "out", *STEPS))["global_batch_size"] == 8
