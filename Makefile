# Two commands matter: `make app` and `make test`. Each builds the environment that it needs, once.

VENV ?= .venv
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)
# Pinned: a newer one may bring gigabytes. Where pip would fetch a build for CUDA and none is wanted, or another build
# is, name it: make app TORCH=...
TORCH ?= torch==2.13.0
HOST ?= 127.0.0.1
PORT ?= 7860
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Threads that wait by spinning take the processor from those that have work.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help app test lint bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

app: $(VENV)/.app ## Serve the web page on http://HOST:PORT (127.0.0.1:7860)
	$(BIN)/python app.py --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.dev ## Run every test; ARGS="-m 'not slow' -k fsq" chooses
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

lint: $(VENV)/.dev ## Check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## Measure speed, memory and streaming beside other codecs; ARGS=--quick takes a minute or two
	$(BIN)/python benchmarks/speed.py $(ARGS)

clean: ## Remove the environment, the caches and the builds; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: EXTRAS := app
$(VENV)/.dev: EXTRAS := app,dev
$(VENV)/.app $(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing [$(EXTRAS)] into $(VENV); this takes a few minutes the first time"
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@
