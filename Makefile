# Every target sets itself up: a `.venv` beside this file, or the environment of `make PYTHON=python <target>`.
ifdef PYTHON
STAMP := .venv-external.stamp
else
PYTHON := .venv/bin/python
STAMP := .venv/.installed
endif
SOURCES := src tests examples benchmarks scripts setup.py
export HF_HUB_OFFLINE ?= 1

# Where the oldest supported versions have wheels: Python 3.10 to 3.12.
COMPAT_PYTHON ?= python3

.PHONY: demo test test-slow test-compat style quality bench clean

demo: $(STAMP)
	PYTHON="$(PYTHON)" bash examples/craft/run_tiny.sh

test: $(STAMP)
	$(PYTHON) -m pytest -m "not slow" tests

test-slow: $(STAMP)
	$(PYTHON) -m pytest -m slow tests

# The same tests with the oldest versions that setup.py allows, in an environment of their own; not part of CI.
test-compat: .venv-compat/.installed
	.venv-compat/bin/python -m pytest -m "not slow" tests

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

.venv-compat/.installed: setup.py scripts/oldest_requirements.py
	$(COMPAT_PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet --upgrade pip
	.venv-compat/bin/python scripts/oldest_requirements.py > .venv-compat/oldest.txt
	.venv-compat/bin/python -m pip install --quiet -e ".[test]" -c .venv-compat/oldest.txt
	touch $@

.venv-external.stamp: setup.py
	$(PYTHON) -m pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf build dist outputs .pytest_cache .ruff_cache src/*.egg-info
