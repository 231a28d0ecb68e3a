# Copyright 2026 The diffusers-craft authors. Licensed under the Apache License, Version 2.0.
"""Prompts of the local Hub: what is fetched of a dataset with images, and what a user reads of one with configurations."""

import io
import json
import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_driver import HubDriver
from hub_repos import File, Repo
from hub_server import HubServer


ROWS, IMAGE_BYTES = 80, 100_000
CARD = """---
configs:
- config_name: large
  data_files:
  - split: train
    path: large/*
- config_name: first
  data_files:
  - split: dev
    path: first/*
---
"""


def put(hub: HubServer, name: str, files: dict[str, bytes]) -> None:
    hub.repos["dataset", name] = Repo(False)
    hub.repos["dataset", name].commit("main", {path: File(data, True) for path, data in files.items()}, "data")


def with_images(split: str) -> bytes:
    """Parquet of captions between two columns of pictures, in several row groups."""
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(IMAGE_BYTES) for _ in range(ROWS)]
    captions = [f"{split} {index}" for index in range(ROWS)]
    table = pa.table({"jpg_0": pictures, "caption": captions, "jpg_1": pictures, "n": range(ROWS)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=20, use_dictionary=False)
    return buffer.getvalue()


def fetched(hub: HubServer, start: int) -> int:
    """Bytes of data files that were sent since request number `start`."""
    total = 0
    for request in hub.requests[start:]:
        if request.method == "GET" and "/resolve/" in request.path and request.path.endswith("parquet"):
            _, name, path = re.fullmatch(r"/(datasets)/([^/]+/[^/]+)/resolve/[^/]+/(.+)", request.path).groups()
            size = len(hub.repos["dataset", name].files[path].data)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
            total += min(int(wanted[2] or size), size - 1) + 1 - int(wanted[1]) if wanted else size
    return total


def prompts_of(driver: HubDriver, *args: object) -> list[str]:
    code = f"import json; from diffusers_craft import load_prompts; print(json.dumps(load_prompts(*{args!r})))"
    outcome = driver.execute(code)
    assert outcome.code == 0, outcome.output
    return json.loads(outcome.output.splitlines()[-1])


def test_captions_are_fetched_without_images_and_other_splits(hub, driver):
    files = {f"data/{split}-00000-of-00001.parquet": with_images(split) for split in ("train", "test_unique")}
    put(hub, "org/pick", files)
    start = len(hub.requests)
    assert prompts_of(driver, "org/pick:test_unique", "caption") == [f"test_unique {i}" for i in range(ROWS)]
    whole = sum(map(len, files.values()))
    most = 600_000 if int(datasets.__version__.split(".")[0]) >= 5 else 12_000_000  # older ones read further ahead
    assert whole > 30_000_000 and 0 < fetched(hub, start) < most, f"{fetched(hub, start):,} of {whole:,} bytes"


def test_a_benchmark_of_the_hub_fetches_its_split_alone(hub, driver):
    files = {}
    for split, rows in (("train", 50_000), ("validation_unique", 500)):
        buffer = io.BytesIO()
        captions = [np.random.default_rng(index).bytes(20).hex() for index in range(rows)]
        pq.write_table(pa.table({"caption": captions, "uid": captions}), buffer)
        files[f"data/{split}-00000-of-00001.parquet"] = buffer.getvalue()
    put(hub, "yuvalkirstain/pickapic_v1_no_images", files)
    start = len(hub.requests)
    code = "from diffusers_craft import load_prompt_set; print(len(load_prompt_set('pickapic').rows))"
    outcome = driver.execute(code)
    assert outcome.code == 0 and outcome.output.splitlines()[-1] == "500", outcome.output
    assert fetched(hub, start) < 300_000 < sum(map(len, files.values()))


@pytest.mark.parametrize("form", ["json", "csv"])
def test_other_formats_give_the_rows_of_a_split(hub, driver, form):
    lines = {"json": [json.dumps({"id": i, "caption": f"dog, {i}"}) for i in range(3)]}
    lines["csv"] = ["id,caption", *(f'{i},"dog, {i}"' for i in range(3))]
    data = "\n".join(lines[form]).encode()
    put(hub, f"org/{form}", {f"train.{form}": data.replace(b"dog", b"cat"), f"test.{form}": data})
    assert prompts_of(driver, f"org/{form}:test", "caption") == ["dog, 0", "dog, 1", "dog, 2"]
    assert prompts_of(driver, f"org/{form}", "caption")[0] == "cat, 0"


def test_configurations_are_named_and_listed(hub, driver):
    files = {"README.md": CARD.encode()}
    for path in ("large/a", "first/a"):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"prompt": [path]}), buffer)
        files[f"{path}.parquet"] = buffer.getvalue()
    put(hub, "org/multi", files)
    assert prompts_of(driver, "org/multi:first:dev") == ["first/a"]
    assert prompts_of(driver, "org/multi:large:") == ["large/a"]
    for source, found in (
        ("org/multi", "no choice of its configurations"),
        ("org/multi:x:dev", "no configuration 'x'"),
    ):
        outcome = driver.execute(f"from diffusers_craft import load_prompts; load_prompts({source!r})")
        assert f"{found}; name one of large, first as NAME:CONFIG:SPLIT" in outcome.output
    outcome = driver.execute("from diffusers_craft import load_prompts; load_prompts('org/multi:first:train')")
    assert "dev" in outcome.output.splitlines()[-1] and "--prompts: expected" in outcome.output.splitlines()[-1]


def test_a_missing_dataset_and_column_are_one_line(hub, driver):
    put(hub, "org/plain", {"a.csv": b"text\nx\n"})
    for source, found in (("org/nothing", "found 'org/nothing': "), ("org/plain", "found 'prompt'")):
        outcome = driver.execute(f"from diffusers_craft import load_prompts; load_prompts({source!r})")
        assert found in outcome.output.splitlines()[-1], outcome.output
