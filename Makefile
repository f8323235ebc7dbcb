# One command for each thing a contributor does. Needs make and Python 3.11 or newer, nothing else:
# every command first makes the virtual environment $(VENV) as it has to be.
PYTHON ?= python3
VENV ?= .venv
# pinned: constraints.txt; lowest: the lower bounds of our requirements; newest: whatever there is
VERSIONS ?= pinned
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
PROJECTS := pyproject.toml $(wildcard plugins/*/pyproject.toml docs/examples/*/pyproject.toml)
# processes that share the tests of a day, a file at a time; 0 runs them in one
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest
export OMP_NUM_THREADS ?= 1

.PHONY: help setup test lint format types tests coverage test-slow test-parity test-gpu test-diffusionkit test-mflux test-clients test-integrations test-ray docs demo \
	changelog release dist clean

help:            ## say what there is
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p; s/^\([a-z-]*\): *## /\1\t/p' Makefile | expand -t 14

$(STAMP): $(PROJECTS) constraints.txt scripts/setup_env.py
	$(PYTHON) scripts/setup_env.py --venv $(VENV) --versions $(VERSIONS)
	@touch $@

setup: $(STAMP)  ## make the virtual environment, or bring it up to date

test: lint types tests  ## everything that has to be green: lint, types, tests

lint: $(STAMP)   ## ruff, format included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## strict mypy
	$(BIN)/mypy core plugins/*/src docs/examples/*/src

tests: $(STAMP)  ## the daily tests
	$(PYTEST) -q -n $(WORKERS) --dist loadfile

coverage: $(STAMP)  ## what the daily tests run of our code; those that hold a time may fail, as measuring is slow
	rm -f .coverage .coverage.*
	-$(PYTEST) -q -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered --cov-report=html:.cache/coverage

test-slow: $(STAMP)  ## the tests that take minutes each
	$(PYTEST) -q -o faulthandler_timeout=2400 -m "slow and not live and not parity"

test-parity: $(STAMP)  ## compute the stored numerical references again, with torch
	$(PYTHON) scripts/setup_env.py --venv $(VENV)-parity --group parity
	$(VENV)-parity/bin/python -m pytest -q -o faulthandler_timeout=2400 -m parity

test-gpu:        ## the plugins' tests on this machine's GPU, with the libraries that $(PYTHON) has
	$(PYTHON) scripts/test_gpu.py $(OPTIONS)

test-diffusionkit:  ## the diffusionkit back end against diffusers, in an environment of its own
	$(PYTHON) plugins/mlxengine-diffusion/tests/extras/run.py diffusionkit --venv $(VENV)-diffusionkit

test-clients: $(STAMP)  ## other people's clients against the server: SDKs, Claude Code, Codex, proxies, and the page in Chromium
	$(PYTEST) -q plugins/mlxengine-serve/tests/clients/check_clients.py plugins/mlxengine-serve/tests/clients/check_page.py \
		plugins/mlxengine-serve/tests/clients/check_proxies.py

test-integrations:  ## the frameworks' own tests against our adapters, in an environment of its own
	$(PYTHON) scripts/setup_env.py --venv $(VENV)-integrations --group integrations \
		--heavy langchain llama-index chroma lancedb mteb
	$(VENV)-integrations/bin/python -m pytest -q -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function \
		tests/integrations/check_*.py

test-mflux:      ## the mflux back end against diffusers, in an environment of its own
	$(PYTHON) plugins/mlxengine-diffusion/tests/extras/run.py mflux --venv $(VENV)-mflux

test-ray:        ## jobs and servers over replicas with a real Ray, in an environment of its own
	$(PYTHON) scripts/setup_env.py --venv $(VENV)-ray --heavy data serve
	$(VENV)-ray/bin/python -m pytest -q plugins/mlxengine-ray/tests/replicas/check_replicas.py \
		plugins/mlxengine-ray/tests/replicas/check_serving.py

docs: $(STAMP)   ## build the documentation; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs site

demo: $(STAMP)   ## answer a question with a real model, offline
	TRANSFORMERS_VERBOSITY=error $(BIN)/python scripts/demo.py

changelog: $(STAMP)  ## show what has changed since the last version
	@$(BIN)/towncrier build --draft --version next

release: $(STAMP)  ## set the version everywhere: make release VERSION=0.2.0
	$(BIN)/python scripts/release.py $(VERSION)

dist: $(STAMP)   ## build and check an sdist and a wheel of every distribution, into dist/
	rm -rf dist
	for folder in . plugins/* docs/examples/*; do $(BIN)/python -m build -q --no-isolation -o dist $$folder || exit 1; done
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean:           ## remove what these commands made
	rm -rf $(VENV) $(VENV)-parity $(VENV)-diffusionkit $(VENV)-mflux $(VENV)-integrations $(VENV)-ray site dist .mypy_cache .ruff_cache .pytest_cache .cache
