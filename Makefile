# Everything installs what it needs into .venv first, once: `make run` on a fresh machine is enough.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/sh

# Assigned here, so that only the command line sets them: a PORT that happens to be in the
# environment is somebody else's. (The environment's way is HOLDFAST_PORT.)
PORT =
BACKUP_PORT =
ARGS =
ROUNDS = 1000
SEEDS = 200000
WORKERS = 2
PYTHON = python3

VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# A stamp says for which checkout it was made: one that was copied or moved, or whose Python is
# gone, is made anew.
HERE := $(shell pwd -P)
MADE_FOR := $(shell test -x $(BIN)/python && cat $(VENV)/installed-run 2>/dev/null)
ifneq ($(MADE_FOR),$(HERE))
$(VENV)/installed-run: anew
endif

.PHONY: help run test soak model check bench clean anew

help:  ## this list
	@sed -n 's/^\([a-z][a-z]*\):.*##  */\1|/p' $(firstword $(MAKEFILE_LIST)) \
	| while IFS='|' read -r name text; do printf '  make %-6s %s\n' "$$name" "$$text"; done

# So that an error about a port names what was typed here.
run: export HOLDFAST_MAKE = 1
run: $(VENV)/installed-run  ## start a primary (PORT=6379) and a backup (BACKUP_PORT=6380); Ctrl-C stops
	@exec $(BIN)/holdfast pair $(if $(PORT),--port $(PORT)) \
		$(if $(BACKUP_PORT),--backup-port $(BACKUP_PORT)) $(ARGS)

test: $(VENV)/installed-test  ## run the whole test suite (ARGS='-k clerk' goes to pytest)
	@exec $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

soak: $(VENV)/installed-test  ## the random tests, for hours (SEEDS=200000 ROUNDS=1000)
	@HOLDFAST_TEST_ROUNDS=$(ROUNDS) HOLDFAST_TEST_SEEDS=$(SEEDS) HOLDFAST_TEST_SEEDS_S=1e9 \
		exec $(BIN)/pytest tests/test_simulator.py tests/test_live_lab.py \
		tests/test_live_crash.py tests/test_live_rejoin.py tests/test_live_pauses.py \
		tests/test_live_kv.py $(ARGS)

model: $(VENV)/installed-run  ## check the protocol's model exhaustively (Debian: spin, gcc)
	@exec $(BIN)/python tests/model/check.py $(ARGS)

check: $(VENV)/installed-check .types/holdfast  ## format, lint, types, import graph
	@status=0; \
	for step in 'ruff format --check .' 'ruff check .' 'mypy -p holdfast' lint-imports; do \
		echo "$$step"; $(BIN)/$$step || status=1; \
	done; exit $$status

bench: $(VENV)/installed-bench  ## compare with a local redis-server (ARGS goes to the benchmark)
	@exec $(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove .venv, build products and caches
	rm -rf $(VENV) .types build dist *.egg-info
	rm -rf .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# mypy takes package names from folder names: it sees the root under its name through this link.
.types/holdfast:
	@mkdir -p .types && ln -sfn .. .types/holdfast

anew:

# A failure, or a Ctrl-C, leaves no half-made .venv behind to puzzle the next run.
$(VENV)/installed-run: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Holdfast needs Python 3.10 or newer as $(PYTHON); name another: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments (no ensurepip or venv);" \
			"on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@echo "installing into $(VENV) ..." >&2
	@trap 'test -n "$$done" || { rm -f $@; test -z "$$made" || rm -rf $(VENV); }' EXIT; \
	trap 'exit 130' HUP INT TERM; set -e; \
	if test -e $@ && test "$$(cat $@)" != "$(HERE)" || ! $(BIN)/python -m pip -q --version \
			>/dev/null 2>&1; then made=1; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi; \
	$(BIN)/python -m pip install --quiet --editable .; \
	pwd -P > $@; done=1

$(VENV)/installed-%: $(VENV)/installed-run
	@echo "installing what 'make $*' needs ..." >&2
	@$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@
