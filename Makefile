# Two commands do everything: `make quickstart` and `make test`. Both make .venv first, once.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
LOCK := cluster/requirements.lock
# Settings of an activated environment or of another project must not reach ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-fast test-long lint lock clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv from the lock file (again only when the lock or pyproject.toml changed)

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1); accepted: Python 3.11 or newer, as in: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@echo "Making $(VENV) from $(LOCK): about 3 minutes and 6 GB, once."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install -qq --no-compile --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

quickstart: setup  ## ingest, tune, promote, serve and ask once, on a drawn sample or on DATA=folder
	@$(VENV)/bin/tlray quickstart $(if $(DATA),"$(DATA)")

test: lint  ## ruff, mypy and all tests
	$(VENV)/bin/python -m pytest

test-fast: setup  ## the tests without the slow ones
	$(VENV)/bin/python -m pytest -m "not slow"

test-long: setup  ## ten times as many random data sets for each layout, others each time
	TLRAY_ROUNDTRIP_SETS=300 $(VENV)/bin/python -m pytest tests/roundtrip

lint: setup  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

lock: setup  ## write the lock file anew from pyproject.toml, with the newest versions that fit
	$(VENV)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --extra test \
	  --generate-hashes --no-emit-index-url --no-header --upgrade --output-file $(LOCK)

clean:  ## remove what `make` made
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
