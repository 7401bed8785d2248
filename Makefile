# Two commands matter: `make demo` and `make test`. The rest is what they are made of.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint format typecheck unit slim clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## train on real digits, export, compare, serve, classify over HTTP (about 4 minutes after downloads)
	$(PYTHON) scripts/setup_env.py $(VENV) demo
	$(BIN)/python scripts/demo.py

test: ## everything CI checks: style, types, arrows, tests, and a server without torch
	$(PYTHON) scripts/setup_env.py $(VENV) test
	$(MAKE) --no-print-directory lint typecheck unit slim

lint: ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: ## mypy, strict
	$(BIN)/mypy

unit: ## the tests, one process a core
	$(BIN)/pytest -n auto

slim: ## install the wheel with [serve] alone in a fresh environment without torch, and classify over HTTP
	$(BIN)/python scripts/check_slim_server.py

clean: ## remove the environment and what the tools leave behind
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
