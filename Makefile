# Two commands: `make quickstart` trains a language model by RL, `make test` runs the tests.
# Each sets up .venv first, and does nothing where that is done.

VENV := .venv
BIN := $(VENV)/bin

# The Python that the pins were resolved for comes first; another one: make PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if $$p -c '' >/dev/null 2>&1; then command -v $$p; break; fi; done)

# What the tests run on must not depend on the shell they are started from.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-gpu check format bench bench-learning bench-schedules chaos clean clean-env

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
	  sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
	  while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

setup: ## build .venv from the pinned requirements; nothing where it is up to date
	@if [ -z "$(PYTHON)" ]; then \
	  echo "setup: no python3 on this machine: install Python 3.11, 3.12 or 3.13"; exit 1; fi
	@"$(PYTHON)" docker/setup_venv.py --venv $(VENV)

quickstart: setup ## train SmolLM2-135M to add, end to end, on this machine
	@$(BIN)/ballast train experiment=quickstart

test: setup ## the tests that need minutes, not hours, and no GPU
	@$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: setup ## the long tests: learning, resume, failure
	@$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: setup ## the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu

check: setup ## every static check: ruff, format, mypy, import contracts, oxlint
	@failed=""; \
	for tool in "ruff check ." "ruff format --check ." mypy lint-imports "oxlint --deny-warnings orchestrator"; do \
	  echo "== $$tool"; $(BIN)/$$tool || failed="$$failed [$$tool]"; done; \
	if [ -n "$$failed" ]; then echo "check: failed:$$failed"; exit 1; fi

format: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Not in `make bench`: hours, an environment of its own, or no benchmark by itself.
APART := $(addprefix tests/bench/, learning.py peers.py pictures.py schedules.py runs.py)

bench: setup ## the benchmarks under tests/bench
	@for script in $(filter-out $(APART), $(wildcard tests/bench/*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

bench-learning: setup ## every algorithm learns on the real stack, into algorithms/README.md; an hour
	@$(BIN)/python tests/bench/learning.py --write

bench-schedules: setup ## asynchronous against synchronous training, into orchestrator/README.md; 40 minutes
	@$(BIN)/python tests/bench/schedules.py --write

TRIALS ?= 8

chaos: setup ## TRIALS random faults under real runs, and what is left of them; half a minute each
	@$(BIN)/python -m tests.chaos.chaos --trials $(TRIALS)

clean: ## remove caches and build products; runs and .venv stay
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

clean-env: ## remove .venv
	@rm -rf $(VENV)
