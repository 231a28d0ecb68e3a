# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""What the alignment benchmark counts and how its tables are made; the runs themselves are no tests."""

import importlib.util
import json
import sys

import pytest
import torch
from training_driver import ROOT


@pytest.fixture(scope="module", autouse=True)
def beside(request):
    """The benchmarks find each other, as they do when run as scripts."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    request.addfinalizer(lambda: sys.path.remove(str(ROOT / "benchmarks")))


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return _load("alignment_tiny")


@pytest.fixture(scope="module")
def tables():
    return _load("alignment_tiny_tables")


def _cell(method: str, seed: int, exact: list[float], budget: str = "compute", rate: float = 1e-4) -> dict:
    scores = dict.fromkeys(("exact", "hps_v2.1", "pickscore", "aesthetic"), exact)
    counts = dict.fromkeys(("seconds", "cost", "forwards", "images", "steps", "peak_memory_mb"), 10.0 * (1 + seed))
    return (
        {"method": method, "seed": seed, "budget": budget, "learning_rate": rate, "scores": scores}
        | counts
        | {"date": "2026-01-01"}
    )


def test_rows_compare_each_seed_with_its_own_base(tables):
    cells = [_cell("base", 0, [0, 0, 1, 1], "none", 0.0), _cell("base", 1, [1, 1, 1, 1], "none", 0.0)]
    cells += [_cell("craft", 0, [1, 0, 1, 0]), _cell("craft", 1, [1, 1, 0, 1]), _cell("dpo", 0, [0, 1, 1, 1])]
    cells += [_cell("dpo", 2, [1, 1, 1, 1])]  # its base is not there
    rows = {row["method"]: row for row in tables.summarize_rows(cells)}
    assert rows["craft"]["exact"]["win_rate"] == pytest.approx((0.5 + 0.375) / 2)  # ties are half a win
    assert rows["craft"]["exact"]["mean"] == pytest.approx(0.625)
    assert rows["craft"]["exact"]["deviation"] == pytest.approx(0.1767767)
    assert rows["craft"]["seconds"] == 15.0 and rows["craft"]["seeds"] == [0, 1]
    assert rows["dpo"]["seeds"] == [0] and rows["dpo"]["exact"]["deviation"] is None
    assert list(rows) == ["dpo", "craft"]  # best first
    table = tables.format_rows(list(rows.values()), tables.base_means(cells))
    assert [line.split(" |")[2:4] for line in table.splitlines() if line.startswith("| base")] == [
        [" 0", " 50.0"],  # the base as dpo met it, and as craft did
        [" 0, 1", " 75.0"],
    ]


def test_tables_and_plot_are_written(tables, tmp_path, monkeypatch):
    cells = [_cell("base", 0, [0, 0, 1, 1], "none", 0.0), _cell("craft", 0, [1, 0, 1, 0])]
    cells += [_cell("dpo", 0, [1, 1, 1, 1], rate=rate) for rate in (1e-4, 3e-5)] + [
        _cell("craft-low", 0, [0, 0, 0, 0])
    ]
    (tmp_path / "cells").mkdir()
    for index, cell in enumerate(cells):
        (tmp_path / "cells" / f"{index}.json").write_text(json.dumps(cell))
    flags = ["--work", str(tmp_path), "--results", str(tmp_path / "out"), "--learning_rate", "dpo=3e-5"]
    monkeypatch.setattr(sys, "argv", ["tables", *flags])
    tables.main(tables.parse_args())
    text = (tmp_path / "out" / "alignment_tiny.md").read_text()
    methods, others = text.split("## Other learning rates")
    assert "| dpo | 3e-05 |" in methods and "| dpo | 0.0001 |" in others
    assert "| craft-low |" in methods.split("tables 5 and 10")[1]
    assert (tmp_path / "out" / "alignment_tiny.png").stat().st_size > 10_000


def test_a_cell_of_crafts_steps_counts_for_both_budgets(tables, tmp_path):
    (tmp_path / "cells").mkdir()
    whole = {"steps": 150, "images": 9600}
    cells = [_cell("sft", 0, [1, 0]) | whole, _cell("dpo", 0, [1, 0]), _cell("mapo", 0, [1, 0]) | whole]
    cells += [_cell("mapo", 0, [0, 0], "passes") | whole, _cell("craft-low", 0, [1, 0]) | whole]
    for index, cell in enumerate(cells):
        (tmp_path / "cells" / f"{index}.json").write_text(json.dumps(cell))
    found = [
        (cell["method"], cell["scores"]["exact"]) for cell in tables.read_cells(tmp_path) if cell["budget"] == "passes"
    ]
    assert sorted(found) == [("mapo", [0, 0]), ("sft", [1, 0])]


def test_craft_meets_each_method_on_the_seeds_that_both_have(tables):
    cells = [_cell("craft", 0, [1, 1, 0, 1]), _cell("craft", 1, [1, 1, 1, 1]), _cell("dpo", 0, [0, 1, 1, 0])]
    cells += [
        _cell("dpo", 0, [0, 0, 0, 0], rate=3e-5),
        _cell("spo", 2, [0, 0, 0, 0]),
        _cell("dpo", 0, [1] * 4, "passes"),
    ]
    (row,) = tables.duels(cells, {}).splitlines()[2:]
    assert row.startswith("| dpo | 0 | 62.5 [")  # two wins, a tie, a defeat
    (row,) = tables.duels(cells, {"dpo": 3e-5}).splitlines()[2:]
    assert row.startswith("| dpo | 0 | 87.5 [")


def test_every_method_has_the_same_number_of_images_a_step(benchmark):
    from alignment_methods import BATCH

    from diffusers_craft import SPO, RLHFSharpening, SFTSharpening

    methods = benchmark.METHODS
    for name, method in methods.items():
        assert abs(method.batch_size * method.images_a_unit - BATCH) <= method.images_a_unit / 2, name
        assert (ROOT / "examples" / method.script).is_file()
    assert methods["spo"].images_a_unit == 2 * SPO().states_per_prompt  # with and without caption
    assert methods["sharpening-sft"].images_a_unit == SFTSharpening().num_states
    assert methods["sharpening-rlhf"].images_a_unit == 2 * RLHFSharpening().num_states


def test_the_meter_counts_images_and_gradients(benchmark, random_sd15):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(random_sd15, subfolder="unet")
    meter = benchmark.Meter()
    steps, hooks = benchmark.TrainingRun.steps, dict(torch.nn.modules.module._global_forward_hooks)
    meter.install()
    try:
        inputs = (torch.zeros(3, 4, 8, 8), torch.zeros(3), torch.zeros(3, 5, 16))
        unet.train()(*inputs)
        with torch.no_grad():
            unet(*inputs)
        unet.eval()(*inputs)
    finally:
        benchmark.TrainingRun.steps = steps
        torch.nn.modules.module._global_forward_hooks.clear()
        torch.nn.modules.module._global_forward_hooks.update(hooks)
    assert (meter.images, meter.forwards, meter.cost) == (3, 9, 15)


def test_training_ends_where_the_budget_is_spent(benchmark, monkeypatch):
    steps = benchmark.TrainingRun.steps
    monkeypatch.setattr(benchmark.TrainingRun, "steps", lambda run: iter(range(100)))
    now = iter(range(1000))
    monkeypatch.setattr(benchmark.time, "process_time", lambda: next(now))
    try:
        for limits, expected in (({"limit_seconds": 7}, 7), ({"limit": 12}, 4), ({}, 100)):
            meter = benchmark.Meter(**limits)
            meter.install()
            for _ in benchmark.TrainingRun.steps(None):
                meter.images += 1
                meter.forwards += 1
            assert meter.steps == expected
            monkeypatch.setattr(benchmark.TrainingRun, "steps", lambda run: iter(range(100)))
    finally:
        benchmark.TrainingRun.steps = steps
        torch.nn.modules.module._global_forward_hooks.clear()


def test_equal_seconds_need_crafts_own_cell(benchmark, tmp_path):
    with pytest.raises(SystemExit, match="expected CRAFT's own cell first, found no .*seconds-craft-seed3"):
        benchmark.craft_seconds(tmp_path, 3)


def test_a_cell_is_scored_on_the_pictures_of_its_own_seed(benchmark):
    from diffusers_craft import GenerationSettings, exact_score, generate_images, load_pipeline, load_prompts
    from diffusers_craft.scripts import derive_seed

    scores = benchmark.evaluate("tiny-sd15", 1, 3)
    prompts, noise = load_prompts("tiny-heldout", num_prompts=3, seed=1), derive_seed(1, "evaluation")
    seeds = [derive_seed(noise, "candidate", row, 0) for row in range(3)]
    settings = GenerationSettings(num_inference_steps=12, guidance_scale=2.0, batch_size=50)
    images = generate_images(load_pipeline("tiny-sd15"), prompts, seeds, settings).images
    assert list(scores) == ["exact", "hps_v2.1", "pickscore", "aesthetic"]
    assert scores["exact"] == exact_score(prompts, images).tolist()


def test_an_image_without_a_score_is_left_out(tables):
    assert tables.outcomes([1, None, 0], [0, 1, None]).tolist() == [1] and tables.mean_score([1, None, 0]) == 0.5
