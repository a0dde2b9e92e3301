# `make` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
OLDEST := venvs/oldest
OLDEST_TRANSFORMERS := 5.18.0
PYTEST := -m pytest -q

.PHONY: help setup demo test test-oldest lint demo-checkpoint kernels-build clean

help:
	@echo "make demo             ask the demo checkpoint about real CT and MR scans"
	@echo "make test             lint, types, import directions and all tests"
	@echo "make test-oldest      the tests on transformers $(OLDEST_TRANSFORMERS), the oldest that is admitted"
	@echo "make demo-checkpoint  train the demo checkpoint (about an hour and a half on two cores; goes on where it stopped)"
	@echo "make kernels-build    lay the kernels out as the Hub has them, in kernels/build/"
	@echo "make setup            the virtual environment alone"
	@echo "make clean            remove what the other targets made, but not a training's state"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: setup
	@scripts/demo.sh

test: lint
	$(BIN)/python $(PYTEST)
	$(BIN)/python $(PYTEST) kernels/tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	sh scripts/mypy.sh $(BIN)/mypy

test-oldest:
	python3 -m venv $(OLDEST)
	grep -v -E '^(transformers|huggingface_hub|tokenizers)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install -q --disable-pip-version-check -c $(OLDEST)/constraints.txt 'transformers==$(OLDEST_TRANSFORMERS)' -e '.[dev]'
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/python $(PYTEST)

demo-checkpoint: setup
	$(BIN)/python -m radfm.training.demo

kernels-build: setup
	$(BIN)/python kernels/build.py

clean:
	rm -rf $(VENV) venvs build kernels/build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
