# `make` lists the targets. With BIN=folder/of/python the targets use that environment and set none up.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
OLDEST := venvs/oldest
OLDEST_TRANSFORMERS := 5.18.0
PYTEST := -m pytest -q
# A process per core. Tests of the Space and of memory share a worker: tests/conftest.py groups them.
PARALLEL := -n auto --dist loadgroup
# One thread a process, so that the processes do not wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-browser test-long test-fast test-transformers test-oldest lint docs docs-serve coverage mutants fuzz demo-checkpoint \
	kernels-build clean

help:
	@echo "make demo              ask the demo checkpoint about real CT and MR scans"
	@echo "make test              lint, types, import directions and all tests but those in a browser and the long ones"
	@echo "make test-browser      the Space in Chromium, one visit after the other"
	@echo "make test-long         tests that take minutes each: trainings that are resumed at every step, a rank that is killed"
	@echo "make test-fast         the tests that take seconds: no browser, no server, no training"
	@echo "make test-transformers transformers' own test suites on RadFM's classes"
	@echo "make test-oldest       those of make test on transformers $(OLDEST_TRANSFORMERS), the oldest that is admitted"
	@echo "make lint              ruff, import directions, mypy"
	@echo "make docs              the documentation, in build/site/; make docs-serve shows it while you write"
	@echo "make coverage          which lines the tests run, child processes included; HTML in build/coverage/"
	@echo "make mutants           plant one-line faults and see that the tests catch each of them"
	@echo "make fuzz              read damaged scans for a minute"
	@echo "make demo-checkpoint   train a demo checkpoint from nothing (an hour and a half of a core; resumes where it stopped; see training/demo/README.md)"
	@echo "make kernels-build     write the kernels as a kernel repository of the Hub, in kernels/build/"
	@echo "make setup             the virtual environment alone"
	@echo "make clean             remove what the other targets made, except the state of a training"

setup: $(if $(filter file,$(origin BIN)),$(READY))

$(READY): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: setup
	@scripts/demo.sh

test: lint
	$(BIN)/python $(PYTEST) $(PARALLEL) -m "not browser and not long"
	$(BIN)/python $(PYTEST) $(PARALLEL) kernels/tests

test-browser: setup
	$(BIN)/python $(PYTEST) -m browser

test-long: setup
	$(BIN)/python $(PYTEST) -m long

test-fast: setup
	$(BIN)/python $(PYTEST) $(PARALLEL) -m "not slow and not browser and not long"

test-transformers: setup
	$(BIN)/python scripts/transformers_tests.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	sh scripts/mypy.sh $(BIN)/mypy

test-oldest:
	python3 -m venv $(OLDEST)
	grep -v -E '^(transformers|huggingface_hub|tokenizers)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install -q --disable-pip-version-check -c $(OLDEST)/constraints.txt 'transformers==$(OLDEST_TRANSFORMERS)' -e '.[dev]'
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/python $(PYTEST) $(PARALLEL) -m "not browser and not long"

docs: setup
	sh scripts/mkdocs.sh $(BIN)/mkdocs build --strict

docs-serve: setup
	sh scripts/mkdocs.sh $(BIN)/mkdocs serve

coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run --source=$(CURDIR) $(PYTEST) $(PARALLEL)
	$(BIN)/coverage run --source=$(CURDIR) $(PYTEST) $(PARALLEL) kernels/tests
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q -d build/coverage
	$(BIN)/coverage report --skip-covered

mutants: setup
	$(BIN)/python scripts/mutants.py

fuzz: setup
	$(BIN)/python tests/reader/fuzz_scans.py --minutes 1

demo-checkpoint: setup
	$(BIN)/python -m radfm.training.demo

kernels-build: setup
	$(BIN)/python kernels/build.py

clean:
	rm -rf $(VENV) venvs build kernels/build dist *.egg-info .coverage* .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
