# `make demo` and `make test` need Python 3.11 or newer, g++, make and perl; everything else they install into .venv.

PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -n 2

export AMARANTH_USE_YOSYS := builtin

.PHONY: help setup demo test test-all lint bench clean

help:
	@echo "make demo      run the digits network on the generated accelerator, in RTL simulation"
	@echo "make test      lint, type check and tests (minutes); make test-all adds the slow ones"
	@echo "make bench     measure everything in docs/results.md again"
	@echo "make setup     create .venv with everything the others need"
	@echo "make clean     remove .venv and build products"

setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sigbit needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); set PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian and Ubuntu run: sudo apt-get install python3-venv"; exit 2; }
	@for tool in g++ perl; do command -v $$tool >/dev/null || \
	  { echo "$$tool is missing; on Debian and Ubuntu run: sudo apt-get install g++ make perl"; exit 2; }; done
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[onnx,rtl,boards,dev]'
	@touch $@

demo: setup
	$(BIN)/sigbit demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m 'not slow' $(PYTEST_ARGS)

test-all: lint
	$(BIN)/pytest $(PYTEST_ARGS)

bench: setup
	$(BIN)/sigbit bench lut --write docs/results.md
	$(BIN)/sigbit bench ledger --write docs/results.md
	$(BIN)/sigbit bench fit --write docs/results.md
	$(BIN)/sigbit bench size --write docs/results.md
	$(BIN)/sigbit bench sim --write docs/results.md
	$(BIN)/sigbit bench networks --device rtl --write docs/results.md
	$(BIN)/sigbit bench boards --write docs/results.md

clean:
	rm -rf .venv build sim_build *.egg-info hw/*.egg-info sim/*.egg-info sw/*.egg-info
