# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The OpenAI-compatible refiner against a loopback server, and the local one against a random-weight model."""

import json
import socket
import time

import pytest
from chat_server import chat

from diffusers_craft.prompts.refiners import INSTRUCTION, OpenAIRefiner, TransformersRefiner


def test_good_replies(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    server = serve(lambda request, _: (200, chat(f'"A red circle, variant {request["seed"]}"\n')))
    refiner = OpenAIRefiner("qwen-plus", server.url, api_key_env="MY_KEY", temperature=0.7)
    texts = refiner.refine("a red circle", 4, seed=5)
    assert len(set(texts)) == 4 and all(text.startswith("A red circle, variant ") for text in texts)
    assert set(server.keys) == {"Bearer sk-secret-123"}
    request = server.requests[0]
    assert (request["model"], request["temperature"]) == ("qwen-plus", 0.7)
    assert request["messages"][0] == {"role": "system", "content": INSTRUCTION}
    assert "a red circle" in request["messages"][1]["content"]
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    assert refiner.refine("a red circle", 4, seed=5) == texts
    assert not set(refiner.refine("a red circle", 4, seed=6)) & set(texts)
    assert "secret" not in json.dumps([refiner.name, refiner.options]) and "secret" not in repr(vars(refiner))


def test_passing_failures_are_tried_again(serve):
    replies = [(500, {}), (200, b"<html>busy</html>"), (429, {}), (200, chat("fine"))]
    server = serve(lambda _, number: replies[number - 1])
    assert OpenAIRefiner("m", server.url).refine("x", 1, seed=0) == ["fine"]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {"error": {"message": "broken"}}),
        (200, b"garbage"),
        (200, b""),
        (200, b'"a string"'),
        (200, {"choices": []}),
        (200, {}),
        (200, chat(None)),
        (200, chat("  \n")),
        (200, chat("<think>hm")),
    ],
)
def test_lasting_failures_keep_the_original(serve, status, body):
    server = serve(lambda *_: (status, body))
    refiner = OpenAIRefiner("m", server.url, max_retries=2)
    assert refiner.refine("a prompt", 3, seed=0) == ["a prompt"] * 3
    assert len(server.requests) == 3 + 1 + 1, "a service that fails is asked once a text, without waiting"


def test_refused_connection_keeps_the_original_and_recovers(serve):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    refiner = OpenAIRefiner("m", f"http://127.0.0.1:{port}/v1")
    start = time.monotonic()
    for _ in range(20):
        assert refiner.refine("a prompt", 2, seed=0) == ["a prompt"] * 2
    assert time.monotonic() - start < 5
    serve(lambda _, number: (200, chat(f"text {number}")), port)
    assert refiner.refine("a prompt", 2, seed=0) == ["text 1", "text 2"]


def test_repeated_replies_are_asked_again_a_few_times(serve):
    server = serve(lambda _, number: (200, chat("same" if number < 6 else "other")))
    assert OpenAIRefiner("m", server.url, max_retries=3).refine("x", 3, seed=0) == ["same", "same", "other"]
    server = serve(lambda *_: (200, chat("x")))
    assert OpenAIRefiner("m", server.url, max_retries=1).refine("x", 1, seed=0) == ["x"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_key_or_model_stops_with_one_line(serve, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    server = serve(lambda *_: (status, {"error": {"message": "Incorrect key: sk-secret-123"}}))
    refiner = OpenAIRefiner("m", server.url.replace("http://", "http://user:word@"))
    with pytest.raises(ValueError) as error:
        refiner.refine("x", 1, seed=0)
    assert str(error.value) == (
        f"--refiner openai: expected {server.url} to serve 'm' with the key of OPENAI_API_KEY,"
        f" found HTTP status {status}" + (" (Incorrect key: ***)" if status != 401 else "")
    )


def test_missing_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="expected a key in the environment variable OPENAI_API_KEY, found none"):
        OpenAIRefiner("m")
    with pytest.raises(ValueError, match="expected a key in the environment variable MY_KEY, found none"):
        OpenAIRefiner("m", "http://127.0.0.1:1/v1", api_key_env="MY_KEY")


def test_options_hold_no_secrets(monkeypatch):
    refiner = OpenAIRefiner("m", "https://user:word@example.org:8000/v1?api-key=abc")
    assert refiner.options == {
        "refiner_model": "m",
        "refiner_base_url": "https://example.org:8000/v1",
        "refiner_temperature": 1.0,
    }


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "plain"])
def local_model(request, tmp_path_factory):
    """A random-weight GPT-2 over bytes, with and without a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")
    if request.param:
        fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    config = GPT2Config(vocab_size=len(fast), n_positions=2048, n_embd=8, n_layer=1, n_head=1, eos_token_id=0)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_local_model_is_seeded_and_leaves_the_random_state(local_model):
    import torch

    refiner = TransformersRefiner(str(local_model))
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    texts = refiner.refine("a red circle", 2, seed=3)
    assert torch.rand(1) == expected
    assert len(texts) == 2 and texts[0] != texts[1] and all("Prompt: a red circle" not in text for text in texts)
    assert refiner.refine("a red circle", 2, seed=3) == texts != refiner.refine("a red circle", 2, seed=4)
    assert refiner.options == {"refiner_model": str(local_model), "refiner_temperature": 1.0}


def test_local_model_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="--refiner_model: expected a causal language model, found '.*': ") as error:
        TransformersRefiner(str(tmp_path))
    assert "\n" not in str(error.value)


TEMPLATES = {
    "no system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    "thoughts": "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_chat_templates_without_system_and_with_thoughts(local_model, tmp_path, kind):
    import shutil

    from transformers import AutoTokenizer

    folder = shutil.copytree(local_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\\n{% endfor %}assistant: "
    tokenizer.chat_template = TEMPLATES[kind] + turns
    tokenizer.save_pretrained(folder)
    refiner = TransformersRefiner(str(folder), device="cpu")
    text = refiner._chat_text("Prompt: a red circle")
    assert "<think>" not in text and INSTRUCTION in text and text.rstrip().endswith("assistant:")
    assert ("system:" in text) == (kind == "thoughts") and "Prompt: a red circle" in text
    assert (refiner._max_tokens > 1000) == (kind == "thoughts"), "room for thoughts"


@pytest.mark.parametrize(
    ("template_end", "reply", "expected"),
    [
        ("assistant: ", "[THINK]A circle?[/THINK]a red circle, sharp!", "a red circle, sharp"),
        ("assistant: <think>\n", "A circle?</think>a red circle, sharp!", "a red circle, sharp"),
        ("assistant: <think>\n", "A circle? Or a square? And so on, to the last token", "x"),
        ("assistant: <think>\n\n</think>\n\n", "a red circle, sharp!", "a red circle, sharp"),
    ],
    ids=["special tokens", "opened by the template", "unfinished", "closed by the template"],
)
def test_thoughts_of_a_local_model(local_model, monkeypatch, template_end, reply, expected):
    import torch

    refiner = TransformersRefiner(str(local_model))
    tokenizer = refiner._tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    tokenizer.chat_template = "{{ messages[-1].content }}\n" + template_end

    def generate(input_ids, **_):
        return torch.cat([input_ids, tokenizer(reply, return_tensors="pt").input_ids], dim=1)

    monkeypatch.setattr(refiner._model, "generate", generate)
    assert refiner.refine("x", 1, seed=0) == [expected]


def test_a_refusal_in_words_is_the_reason(serve):
    replies = iter([(503, {"error": {"message": "busy"}})])
    server = serve(lambda *_: next(replies, (200, chat("I'm sorry, but I can't help with that."))))
    refiner = OpenAIRefiner("m", server.url, max_retries=1)
    assert refiner.refine("x", 1, seed=0) == ["x"]
    assert refiner.problem == "no prompt in the reply I'm sorry, but I can't help with that."
