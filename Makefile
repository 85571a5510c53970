# The project's verbs. `make chat` and `make test` work on a machine with Python >= 3.11, make, git and a C++ compiler.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgellm-installed
# Two files of tests at a time: most of them use one thread.
BESIDE := -n 2 --dist loadfile

.PHONY: help install chat check test lint types contracts fast screenshots prove llama-bench test-vulkan clean

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml hatch_build.py edgellm/native/scan.c edgellm/native/barrier.c
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || \
		echo "Building llama.cpp from source: about 10 minutes on two cores, once; pip's wheel cache keeps it."
	@echo "Installing into $(VENV) ..."
	@PIP="$(BIN)/python -m pip" sh scripts/install.sh
	@touch $@

install: $(STAMP)  ## make .venv and install edgellm into it

chat: $(STAMP)  ## talk to the default model: make chat ARGS='--prompt "What is 23 * 17 + 4?"'
	@$(BIN)/edgellm models pull --quiet smollm2-135m
	@$(BIN)/edgellm chat $(ARGS)

lint: $(STAMP)  ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)  ## strict types
	$(BIN)/pyright --pythonpath $(BIN)/python

contracts: $(STAMP)  ## who may import whom
	$(BIN)/lint-imports

fast: $(STAMP)  ## tests without the slow ones
	$(BIN)/python -m pytest -q $(BESIDE) -m "not slow"

check: lint types contracts fast  ## run before every commit; under two minutes

test: $(STAMP)  ## everything
	$(BIN)/edgellm models pull --quiet smollm2-135m
	$(BIN)/python -m pytest $(BESIDE)

screenshots: $(STAMP)  ## the pictures of docs/tui-tour.md: writes docs/screens/
	$(BIN)/python scripts/screenshots.py

prove: $(STAMP)  ## the full-size evidence: writes docs/evidence/
	$(BIN)/edgellm models pull --quiet smollm2-135m
	$(BIN)/python benchmarks/prove.py

llama-bench:  ## build llama.cpp's own benchmark, for `edgellm bench --against llama-bench`; outside this folder
	@test -x $(BIN)/python || { echo "make install comes first" >&2; exit 1; }
	@PYTHON=$(BIN)/python sh scripts/llama_bench.sh

test-vulkan:  ## layers on a (software) Vulkan device, logits compared with the CPU; builds llama.cpp once more
	@PYTHON=$(PYTHON) VENV=.venv-vulkan sh scripts/vulkan.sh
	@GGML_VK_VISIBLE_DEVICES=0 .venv-vulkan/bin/python -m pytest -q tests/test_native_gpu.py

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
