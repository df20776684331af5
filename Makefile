# `make demo` runs the main job on hosts that it makes itself; `make test` proves every part.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH :=
role ?=
# Anything but nothing: the tests of rare cases too.
thorough ?=
export WSGI_FLEET_THOROUGH := $(thorough)
SANDBOX := -i inventories/sandbox
# Making hosts takes root on this machine: ask for the password where sudo wants one.
ASK = $(shell [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null || echo --ask-become-pass)

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## Install the locked tools, and what it takes to make hosts
	@tools/setup hosts

demo: setup ## Make a small fleet on this machine, converge it, and ask every site
	@ansible-playbook $(ASK) $(SANDBOX) molecule/shared/create.yml
	@ansible-playbook $(SANDBOX) site.yml
	@ansible-playbook $(SANDBOX) playbooks/status.yml

demo-down: setup ## Remove the demo's hosts, their network and their keys
	@ansible-playbook $(ASK) $(SANDBOX) molecule/shared/destroy.yml

test: setup ## Lint, unit tests, every scenario; `role=nginx` for one of them, `thorough=1` for rare cases too
	@tools/scenarios $(role)

checks: setup ## Lint and unit tests, side by side
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint-ansible unit lint-python

lint: lint-ansible lint-python

lint-ansible: ; @tools/setup
	@yamllint --strict . && ansible-lint

lint-python: ; @tools/setup
	@ruff check && ruff format --check && mypy

unit: ; @tools/setup
	@pytest -q tests

bench: setup ## Measure how long runs take, how fast sites are served, what visitors notice of changes and faults
	@bench/converge.py
	@bench/changes.py
	@bench/sites.py
	@bench/serve.py
	@bench/tuning.py
	@bench/faults.py
	@bench/windows.py

lock: ## Look for newer tools and write requirements.lock
	@uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" --group dev -o requirements.lock

.PHONY: help setup demo demo-down test checks lint lint-ansible lint-python unit bench lock
