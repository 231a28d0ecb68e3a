# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Refiners by name, the template's distinct variants, and the refined stage: layout, resume, failures."""

import logging

import pytest

from diffusers_craft import load_refiner
from diffusers_craft.core.records import REFINED_SCHEMA
from diffusers_craft.prompts.refiners import MODIFIERS
from diffusers_craft.prompts.refining import is_settled, refine_once
from diffusers_craft.scripts import WorkDir, refine_prompts


PROMPTS = [f"a red circle {i}" for i in range(7)]


def open_stage(folder, num_refinements=3, num_seeds=2, rows_per_shard=14, prompts=PROMPTS):
    num_rows = len(prompts) * (1 + num_refinements * num_seeds)
    return WorkDir(folder).stage("refined", {"refiner": "test"}, num_rows, rows_per_shard)


@pytest.mark.parametrize("n", [1, 4, 162])
def test_template_variants_are_distinct_sets_of_words(n):
    texts = load_refiner("template").refine("a star", n, seed=3)
    sets = set()
    for text in texts:
        prompt, *words = text.split(", ")
        assert prompt == "a star" and 1 <= len(words) <= 4 and set(words) <= set(MODIFIERS)
        sets.add(frozenset(words))
    assert len(sets) == len(texts) == n
    assert (
        load_refiner("template").refine("a star", n, seed=3)
        == texts
        != load_refiner("template").refine("a star", n, seed=4)
    )


def test_template_limit():
    with pytest.raises(ValueError, match="--num_refinements: expected at most 162 with --refiner template, found 163"):
        load_refiner("template").refine("a star", 163, seed=0)


def test_load_refiner():
    names = [load_refiner("template", model=None, base_url=None).name, load_refiner("none").name]
    assert names == ["template", "none"]
    refiner = load_refiner("openai", model="qwen", base_url="http://localhost:1/v1", temperature=None)
    assert refiner.options["refiner_model"] == "qwen" and refiner.temperature == 1.0


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("gpt", {}, "--refiner: expected one of openai, transformers, template, none, found 'gpt'"),
        ("openai", {}, "--refiner_model: expected the name of a model with --refiner openai, found none"),
        ("template", {"model": "x"}, "--refiner_model: expected no such option with --refiner template, found one"),
        (
            "transformers",
            {"model": "x", "base_url": "y"},
            "--refiner_base_url: expected no such option with --refiner transformers, found one",
        ),
    ],
)
def test_load_refiner_errors(name, options, text):
    with pytest.raises(ValueError) as error:
        load_refiner(name, **options)
    assert str(error.value) == text


@pytest.mark.parametrize("rows_per_shard", [1, 5, 14, 100])
def test_layout_of_rows(tmp_path, rows_per_shard):
    stage = open_stage(tmp_path, rows_per_shard=rows_per_shard)
    table = refine_prompts(PROMPTS, load_refiner("template"), 3, 2, 0, stage)
    assert table.schema.equals(REFINED_SCHEMA) and stage.is_complete
    rows = table.to_pylist()
    assert [row["row"] for row in rows] == list(range(49))
    for row in rows:
        assert (row["group"], row["variant"]) == divmod(row["row"], 7)
        assert row["prompt"] == PROMPTS[row["group"]] and row["refiner"] == "template"
        assert row["refined"] == (row["variant"] > 0) == (row["refined_prompt"] != row["prompt"])
    for group in range(7):
        texts = [row["refined_prompt"] for row in rows if row["group"] == group and row["variant"] > 0]
        assert texts[0::2] == texts[1::2] and len(set(texts)) == 3
    suffixes = {row["refined_prompt"].removeprefix(row["prompt"]) for row in rows if row["variant"] == 1}
    assert len(suffixes) > 1, "prompts draw their words independently"


def test_identity_marks_nothing_and_warns_of_nothing(tmp_path, caplog):
    table = refine_prompts(PROMPTS, load_refiner("none"), 1, 4, 0, open_stage(tmp_path, 1, 4))
    assert table["refined_prompt"].to_pylist() == table["prompt"].to_pylist()
    assert not any(table["refined"].to_pylist()) and not caplog.records


class FlakyRefiner:
    """Fails for every other prompt; dies when asked for the prompt `fatal`."""

    name = "flaky"
    options = {}

    def __init__(self, fatal=None):
        self.fatal = fatal
        self.asked = []

    def refine(self, prompt, n, seed):
        self.asked.append(prompt)
        if prompt == self.fatal:
            raise KeyboardInterrupt
        return [prompt if prompt in PROMPTS[::2] else f"{prompt} {seed} {k}" for k in range(n)]


def test_interrupted_refinement_goes_on_where_it_was(tmp_path):
    undisturbed = refine_prompts(PROMPTS, FlakyRefiner(), 3, 2, 0, open_stage(tmp_path / "a"))
    with pytest.raises(KeyboardInterrupt):
        refine_prompts(PROMPTS, FlakyRefiner(PROMPTS[4]), 3, 2, 0, open_stage(tmp_path / "b"))
    again = FlakyRefiner()
    table = refine_prompts(PROMPTS, again, 3, 2, 0, open_stage(tmp_path / "b"))
    assert again.asked == PROMPTS[4:] and table.equals(undisturbed)
    for shard in range(4):
        files = [open_stage(tmp_path / folder).shard_path(shard).read_bytes() for folder in "ab"]
        assert files[0] == files[1]
    done = FlakyRefiner()
    assert refine_prompts(PROMPTS, done, 3, 2, 0, open_stage(tmp_path / "b")).equals(undisturbed)
    assert not done.asked


def test_failures_are_marked_and_counted_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        table = refine_prompts(PROMPTS, FlakyRefiner(), 3, 2, 0, open_stage(tmp_path))
    for row in table.to_pylist():
        assert row["refined"] == (row["variant"] > 0 and row["group"] % 2 == 1)
    assert [record.getMessage() for record in caplog.records] == [
        "refiner 'flaky' gave nothing new for 24 of 42 candidates: they keep the original prompt (refined=False); the same command asks again for them as long as no candidates are drawn"
    ]


@pytest.mark.parametrize("texts", [["one"], ["one", "two", ""], ["one", "two", None]])
def test_refiner_that_breaks_its_promise(tmp_path, texts):
    class Broken:
        name, options = "Broken", {}

        def refine(self, prompt, n, seed):
            return texts

    with pytest.raises(ValueError, match="refiner 'Broken': expected 3 texts for the prompt 'a red circle 0', found"):
        refine_prompts(PROMPTS, Broken(), 3, 2, 0, open_stage(tmp_path))


def test_counts_and_stage_size(tmp_path):
    with pytest.raises(ValueError, match="--num_refinements, --num_seeds: expected at least 1 each, found 0 and 2"):
        refine_prompts(PROMPTS, load_refiner("template"), 0, 2, 0, open_stage(tmp_path))
    with pytest.raises(RuntimeError, match="expected a stage of 35 rows, found 49"):
        refine_prompts(PROMPTS, load_refiner("template"), 2, 2, 0, open_stage(tmp_path))


class PrefixRefiner:
    name, options = "prefix", {}

    def refine(self, prompt, n, seed):
        return [f"new {prompt}"] * n


class Flaky:
    """Refines what its service lets through."""

    name, options = "flaky", {}
    problem = "HTTP status 429"

    def __init__(self, works):
        self.works, self.asked = works, []

    def refine(self, prompt, n, seed):
        self.asked.append(prompt)
        return [f"{prompt}, {i}" if self.works(prompt) else prompt for i in range(n)]


def test_what_was_not_refined_is_asked_for_again_and_nothing_else(tmp_path, caplog):
    prompts = [f"thing {i}" for i in range(8)]
    stage = WorkDir(tmp_path).stage("refined", {}, 8 * 3, 6)  # two prompts per shard
    first = Flaky(lambda prompt: prompt not in ("thing 2", "thing 7"))
    table = refine_prompts(prompts, first, 2, 1, 0, stage)
    assert "gave nothing new for 4 of 16 candidates (HTTP status 429)" in caplog.text
    kept = Flaky(lambda prompt: True)
    assert refine_prompts(prompts, kept, 2, 1, 0, stage).equals(table) and not kept.asked
    again = Flaky(lambda prompt: True)
    table = refine_prompts(prompts, again, 2, 1, 0, stage, again=True)
    assert again.asked == ["thing 2", "thing 7"]
    assert table["refined"].to_pylist() == [False, True, True] * 8 and stage.is_complete


def test_a_refinement_that_is_asked_for_again_keeps_the_others_of_its_shard(tmp_path):
    prompts = [f"thing {i}" for i in range(4)]
    stage = WorkDir(tmp_path).stage("refined", {}, 4 * 3, 12)
    texts = refine_prompts(prompts, Flaky(lambda prompt: prompt != "thing 1"), 2, 1, 0, stage)["refined_prompt"]
    table = refine_prompts(prompts, PrefixRefiner(), 2, 1, 0, stage, again=True)  # another service by now
    expected = texts.to_pylist()
    expected[4:6] = ["new thing 1", "new thing 1"]
    assert table["refined_prompt"].to_pylist() == expected


def test_other_ranks_wait_for_what_the_first_one_refines_anew(tmp_path):
    """Their images must not be of texts that the first rank is about to replace."""
    prompts, work = ["thing 1", "thing 2"], WorkDir(tmp_path)
    refined, candidates = work.stage("refined", {}, 6, 6), work.stage("candidates", {}, 6, 6)
    refiner = Flaky(lambda prompt: prompt == "thing 1")
    assert not is_settled(refined, refiner, candidates), "nothing is there yet"
    refine_once(prompts, refiner, 2, 1, 0, refined, candidates)
    assert not is_settled(refined, refiner, candidates), "failures, and no images"
    candidates.shard_path(0).touch()
    assert is_settled(refined, refiner, candidates)
    refine_once(prompts, refiner, 2, 1, 0, refined, candidates)
    assert refiner.asked == prompts, "an image of the old text is there"
    candidates.shard_path(0).unlink()
    refiner.works = lambda prompt: True
    refine_once(prompts, refiner, 2, 1, 0, refined, candidates)
    assert is_settled(refined, refiner, candidates) and refiner.asked == [*prompts, "thing 2"]


def test_a_refiner_that_refines_nothing_ends_the_run(tmp_path):
    stage = WorkDir(tmp_path).stage("refined", {}, 6, 6)
    words = r"^--refiner flaky: expected refinements of the prompts, found none of 4 \(HTTP status 429\)$"
    for _ in range(2):  # also where the file of an earlier run says so
        with pytest.raises(ValueError, match=words):
            refine_prompts(["a", "b"], Flaky(lambda prompt: False), 2, 1, 0, stage)


def test_template_words_stand_where_the_encoder_reads():
    refiner = load_refiner("template")
    assert all(text.startswith("a red circle, ") for text in refiner.refine("a red circle", 8, seed=0))
    for prompt in ("very " * 60 + "red", "圆" * 40, "a,b;" * 20, "looking_at_viewer, " * 12 + "1girl"):
        texts = refiner.refine(prompt, 8, seed=0)
        assert len(set(texts)) == 8 and all(text.endswith(f", {prompt}") for text in texts)
        assert len({text[:60] for text in texts}) > 4
