# Every command of the README. "make" alone lists them.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help build train test test-all quick standin explain gradcheck grid fuzz sanitize tables docs mutants torchao dist wheel elsewhere lint tensorboard gpu

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: .venv/installed  ## compile the formulas in C++, for the native engine; anew by ARGS=--force
	$(BIN)/python -m manual_mlp build $(ARGS)

train: .venv/native  ## train on MNIST; flags by ARGS="--epochs 3 --activation gelu"
	$(BIN)/python train.py $(ARGS)

# Each process takes one thread, and tests that compute with more ask for them.
JOBS ?= logical
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal

test: .venv/native  ## every claim: ten to twenty minutes on two cores
	$(PYTEST) $(ARGS)

quick: .venv/native  ## the core's claims: a few minutes on two cores
	$(PYTEST) --cases=quick tests/core tests/test_derivation.py tests/test_architecture.py $(ARGS)

test-all: .venv/native  ## every claim, and the full products of their cases: twenty to forty minutes
	$(PYTEST) --cases=all $(ARGS)

standin: .venv/native  ## the CUDA half of make test without a GPU: CUDA's own code, a CPU's kernels
	cd tests && ../$(BIN)/python -m standin pytest --numprocesses $(JOBS) --maxprocesses 8 --dist worksteal $(ARGS)

explain: .venv/installed  ## derive the gradients step by step, and write explain.html; flags by ARGS="--activation gelu"
	$(BIN)/python -m manual_mlp explain --html explain.html $(ARGS)

gradcheck: .venv/native  ## prove every gradient and print the table of errors
	$(BIN)/python -m pytest tests/core/test_gradcheck.py --quiet --cases=all --error-table $(ARGS)

grid: .venv/native  ## try every mode of differentiation on every layer, write docs/modes.md
	$(BIN)/python tests/grid.py $(ARGS)

fuzz: .venv/native  ## draw thousands of layers and derivatives, compare each with torch
	$(BIN)/python -m pytest tests/core/test_fuzz.py tests/core/test_fuzz_losses.py tests/core/test_arguments.py --hypothesis-profile=fuzz --hypothesis-show-statistics $(ARGS)

# UBSan's question of classes asks for what torch hides. The runtimes have to be there before all other libraries.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined
SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 MANUAL_MLP_NATIVE_FLAGS="$(SANITIZE)" OMP_NUM_THREADS=2
sanitize: .venv/installed  ## run the tests of the native engine under ASan and UBSan
	$(SANITIZED) $(BIN)/python -m manual_mlp build
	$(SANITIZED) MANUAL_MLP_ENGINE=native $(BIN)/python -m pytest --capture=no -p no:cacheprovider \
	--ignore tests/core/test_native_build.py tests/core/test_native*.py $(ARGS)

tables: .venv/installed  ## write the tables of README and derivation that the code knows: activations, losses
	$(BIN)/python docs/tables.py $(ARGS)

docs: .venv/installed  ## build the site into docs/_build/html, which needs no network; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	@echo "the site: docs/_build/html/index.html"

mutants: .venv/installed  ## break every formula and sixty other lines, one at a time, and see the suite go red
	cd tests && ../$(BIN)/python -m mutants $(ARGS)

torchao: .venv/installed  ## install torchao, and hold our layers over its quantised weights against torch's
	$(BIN)/python -m pip install --quiet torchao
	$(BIN)/python -m pytest tests/core/test_torchao.py $(ARGS)

dist: .venv/installed  ## make the source archive and the pure wheel in dist/, and check them
	$(BIN)/python -m pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

wheel: dist .venv/native  ## make a wheel that carries the native engine, for this torch and Python
	$(BIN)/python -m manual_mlp build --wheel dist/manual_mlp-*-py3-none-any.whl

elsewhere: dist  ## make quick against the installed wheel: ARGS="--python python3.12 --torch 2.11.0"
	$(BIN)/python tests/elsewhere.py $(ARGS)

# A stage that failed says so with status 1; what the others measured goes into the tables.
gpu: .venv/installed  ## all that waits for a GPU, stage by stage, then the tables: ARGS=--long, ARGS="--device cpu --tiny"
	@$(BIN)/python -m benchmarks day $(ARGS); status=$$?; test $$status -gt 1 || $(BIN)/python -m benchmarks report; exit $$status

lint: .venv/installed  ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: .venv/installed  ## open runs/
	$(BIN)/tensorboard --logdir runs $(ARGS)

# Tried once, and again only when a file of C++ is newer. Where it cannot be built, plain computes.
.venv/native: .venv/installed $(wildcard manual_mlp/engines/native/*.cpp manual_mlp/engines/native/*.h)
	@$(BIN)/python -m manual_mlp build || echo "native is not built, and plain computes instead; make build tries again"
	@touch $@

# Made once, and again only when pyproject.toml is newer.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[train,examples,dev,docs]'
	@touch $@
