# `make demo` and `make test` set everything up first; a second run finds the stamp and goes straight to work.
# The virtual environment is .venv; nothing outside this folder changes, apart from pip's and Loraplex's own caches.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PINS := constraints/constraints.txt
SOURCES := server adapters trainer loadtest client tests proto/generate.py $(wildcard benchmarks)
STAMP := $(VENV)/.setup-$(shell cat pyproject.toml constraints/*.txt | cksum | cut -d ' ' -f 1)
# CI imports a small part of what it installs, and imports compile for themselves.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install $(if $(CI),--quiet --no-compile) -c $(PINS)
PYTEST := $(BIN)/python -m pytest --durations=15 $(PYTEST_ARGS)
# On a machine that others load, a test of real processes may fail for want of a processor: CI asks it once more,
# and its summary names every test that needed that. Here it fails at once.
RERUNS := $(if $(CI),--reruns 1 -rR,)

.PHONY: help setup demo serve test check types format proto clean

help:  ## Show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install the pinned dependencies

demo: setup  ## Serve three domains from one resident base model and check their answers
	@$(BIN)/loraplex demo

serve: setup  ## Start the server on port 50051; SERVE_ARGS="--port 0 ..." passes options
	@$(BIN)/loraplex serve $(SERVE_ARGS)

# A file's tests run on one process, with the servers and models that they share, in the order of tests/conftest.py.
# (Groups of pytest-xdist are no use: its release 3.8 cannot name them to pytest 9.2, and says nothing.)
test: setup  ## Run the tests on two processes, files with slow ones first
	@OMP_NUM_THREADS=1 $(PYTEST) $(RERUNS) -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu"

check: setup types  ## Format, lint, types, import contracts, stub drift, proto lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/buf lint

types: setup  ## Type-check alone
	$(BIN)/mypy $(SOURCES)

format: setup  ## Format the sources and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: setup  ## Generate proto/gen from proto/loraplex
	$(BIN)/python proto/generate.py

clean:  ## Remove the virtual environment and the tools' caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# torch goes first and alone: where a build of it is already there, nothing later replaces it. A build for CUDA brings
# the Triton that it needs; elsewhere the kernels' tests need one for its interpreter.
$(STAMP):
	@python=$$(constraints/find-python.sh); \
	echo "Setting up $(VENV) with $$($$python --version); the first time takes a few minutes."; \
	"$$python" -m venv $(VENV)
	@rm -f $(VENV)/.setup-*
	@$(PIP) -r constraints/pip.txt
	@$(PIP) torch==2.13.0
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) -r constraints/triton.txt
	@$(PIP) --build-constraint $(PINS) -e '.[server,trainer,loadtest]' --group dev
	@touch $@
