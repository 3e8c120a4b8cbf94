# Every command of the README. "make" alone lists them.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help train test test-all quick explain gradcheck grid fuzz tables mutants torchao lint tensorboard

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

train: .venv/installed  ## train on MNIST; flags by ARGS="--epochs 3 --activation gelu"
	$(BIN)/python train.py $(ARGS)

# Each process takes one thread, and tests that compute with more ask for them.
JOBS ?= logical
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

test: .venv/installed  ## every claim: five to ten minutes on two cores
	$(PYTEST) $(ARGS)

quick: .venv/installed  ## the core's claims: one minute on two cores
	$(PYTEST) --cases=quick tests/core tests/test_derivation.py tests/test_architecture.py $(ARGS)

test-all: .venv/installed  ## every claim, and the full products of their cases: twenty minutes on two cores
	$(PYTEST) --cases=all $(ARGS)

explain: .venv/installed  ## derive the gradients step by step, and write explain.html; flags by ARGS="--activation gelu"
	$(BIN)/python -m manual_mlp explain --html explain.html $(ARGS)

gradcheck: .venv/installed  ## prove every gradient and print the table of errors
	$(BIN)/python -m pytest tests/core/test_gradcheck.py --quiet --cases=all --error-table $(ARGS)

grid: .venv/installed  ## try every mode of differentiation on every layer, write docs/modes.md
	$(BIN)/python tests/grid.py $(ARGS)

fuzz: .venv/installed  ## draw thousands of layers and derivatives, compare each with torch
	$(BIN)/python -m pytest tests/core/test_fuzz.py tests/core/test_fuzz_losses.py tests/core/test_arguments.py --hypothesis-profile=fuzz --hypothesis-show-statistics $(ARGS)

tables: .venv/installed  ## write the tables of README and derivation that the code knows: activations, losses
	$(BIN)/python docs/tables.py $(ARGS)

mutants: .venv/installed  ## break every formula and sixty other lines, one at a time, and see the suite go red
	cd tests && ../$(BIN)/python -m mutants $(ARGS)

torchao: .venv/installed  ## install torchao, and hold our layers over its quantised weights against torch's
	$(BIN)/python -m pip install --quiet torchao
	$(BIN)/python -m pytest tests/core/test_torchao.py $(ARGS)

lint: .venv/installed  ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: .venv/installed  ## open runs/
	$(BIN)/tensorboard --logdir runs $(ARGS)

# Made once, and again only when pyproject.toml is newer.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[train,examples,dev]'
	@touch $@
