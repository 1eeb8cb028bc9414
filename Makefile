# hybrid. 'make run' takes a fresh Debian 12 or 13 to a running, verified example stack; 'make test' runs all checks.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# Debian's users, and root after a plain 'su', have no sbin on their path.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# Starting the daemon, bridges and guests needs root.
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo --preserve-env=HYBRID_ROOT,STACK_PORT)
PYTEST := $(BIN)/python -m pytest
# $(call as_root,COMMAND): what the command leaves in the checkout (caches) goes back to the checkout's owner.
as_root = $(SUDO) $(1); status=$$?; $(SUDO) chown -Rh --reference=Makefile .; exit $$status

.DEFAULT_GOAL := help
.PHONY: help setup packages run lint format types imports unit functional integration conformance test lock clean distclean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: packages $(VENV)/.complete ## Install what is missing: Debian packages, then .venv from the lock

packages:
	@scripts/setup packages

$(VENV)/.complete: requirements.lock pyproject.toml scripts/setup
	@scripts/setup venv $(VENV) requirements.lock
	@touch $@

run: setup ## Build the guest, start the daemon, bring up and verify the example stack
	$(call as_root,$(BIN)/python examples/stack/run.py)

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## The layers, by import-linter
	$(BIN)/lint-imports

unit: setup ## Fast tests that run anywhere, and the linters
	$(PYTEST) tests/unit tests/repo

functional: setup testpackages ## Real processes, no guests (root)
	$(call as_root,$(PYTEST) tests/functional)

integration: setup testpackages ## Real guests (root)
	$(call as_root,$(PYTEST) tests/integration)

conformance: setup testpackages ## Docker's clients against the daemon (root)
	$(call as_root,$(PYTEST) tests/conformance)

.PHONY: bench
bench: setup testpackages ## Measure all that benchmarks/ promises, against other engines (root; 25 minutes)
	@scripts/setup packages bench
	$(call as_root,$(BIN)/python -m tests.built)
	$(call as_root,$(BIN)/python -m benchmarks $(PARTS))

.PHONY: testpackages
testpackages:
	@scripts/setup packages test

# Fast tests first. One after the other: under emulation two guests at a time make each other's time-outs.
test: setup testpackages ## Everything: linters, unit, functional, integration, conformance, security (root)
	$(PYTEST) tests/repo tests/unit tests/contract
	$(call as_root,$(BIN)/python -m tests.built)
	$(call as_root,$(PYTEST) tests/functional tests/integration tests/security tests/conformance)

lock: ## Pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --upgrade --group dev pyproject.toml -o requirements.lock

clean: ## Remove caches and build products (not the daemon's state)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find hybrid tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV)
