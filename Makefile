# Everything a developer runs. The first target that needs it makes .venv from the pinned requirements; nothing else is
# installed by hand. Change PYTHON to use another interpreter: make test PYTHON=python3.13

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The benchmarks' own environment: what the product is measured against must not touch the product's pins, nor slow `make test`.
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.ready
# So has the site of docs/.
DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.ready
UV ?= $(BIN)/uv
# One file for every platform and Python; names, versions and hashes only.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --extra build --generate-hashes --no-annotate --custom-compile-command "make pins"
# The modules whose every branch is tested, or `make test` fails.
EXACT := orchestrator/domain/states*,orchestrator/domain/states/*,orchestrator/store/checkouts*,orchestrator/store/checkouts/*,orchestrator/store/inbox*,orchestrator/store/inbox/*,orchestrator/processing*,orchestrator/processing/*

.PHONY: help venv demo test lint soak bench docs pins chromium pgbouncer brokers clean

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

venv: $(STAMP) ## make or mend .venv from the pinned requirements

# The stamp comes last: without it a half-made environment is thrown away and made again. --no-deps: the file names every package, and
# pip's own resolver must not search beyond it (pip 23.2 refuses the file as soon as a pinned package that is wanted with extras has a newer release).
define MAKE_VENV
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and \"$(PYTHON)\" is $$($(PYTHON) --version 2>/dev/null || echo missing). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@rm -rf $(1)
	@echo "Making $(1) from $(2) (a minute or two, once) ..."
	@$(PYTHON) -m venv $(1) || { echo "$(PYTHON) cannot make virtual environments (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(2)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
endef

$(STAMP): requirements-dev.txt requirements.txt pyproject.toml
	$(call MAKE_VENV,$(VENV),requirements-dev.txt)

$(BENCH_STAMP): requirements-bench.txt pyproject.toml
	$(call MAKE_VENV,$(BENCH),requirements-bench.txt)

$(DOCS_STAMP): requirements-docs.txt
	@rm -rf $(DOCS)
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-docs.txt
	@touch $@

demo: $(STAMP) ## shoppers through every outcome: make demo ARGS="--orders 45 --exit"
	@$(BIN)/orchestrator demo $(ARGS)

test: lint chromium pgbouncer ## lint, types, imports, all tests but the slow ones, coverage
	@rm -f .coverage .coverage.*
# Bytecode is kept, whatever the environment says: hundreds of processes of the tests import the same modules.
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow" -n 3 --dist worksteal --cov --cov-report= $(ARGS)
	@echo "Branch coverage of states, checkouts, inbox and processing:"
	@$(BIN)/python -m coverage report --include='$(EXACT)' --show-missing --fail-under=100

lint: $(STAMP) ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

soak: $(STAMP) pgbouncer brokers ## the slow tests, then the acceptance tests through PgBouncer, and on Redis, Valkey and RabbitMQ
	@command -v pgbouncer >/dev/null || test -x /usr/sbin/pgbouncer || { \
		echo "make soak runs the acceptance tests through PgBouncer, and it is missing: install it (on Debian: apt-get install pgbouncer)." >&2; exit 1; }
	@command -v redis-server >/dev/null && test -x /usr/lib/rabbitmq/bin/rabbitmq-server || { \
		echo "make soak runs the acceptance tests on Redis and RabbitMQ, and one is missing: install them (on Debian: apt-get install redis-server rabbitmq-server)." >&2; exit 1; }
# All parts run, whichever fails; at most an hour for each broker.
	@failed=; \
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal --timeout 3600 $(ARGS) || failed="$$failed slow"; \
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist worksteal --through pgbouncer --timeout 600 tests/acceptance $(ARGS) \
		|| failed="$$failed pgbouncer"; \
	for broker in redis valkey rabbitmq; do \
		timeout 3600 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal --broker $$broker --timeout 600 tests/acceptance $(ARGS) \
			|| failed="$$failed $$broker"; done; \
	test -z "$$failed" || { echo "make soak failed:$$failed" >&2; exit 1; }

bench: $(BENCH_STAMP) ## the product beside other designs and against the limit of this machine: make bench ARGS="--quick"
	@$(BENCH)/bin/python -m tests.benchmarks $(ARGS)

# A warning is an error: a link that leads nowhere ends it.
docs: $(DOCS_STAMP) ## the documents as a site with search, in build/site
	@$(DOCS)/bin/python -m sphinx -q -W --keep-going -c docs/site . build/site
	@echo "build/site/docs/README.html"

# uv is one of the pinned tools; where there is no .venv yet, name another uv: make pins UV=uv
pins: ## compile pyproject.toml into the requirements files
	@$(COMPILE) --extra devkit --extra test --extra traces --output-file requirements-dev.txt pyproject.toml
	@$(COMPILE) --constraint requirements-dev.txt --extra traces --output-file requirements.txt pyproject.toml
	@$(COMPILE) --constraint requirements-dev.txt --extra devkit --extra traces --output-file requirements-devkit.txt pyproject.toml
	@$(COMPILE) --constraint requirements-dev.txt --extra devkit --extra traces --extra bench --output-file requirements-bench.txt pyproject.toml
	@$(subst --extra build ,,$(COMPILE)) --output-file requirements-docs.txt docs/site/requirements.in

# The browser tests need a browser. Where it is missing, root on a Debian can fetch it; elsewhere those tests skip and say why.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Chromium for the browser tests ..."; \
			{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
				|| echo "Chromium could not be installed: the browser tests will be skipped."; \
		else \
			echo "Chromium is not installed: the browser tests will be skipped."; \
		fi; }

pgbouncer:
	@command -v pgbouncer >/dev/null || test -x /usr/sbin/pgbouncer || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing PgBouncer for the tests of a pooler ..."; \
			{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends pgbouncer; } >/dev/null 2>&1 \
				|| echo "PgBouncer could not be installed: its tests will be skipped."; \
		else \
			echo "PgBouncer is not installed: its tests will be skipped."; \
		fi; }

brokers:
	@{ command -v redis-server && test -x /usr/lib/rabbitmq/bin/rabbitmq-server; } >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Redis and RabbitMQ for the tests of brokers ..."; \
			{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq install -y --no-install-recommends redis-server rabbitmq-server; } >/dev/null 2>&1 \
				|| echo "Redis and RabbitMQ could not be installed."; \
		else \
			echo "Redis or RabbitMQ is not installed."; \
		fi; }

clean: ## remove .venv, caches and the demo's data
	@rm -rf $(VENV) $(BENCH) $(DOCS) .orchestrator .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist
	@find orchestrator migrations tests -name __pycache__ -type d -prune -exec rm -rf {} +
