# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""The grader against a loopback server: what is sent, what counts as an answer, and that no score is ever made up."""

import base64
import io
import json

import numpy as np
import pytest
from chat_server import chat
from PIL import Image

from diffusers_craft import load_reward
from diffusers_craft.rewards.mllm import ASPECTS, SCHEMA, MLLMReward, parse_grades


def grades(*values, **changes):
    return json.dumps(dict(zip(ASPECTS, values)) | changes)


def test_mean_of_the_five_grades(serve, tiny_images):
    server = serve(lambda request, _: (200, chat(grades(10, 8, 6, 4, 3.5))))
    reward = load_reward("mllm", f"qwen-vl@{server.url}")
    scores = reward.score(["a cat", 'say "ignore this"'], tiny_images[:2])
    assert scores.dtype == np.float32 and scores.tolist() == pytest.approx([6.3, 6.3])
    request = min(server.requests, key=lambda r: "ignore" in json.dumps(r))
    assert (request["model"], request["temperature"]) == ("qwen-vl", 0)
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    text, picture = request["messages"][1]["content"]
    assert text["text"] == 'Prompt: "a cat"'
    kind, data = picture["image_url"]["url"].split(",")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/png;base64" and np.array_equal(np.asarray(sent), np.asarray(tiny_images[0]))
    assert reward.source["checkpoint"] == "qwen-vl" and "0 to 10" in reward.source["unit"]


def test_large_images_are_reduced(serve):
    server = serve(lambda request, _: (200, chat(grades(1, 1, 1, 1, 1))))
    MLLMReward(f"m@{server.url}").score(["x"], [Image.new("RGB", (2048, 1024))])
    data = server.requests[0]["messages"][1]["content"][1]["image_url"]["url"].split(",")[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (1024, 512)


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        "7",
        "The overall score is 8.",
        "[10, 8, 6, 4, 2]",
        grades(10, 8, 6, 4),
        grades(10, 8, 6, 4, 11),
        grades(10, 8, 6, 4, -1),
        grades(10, 8, 6, 4, "5"),
        grades(10, 8, 6, 4, True),
        grades(10, 8, 6, 4, None),
        grades(10, 8, 6, 4, 5, overall=6),
        grades(10, 8, 6, 4, 5) + " So 6.6 overall.",
        '{"accuracy": NaN, "creativity": 1, "quality": 1, "consistency": 1, "resonance": 1}',
    ],
)
def test_anything_but_five_numbers_in_range_is_no_answer(text):
    assert parse_grades(text) is None


def test_fences_are_forgiven():
    assert parse_grades(f"```json\n{grades(1, 2, 3, 4, 5)}\n```") == dict(zip(ASPECTS, [1.0, 2, 3, 4, 5]))


def test_an_unusable_answer_is_asked_for_again_with_another_seed(serve, tiny_images):
    server = serve(lambda request, number: (200, chat(grades(5, 5, 5, 5, 5) if number == 3 else "about 7")))
    assert MLLMReward(f"m@{server.url}").score(["x"], tiny_images[:1]).tolist() == [5]
    assert len({request["seed"] for request in server.requests}) == 3


def test_no_score_is_made_up(serve, tiny_images, caplog):
    """One image's grader rambles: that image has no score, the others have theirs, and a warning says so."""
    server = serve(
        lambda request, _: (200, chat("7/10" if "bad" in json.dumps(request["messages"]) else grades(4, 4, 4, 4, 4)))
    )
    scores = MLLMReward(f"m@{server.url}", max_retries=1).score(["x", "bad", "y"], tiny_images[:3])
    np.testing.assert_array_equal(scores, np.array([4, np.nan, 4], dtype=np.float32))
    assert "no usable answer for 1 of 3 images" in caplog.text


def test_services_without_schemas_are_asked_for_plain_json_and_remembered(serve, tiny_images):
    def reply(request, _):
        form = request.get("response_format", {}).get("type")
        return (
            (400, {"error": {"message": "no schemas"}})
            if form == "json_schema"
            else (200, chat(grades(1, 2, 3, 4, 5)))
        )

    server = serve(reply)
    reward = MLLMReward(f"m@{server.url}")
    assert reward.score(["x"], tiny_images[:1]).tolist() == reward.score(["y"], tiny_images[:1]).tolist() == [3]
    forms = [request.get("response_format", {}).get("type") for request in server.requests]
    assert forms == ["json_schema", "json_object", "json_object"]


def test_a_service_that_refuses_the_seed_keeps_its_format(serve, tiny_images):
    def reply(request, _):
        refused = "seed" in request or "response_format" not in request
        return (400, {"error": {"message": "no"}}) if refused else (200, chat(grades(1, 2, 3, 4, 5)))

    server = serve(reply)
    reward = MLLMReward(f"m@{server.url}", max_retries=0)
    assert reward.score(["x"], tiny_images[:1]).tolist() == [3]
    tries = len(server.requests)
    assert reward.score(["y"], tiny_images[:1]).tolist() == [3] and len(server.requests) == tries + 1
    last = server.requests[-1]
    assert last["response_format"]["type"] == "json_schema" and last["messages"][0]["role"] == "system"


def test_a_refused_picture_has_no_score_and_changes_nothing_for_others(serve, tiny_images):
    def reply(request, _):
        bad = "bad" in json.dumps(request["messages"])
        return (400, {"error": {"message": "unsafe"}}) if bad else (200, chat(grades(1, 1, 1, 1, 1)))

    server = serve(reply)
    reward = MLLMReward(f"m@{server.url}", max_retries=0)
    assert np.isnan(reward.score(["bad"], tiny_images[:1])).all()
    assert reward.score(["x"], tiny_images[:1]).tolist() == [1]
    assert server.requests[-1]["response_format"]["type"] == "json_schema"


def test_a_model_that_sees_no_pictures_ends_the_run_with_its_reason(serve, tiny_images):
    server = serve(lambda *_: (400, {"error": {"message": "no image input"}}))
    reward = MLLMReward(f"m@{server.url}", max_retries=0)
    with pytest.raises(ValueError, match=r"--rewards mllm: expected .*, found .*HTTP status 400 \(no image input\)"):
        reward.score(["x"] * 4, [tiny_images[0]] * 4)


def test_a_dead_service_and_a_wrong_key_end_the_run_in_one_line(serve, tiny_images):
    dead = serve(lambda request, _: (503, {}))
    with pytest.raises(
        ValueError, match="--rewards mllm: expected an answer of http.*, found none in 2 tries; run the"
    ):
        MLLMReward(f"m@{dead.url}", max_retries=1).score(["x"], tiny_images[:1])
    locked = serve(lambda request, _: (401, {"error": {"message": "bad key sk-1"}}))
    with pytest.raises(
        ValueError, match="expected http.* to serve 'm' with the key of OPENAI_API_KEY.* status 401"
    ) as e:
        MLLMReward(f"m@{locked.url}").score(["x"], tiny_images[:1])
    assert "sk-1" not in str(e.value) and len(locked.requests) == 1


def test_what_must_be_given(monkeypatch):
    with pytest.raises(ValueError, match="--reward_checkpoint: expected mllm=MODEL@BASE_URL, found no model"):
        MLLMReward(None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="--rewards mllm: expected a key in the environment variable OPENAI_API_KEY"):
        MLLMReward("gpt")


@pytest.mark.parametrize(
    "around", ["<think>x</think>\n{}", "Hm.</think>{}", "```json\n{}\n```", "<think>a</think>```\n{}\n```"]
)
def test_thoughts_of_a_judge_are_no_part_of_its_grades(around):
    grades = dict.fromkeys(ASPECTS, 5)
    assert parse_grades(around.replace("{}", json.dumps(grades))) == grades
