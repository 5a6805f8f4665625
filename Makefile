# `make demo` and `make test` set up all they need: a Python >= 3.10 with venv is enough.
PYTHON ?= python3
VENV := .venv
BARE := .venv-bare
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BARE_READY := $(BARE)/.ready
# Every kernel has to compile with each of these; they lie beside the environment and are put before its own.
TRITONS := 3.6.0 3.5.1
TRITON := .venv-triton-
# Without a GPU the small set of packages is enough.
CONSTRAINT ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo "-c constraints/cpu.txt")
PIP := -m pip install --quiet --disable-pip-version-check
# A venv made by a Python that is too old would stay behind.
CHECK_PYTHON := $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'needs Python 3.10: make PYTHON=...')"
# Two workers share the cores, so each keeps to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -q

.DEFAULT_GOAL := help
.PHONY: help demo hello install test lint docs docs-check bare kernels clean

help:
	@echo "make demo   set up, then run a real model, the smoke checks and one planted fault"
	@echo "make test   set up, then lint, types, docs, the bare environment and the tests"
	@echo "make lint   format check, ruff and mypy"
	@echo "make docs   write the generated docs again"
	@echo "make bare   check what has to work without torch"
	@echo "make kernels  compile every Triton kernel for cuda:90, without a GPU, with triton $(TRITONS)"
	@echo "make clean  remove the virtual environments"
	@echo "PYTHON=...  the Python to set up with (now: $(PYTHON))"

demo: hello $(READY)
	@$(BIN)/deltaproof check

hello:
	@echo "deltaproof: a real model, the contract's checks, and a planted bug caught"

install: $(READY)

$(READY): pyproject.toml constraints/cpu.txt
	@echo "Setting up $(VENV); the first time takes a few minutes"
	@$(CHECK_PYTHON)
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) $(CONSTRAINT) -e '.[torch,transformers,dev]'
	@touch $@

test: lint docs-check bare kernels
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python tools/make_docs.py

docs-check: $(READY)
	$(BIN)/python tools/make_docs.py --check

$(BARE_READY): pyproject.toml
	@echo "Setting up $(BARE), without torch"
	@$(CHECK_PYTHON)
	@$(PYTHON) -m venv $(BARE)
	$(BARE)/bin/python $(PIP) -e .
	@touch $@

bare: $(BARE_READY)
	$(BARE)/bin/deltaproof --help >/dev/null
	$(BARE)/bin/deltaproof explain P1 >/dev/null
	$(BARE)/bin/deltaproof explain padding-slot-address >/dev/null
	$(BARE)/bin/deltaproof audit --preview --no-cache deltaproof/audit/story/after.py
	$(BARE)/bin/python -c "import importlib.util as u; assert u.find_spec('torch') is None, 'torch is installed here'"
	$(BARE)/bin/python -c "import deltaproof.hazards, deltaproof.reports.text, sys; \
	  assert not {'torch', 'triton'} & set(sys.modules), 'hazards or reports import torch or triton'"

$(TRITON)%/.ready: | $(READY)
	$(BIN)/python $(PIP) --no-deps --upgrade --target $(@D) triton==$*
	@touch $@

kernels: $(READY) $(TRITONS:%=$(TRITON)%/.ready)
	@set -e; for version in $(TRITONS); do \
	  export PYTHONPATH="$(CURDIR)/$(TRITON)$$version" OMP_NUM_THREADS=1; \
	  $(BIN)/pytest -q tests/tools/test_compile_kernels.py; \
	  $(BIN)/python tools/compile_kernels.py --expect-triton $$version; \
	done

clean:
	rm -rf $(VENV) $(BARE) $(TRITON)*
