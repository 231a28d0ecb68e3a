# Every target sets itself up: a `.venv` beside this file, or the environment of `make PYTHON=python <target>`.
ifdef PYTHON
STAMP := .venv-external.stamp
else
PYTHON := .venv/bin/python
STAMP := .venv/.installed
endif
SOURCES := src tests examples benchmarks scripts setup.py
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-slow style quality bench clean

demo: $(STAMP)
	PYTHON="$(PYTHON)" bash examples/craft/run_tiny.sh

test: $(STAMP)
	$(PYTHON) -m pytest -m "not slow" tests

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m slow tests

style: $(STAMP)
	$(PYTHON) -m ruff check --fix $(wildcard $(SOURCES))
	$(PYTHON) -m ruff format $(wildcard $(SOURCES))

quality: $(STAMP)
	$(PYTHON) -m ruff check $(wildcard $(SOURCES))
	$(PYTHON) -m ruff format --check $(wildcard $(SOURCES))

bench: $(STAMP)
	for script in benchmarks/bench_*.py; do $(PYTHON) $$script || exit 1; done

.venv/.installed: setup.py
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -e ".[dev]"
	touch $@

.venv-external.stamp: setup.py
	$(PYTHON) -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf build dist outputs .pytest_cache .ruff_cache src/*.egg-info
