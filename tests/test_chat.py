# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Services that refuse a part of the request, limit requests, or will never answer."""

import time

import pytest
from chat_server import chat

from diffusers_craft import UserError
from diffusers_craft.core.chat import ChatClient


def ask(client, number=0, content="Prompt: x"):
    return client.ask("Rewrite.", content, seed=number, temperature=1.0)


def refusing(*unknown):
    """Answers 422 as long as the request has one of these: a parameter's name, or the system's message."""

    def reply(request, _):
        has_system = any(message["role"] == "system" for message in request["messages"])
        if any(name in request or (name == "system" and has_system) for name in unknown):
            return 422, {"detail": "extra_forbidden"}
        return 200, chat(request["messages"][-1]["content"])

    return reply


@pytest.mark.parametrize("unknown", [["seed"], ["system"], ["seed", "system"], ["temperature"], []])
def test_a_part_that_is_refused_is_left_out_and_remembered(serve, unknown):
    server = serve(refusing(*unknown))
    client = ChatClient("--refiner openai", "m", server.url)
    answers = [ask(client, number) for number in range(4)]
    assert all(answer.endswith("Prompt: x") for answer in answers)
    assert ("Rewrite." in answers[0]) == any(name in ("system", "temperature") for name in unknown)
    assert [("seed" in r, len(r["messages"])) for r in server.requests[-3:]] == [
        ("seed" in server.requests[-1], len(server.requests[-1]["messages"]))
    ] * 3, "the form that was taken is used at once"
    assert ("seed" in server.requests[-1]) == (unknown in (["system"], []))
    assert len(server.requests) <= 4 + 4


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, {"error": {"message": "model not exist"}}, r"HTTP status 400 \(model not exist\)"),
        (402, {"error": {"message": "Insufficient Balance"}}, r"HTTP status 402 \(Insufficient Balance\)"),
        (405, {"detail": "Method Not Allowed"}, r"HTTP status 405 \(Method Not Allowed\)"),
        (422, {"detail": "no"}, r"HTTP status 422 \(no\)"),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, r"HTTP status 429 \(quota\)"),
        (413, {}, "HTTP status 413$"),
        (403, {"error": {"message": "no access"}}, r"HTTP status 403 \(no access\)"),
    ],
)
def test_what_will_never_pass_ends_the_run_with_the_services_reason(serve, status, body, reason):
    client = ChatClient("--refiner openai", "m", serve(lambda *_: (status, body)).url)
    with pytest.raises(
        UserError, match=rf"^--refiner openai: expected http.* to serve 'm' .*, found {reason}"
    ) as error:
        for number in range(10):
            ask(client, number, f"Prompt: thing {number}")
    assert "\n" not in str(error.value)


def test_one_text_that_is_refused_again_and_again_ends_no_run(serve):
    server = serve(lambda r, _: (400, {}) if "bad" in r["messages"][-1]["content"] else (200, chat("fine")))
    client = ChatClient("--refiner openai", "m", server.url)
    assert [ask(client, n, "bad") for n in range(12)] == [""] * 12
    assert ask(client) == "fine"


@pytest.mark.parametrize("status", [403, 413])
def test_a_text_that_is_flagged_or_too_long_is_one_texts_matter(serve, status):
    server = serve(lambda r, _: (status, {}) if "bad" in r["messages"][-1]["content"] else (200, chat("fine")))
    client = ChatClient("--refiner openai", "m", server.url)
    assert [ask(client), ask(client, 1, "bad"), ask(client, 2)] == ["fine", "", "fine"]
    assert client.problem == f"HTTP status {status}"


def test_dashscopes_limit_per_minute_is_no_lack_of_credit(serve):
    body = {"error": {"message": "the TPM limit was triggered", "code": "insufficient_quota"}}
    server = serve(lambda _, number: (429, body, {"Retry-After": "0.1"}) if number == 1 else (200, chat("fine")))
    client = ChatClient("--refiner openai", "m", server.url)
    client.endpoint = "https://dashscope.aliyuncs.com/compatible-mode/v1"
    assert ask(client) == "fine"
    body["error"] = {"message": "no credit", "code": None, "type": "insufficient_quota"}
    other = ChatClient("--refiner openai", "m", serve(lambda *_: (429, body)).url)
    with pytest.raises(UserError, match=r"found HTTP status 429 \(no credit\)$"):
        ask(other)


@pytest.mark.parametrize(("header", "ends"), [("86400", True), ("inf", False), ("nan", False), ("soon", False)])
def test_a_wait_of_a_day_ends_the_run_and_says_so(serve, monkeypatch, header, ends):
    monkeypatch.setattr("diffusers_craft.core.chat.RETRY_SECONDS", 0.05)
    server = serve(lambda _, number: (429, {}, {"Retry-After": header}) if number == 1 else (200, chat("fine")))
    client = ChatClient("--refiner openai", "m", server.url)
    if ends:
        with pytest.raises(UserError, match="HTTP status 429, to be waited out for 86400 s; the same command goes on"):
            ask(client)
    else:
        assert ask(client) == "fine"


def test_the_reason_is_found_in_the_bodies_of_other_servers(serve):
    client = ChatClient("--refiner openai", "m", serve(lambda *_: (404, {"error": "no model m, none is loaded"})).url)
    with pytest.raises(UserError, match=r"found HTTP status 404 \(no model m, none is loaded\)$"):
        ask(client)


def test_a_reply_that_was_cut_is_empty(serve):
    cut = chat("Okay, the user wants a circle, so")
    cut["choices"][0]["finish_reason"] = "length"
    client = ChatClient("--refiner openai", "m", serve(lambda *_: (200, cut)).url)
    assert ask(client) == "" and "limit of tokens" in client.problem


def test_a_text_that_is_refused_later_changes_nothing_for_others(serve):
    server = serve(lambda r, _: (400, {}) if "bad" in r["messages"][-1]["content"] else (200, chat("fine")))
    client = ChatClient("--refiner openai", "m", server.url)
    assert ask(client) == "fine"
    assert [ask(client, n, "bad") for n in range(5)] == [""] * 5 and len(server.requests) == 6
    assert ask(client) == "fine" and "seed" in server.requests[-1]


def test_limits_are_waited_out_as_the_service_asks(serve):
    times = []

    def reply(request, number):
        times.append(time.monotonic())
        return (429, {}, {"Retry-After": "0.3"}) if number == 2 else (200, chat("fine"))

    client = ChatClient("--refiner openai", "m", serve(reply).url)
    assert [ask(client, n) for n in range(3)] == ["fine"] * 3
    assert times[2] - times[1] >= 0.29 and len(times) == 4


def test_a_limit_that_never_ends_is_no_answer(serve, monkeypatch):
    monkeypatch.setattr("diffusers_craft.core.chat.MAX_LIMITED", 0.05)
    client = ChatClient("--refiner openai", "m", serve(lambda *_: (429, {"error": {"message": "500 RPM"}})).url)
    assert ask(client) is None and client.problem == "HTTP status 429 (500 RPM)"


def test_another_kind_of_server_is_named(serve):
    client = ChatClient("--refiner openai", "m", serve(lambda *_: (200, b"<html>")).url)
    assert ask(client) is None and client.problem.endswith("no chat reply")


@pytest.mark.parametrize(("status", "code"), [(403, "AllocationQuota.FreeTierOnly"), (400, "Arrearage")])
def test_credit_that_ends_in_mid_run_ends_it(serve, status, code):
    body = {"error": {"message": "exhausted", "code": code}}
    server = serve(lambda _, number: (200, chat("fine")) if number < 3 else (status, body))
    client = ChatClient("--refiner openai", "m", server.url)
    assert [ask(client), ask(client, 1)] == ["fine", "fine"]
    with pytest.raises(UserError, match=rf"found HTTP status {status} \(exhausted\)$"):
        ask(client, 2)


def test_a_key_that_is_withdrawn_in_mid_run_ends_it(serve):
    server = serve(lambda _, number: (200, chat("fine")) if number == 1 else (403, {}))
    client = ChatClient("--refiner openai", "m", server.url)
    assert ask(client) == "fine"
    with pytest.raises(UserError, match="found HTTP status 403$"):
        for number in range(10):
            ask(client, number, f"Prompt: {number}")


@pytest.mark.parametrize("seconds", ["0", "-5"])
def test_a_wait_of_no_time_is_not_believed(serve, monkeypatch, seconds):
    waits = []
    monkeypatch.setattr("diffusers_craft.core.chat.RETRY_SECONDS", 0.02)
    monkeypatch.setattr(time, "sleep", waits.append)
    server = serve(lambda _, number: (429, {}, {"Retry-After": seconds}) if number < 4 else (200, chat("fine")))
    assert ask(ChatClient("--refiner openai", "m", server.url)) == "fine"
    assert sum(wait > 0 for wait in waits) >= 3
