# Two commands, each doing all of its own set-up in .venv:
#   make quickstart   the whole experiment on the embedded default
#   make test         every check: lint, types, import rule, tests
# For contributors:  make docs (the site, into site/)  make coverage  make bench
# Options:  SEED=1   OUT=runs/other   PYTHON=python3.12   JOBS=4 (processes that test; 2)

SHELL  := /bin/bash
PYTHON ?= python3
SEED   ?= 0
JOBS   ?= 2
OUT    ?= runs/quickstart-seed$(SEED)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq --progress-bar off
READY  := $(VENV)/.ready
OURS   := pipeline stages reward_models labeling_ui
TESTS   = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile \
	  --no-loadscope-reorder -m "not slow and not bench and not gpu and not vllm"

.PHONY: help bench quickstart test install lint types tests coverage docs chromium postgres clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6

install: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $$($(PYTHON) --version) found. Try: make PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV) (some minutes the first time) ..." >&2
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps -e .
	@touch $@

quickstart: $(READY)
	@$(BIN)/rlhf run configs/quickstart.yaml --set seed=$(SEED) --out $(OUT)

# Types are checked beside the tests: mypy has one process, and a core is idle otherwise.
test: lint
	@$(MAKE) --no-print-directory -j2 types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy $(OURS) tests

tests: $(READY) chromium postgres
	$(TESTS)

# The same tests with every line counted: about half as long again.
coverage: $(READY) chromium postgres
	$(TESTS) --cov --cov-report=term --cov-report=html:runs/coverage

# The site, with the references of commands and configs made from the code; warnings are errors.
docs: $(READY)
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The browser tests drive Debian's Chromium. Without it they are skipped, and say so.
chromium:
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Debian's chromium for the browser tests ..." >&2; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; } \
	  || echo "chromium could not be installed: the browser tests will be skipped" >&2; \
	else \
	  echo "chromium is missing and only root can install it: the browser tests will be skipped" >&2; \
	fi

# The store's tests run on SQLite and on a PostgreSQL server of their own, which they start themselves.
postgres:
	@if command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Debian's postgresql for the store's tests ..." >&2; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends postgresql >/dev/null 2>&1; } \
	  || echo "postgresql could not be installed: its tests will be skipped" >&2; \
	else \
	  echo "postgresql is missing and only root can install it: its tests will be skipped" >&2; \
	fi

# Beside the peers, one thread each, half an hour: runs/benchmark/benchmark.json and .svg
bench: $(READY)
	@[ -d runs/benchmark/trl-1.12.0 ] || $(PIP) --no-deps --target runs/benchmark/trl-1.12.0 trl==1.12.0
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.measure runs/benchmark --trl runs/benchmark/trl-1.12.0

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage* site
