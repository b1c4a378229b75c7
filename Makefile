# `make demo` and `make test` do all their set-up: a virtual environment in .venv, with the tested versions.
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint types bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo  ## a low-data result on made-up pictures with real encoders, in runs/demo
	$(BIN)/adaptmed demo --out runs/demo

test: .venv/.test  ## every test and every example in a docstring, without network
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -q -n 2 --dist loadfile

lint: .venv/.test  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test  ## static types
	$(BIN)/mypy

bench: .venv/.test  ## every figure in benchmarks/, one after the other
	@set -e; for figure in benchmarks/*.py; do echo "== $$figure"; $(BIN)/python $$figure; done

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/.demo and .venv/.test: the environment with that extra. Pip comes from outside, because Debian's venv has none.
.venv/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adaptmed needs Python 3.11 or newer, but \
	$(PYTHON) is %d.%d. Install one and run, for example: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[$*]'
	@touch $@
