# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Replies of language models as people get them, and the one prompt that each of them holds."""

import pytest

from diffusers_craft.prompts.replies import clean_reply


RED = "a red circle on black, sharp"


@pytest.mark.parametrize(
    "reply",
    [
        RED,
        f"  {RED}\n",
        # thoughts: whole, without their opening tag, in other tags, unfinished before and after
        f"<think>Hmm, the user wants a circle.</think>\n\n{RED}",
        f"Okay, the user wants a red circle.\nStyle 3?\n</think>\n\n{RED}",
        f"<think>one</think> <think>two</think>{RED}",
        f"<THINK>Hmm.</THINK>{RED}",
        f"<thinking>\nHmm.\n</thinking>\n{RED}",
        f"<reasoning>Hmm.</reasoning>{RED}",
        f"[THINK]Hmm.[/THINK]{RED}",
        f"◁think▷Hmm.◁/think▷{RED}",
        f"<|channel|>analysis<|message|>Hmm.<|end|><|start|>assistant<|channel|>final<|message|>{RED}<|return|>",
        f"<seed:think>Hmm.</seed:think>{RED}",
        f"<|begin_of_thought|>Hmm.<|end_of_thought|>{RED}",
        f"analysisThe user wants a circle.assistantfinal{RED}",
        f"{RED}<think>was that good",
        # fences and JSON
        f"```\n{RED}\n```",
        f"```text\n{RED}\n```",
        f"Here is the prompt:\n\n```\n{RED}\n```\nIt keeps the colour.",
        f"```{RED}```",
        f'{{"prompt": "{RED}"}}',
        f'```json\n{{"refined_prompt": "{RED}", "style": "plain"}}\n```',
        f'["{RED}", "another"]',
        f'{{"prompts": ["{RED}", "another"]}}',
        f'{{"prompt": "{RED}"}}\nI hope that helps.',
        # preambles, labels, headings
        f"Here is the rewritten prompt: {RED}",
        f"Here's an improved version:\n\n{RED}",
        f'Sure! Here\'s the rewritten prompt: "{RED}"',
        f"Certainly! Here is a more detailed prompt:\n**{RED}**",
        f"Sure!\n\n{RED}",
        f"Sure, here you go!\n\n{RED}",
        f"Certainly! Below is the rewritten prompt:\n{RED}",
        f"Below is the rewritten prompt: {RED}",
        f"Sure, I can help with that:\n\n{RED}",
        f"Rewritten prompt for Stable Diffusion:\n{RED}",
        f"I've rewritten your prompt as follows:\n{RED}",
        f"Based on your input, here is a refined prompt:\n\n{RED}",
        f"Enhanced version of your prompt:\n{RED}",
        f"Sure, I'd be happy to help you with that request!\n\n{RED}",
        f"**Rewritten prompt**\n\n{RED}",
        f"Refined text-to-image prompt: {RED}",
        f"Image prompt: {RED}",
        f"Caption: {RED}",
        f"Option 1: {RED}\nOption 2: a blue square",
        f"Prompt: {RED}",
        f"**Prompt:** {RED}",
        f"Improved prompt: {RED}",
        f"Rewritten Prompt:\n{RED}",
        f"## Rewritten prompt\n\n{RED}",
        f"# {RED}",
        # lists: the first item
        f"1. {RED}\n2. a blue square\n3. a star",
        f"1. {RED} 2. a blue square 3. a star",
        f"1) {RED}",
        f"- {RED}",
        f"* {RED}\n* a blue square",
        # marks and quotes
        f"**{RED}**",
        f'"{RED}"',
        f"'{RED}'",
        f"“{RED}”",
        f"«{RED}»",
        f"「{RED}」",
        f"`{RED}`",
        # remarks
        f"{RED} (Note: the colour was kept.)",
        f"{RED}\n\nNote: I kept the colour.",
        f"{RED}\n\nLet me know if you want another one!",
        f"{RED} (6 words)",
        f"{RED}\n\nNegative prompt: blurry",
        f"{RED}\n\n**Changes made:** the colour was kept.",
        # characters that no file takes
        f"{RED}\ud83d",
        f"\ud83d{RED}\udc00",
        f'{{"prompt": "{RED}\\ud83d"}}',
    ],
)
def test_the_prompt_is_found(reply):
    assert clean_reply(reply) == RED


@pytest.mark.parametrize(
    "text",
    [
        'a sign that says "STOP" beside a wall',
        '"hello" and "welcome", two signs',
        "portrait, 3. street, night",
        "a shop window with a note that says: closed",
        "sorry sight of a wilted rose, close-up",
        "an open book: its pages blowing in the wind",
        "“one” and “two” written on doors",
        "24 red balloons over a city",
        "one of 2) boats",
        "a cat (orange) and a dog (black)",
        "#1 fan in a stadium",
        "a certainly: tall tower",
        "a prompt: how to",
        "Here are two cats: one black, one white",
        "Sure sign of spring: crocus in snow",
        "Okay hand sign: close-up",
        '"I can\'t breathe" protest sign',
        "analysis of a painting, her assistant finalizing it",
        "I'm not afraid of ghosts, t-shirt design",
        "I am afraid of the dark, child under a blanket",
        '"We will not be silenced" protest banner',
        '"We won\'t go back" sign',
        "I can't sleep, insomnia, blue light",
        'A poster that says:\n"hello" in neon'.replace("\n", " "),
        '"',
    ],
)
def test_a_plain_prompt_stays_as_it_is(text):
    assert clean_reply(text) == text


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "<think>and so on, to the last token",
        "Hmm.</think>",
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t assist with that request.",
        "Sorry, but I cannot rewrite this.",
        "I cannot create this prompt.",
        "I can't do that.",
        "As an AI language model, I do not draw.",
        "Unfortunately, I am unable to help.",
        "I apologize, but this is against my rules.",
        "I'm really sorry, but this is not something that I do.",
        "I'm afraid I can't do that.",
        "I must respectfully decline.",
        "We cannot help with that.",
        "This request violates our rules.",
        "{}",
        "[]",
        "```\n```",
    ],
)
def test_a_refusal_or_an_unfinished_thought_is_no_prompt(reply):
    assert clean_reply(reply) == ""


def test_long_replies_end_at_the_encoders_window():
    assert clean_reply("word " * 100).split() == ["word"] * 60
