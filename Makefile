# Each target does its own set-up: all it needs is python3 (3.11 or newer, with venv) and make.
# Everything lands in this directory; `make clean` takes it away again.

PYTHON ?= python3
JOBS ?= 2

# The first pip that knows dependency groups.
PIP := 'pip>=25.1'

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test compiled dist servers browser cpython-tests test-oldest-celery test-pythons lint format bench bench-full docs docs-links changelog clean

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_CACHE_DIR := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.12   the interpreter to make a new $(VENV) with'
	@echo '  JOBS=4              how many tests to run at once (2)'

DEMO := build/demo

# Three of the inputs are bad, so prefork's exit code 1 is right; the check looks at each of them.
demo: $(DEMO_INSTALLED) ## Measure the standard library, and three files that behave badly
	@$(BIN)/python examples/stdlib_demo.py prepare $(DEMO)
	$(BIN)/python -m prefork map examples/stdlib_metrics.py:measure \
	  --lines $(DEMO)/inputs.txt --timeout 10 --output $(DEMO)/results.jsonl --overwrite || [ $$? -eq 1 ]
	@$(BIN)/python examples/stdlib_demo.py check $(DEMO)

PYTEST := $(BIN)/python tests/steady.py

test: $(INSTALLED) servers browser cpython-tests lint compiled ## Lint, then run all tests
# The tests get a temporary directory of their own, which goes with them. The unit tests take the
# source apart; what is compiled is tested as a whole.
	@scratch=$$(mktemp -d "$${TMPDIR:-/tmp}/prefork-test.XXXXXX"); \
	trap 'rm -rf "$$scratch"' EXIT; \
	export TMPDIR="$$scratch"; \
	$(PYTEST) -n $(JOBS) --dist worksteal -m 'not serial' --ignore tests/celery_worker; \
	$(PYTEST) -n $(JOBS) --dist loadfile tests/celery_worker; \
	$(PYTEST) -m serial --ignore tests/celery_worker; \
	PYTHONPATH=$(CURDIR)/$(COMPILED) $(PYTEST) -n $(JOBS) --dist worksteal -m 'not serial' tests/integration

# What `pip install` makes of the source where there is a C compiler. In a place of its own, since
# the tests are to be run with both.
COMPILED := build/compiled
compiled: $(COMPILED)/.made ## Compile the modules that every call goes through, into build/compiled
$(COMPILED)/.made: $(INSTALLED) pyproject.toml tools/build_hook.py tools/compile.py $(shell find src -name '*.py')
	@echo 'Compiling into $(COMPILED)'
	@rm -rf $(COMPILED)
	@PREFORK_PURE=0 $(BIN)/pip install --quiet --no-deps --target $(COMPILED) .
	@touch $@

DIST_TOOLS := build/dist-tools
dist: $(DIST_TOOLS)/.installed ## Build the sdist and all wheels into dist, check them, and try each
	@$(DIST_TOOLS)/bin/python tools/make_dist.py $(JOBS)

$(DIST_TOOLS)/.installed: $(DEMO_INSTALLED)
	@echo 'Setting up $(DIST_TOOLS)'
	@$(BIN)/python -m venv --clear $(DIST_TOOLS)
	@$(DIST_TOOLS)/bin/python -m pip install --quiet --upgrade $(PIP)
	@$(DIST_TOOLS)/bin/python -m pip install --quiet --group dist
	@touch $@

# Redis and RabbitMQ, for the tests of celery workers; the tests start servers of their own.
SERVERS := redis-server rabbitmq-server

servers: ## Install Redis and RabbitMQ from Debian's packages, if they are not there (as root)
	@missing=; for name in $(SERVERS); do \
	  [ -n "$$(PATH="$$PATH:/usr/sbin" command -v $$name)" ] || missing="$$missing $$name"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "prefork: the tests need$$missing:" \
	    "install them (Debian: sudo apt-get install --no-install-recommends$$missing)" >&2; exit 1; \
	fi; \
	$(INSTALL_MISSING)

# For the tests of reports, which are skipped without it.
browser: ## Install Chromium from Debian's package, if it is not there (as root)
	@missing=chromium; \
	! command -v chromium chromium-browser >/dev/null || exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "Without Chromium, the tests of reports in a browser are skipped" \
	    "(Debian: sudo apt-get install --no-install-recommends chromium)"; exit 0; \
	fi; \
	$(INSTALL_MISSING)

# No server is started by its installation.
define INSTALL_MISSING
echo "Installing $$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	guard=; [ -e /usr/sbin/policy-rc.d ] || { guard=1; \
	  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }; \
	trap '[ -z "$$guard" ] || rm -f /usr/sbin/policy-rc.d' EXIT; \
	{ apt-get -qq update && apt-get -qq install --no-install-recommends $$missing; } >/dev/null
endef

# Some installations of Python 3.11 and 3.12 come without CPython's tests of executors. Debian has
# those of 3.11, in a package of which one file is unpacked; without it, these tests are skipped.
CPYTHON_TESTS := build/cpython-tests
cpython-tests:
	@[ ! -e $(CPYTHON_TESTS) ] || exit 0; \
	scratch=$$(mktemp -d "$${TMPDIR:-/tmp}/prefork-cpython.XXXXXX"); \
	trap 'rm -rf "$$scratch"' EXIT; \
	get() { (cd "$$scratch" && apt-get -qq download libpython3.11-testsuite) 2>/dev/null; }; \
	{ get || { apt-get -qq update && get; } && dpkg-deb --extract "$$scratch"/*.deb "$$scratch"; } >/dev/null 2>&1 || { \
	  echo "Debian's package of CPython's tests cannot be had: where Python has no tests of executors, they are skipped"; exit 0; }; \
	mkdir -p $(CPYTHON_TESTS); \
	cp "$$scratch"/usr/lib/python3.11/test/test_concurrent_futures.py $(CPYTHON_TESTS)

# PYTHONS passes options on, as in: make test-pythons PYTHONS='--share full 3.13 3.14'
test-pythons: cpython-tests ## The tests on other versions of Python: those that are here, or can be installed
	@'$(PYTHON)' tests/other_pythons.py --jobs $(JOBS) $(PYTHONS)

OLDEST := 5.3.0
test-oldest-celery: $(INSTALLED) servers ## The tests of celery workers with the oldest celery
	@$(BIN)/python -m venv build/oldest
	@build/oldest/bin/python -m pip install --quiet --upgrade $(PIP)
	@PREFORK_PURE=1 build/oldest/bin/pip install --quiet 'celery[redis]==$(OLDEST)' --editable . --group dev
	build/oldest/bin/pytest -n $(JOBS) --dist loadfile tests/celery_worker

lint: $(INSTALLED) ## Check style, format, types, layers and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

format: $(INSTALLED) ## Format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

BENCH_INSTALLED := $(VENV)/.installed-bench
RAY_TRIED := $(VENV)/.tried-ray
DOCS_INSTALLED := $(VENV)/.installed-docs

# BENCH passes options on, as in: make bench BENCH='--only apply imap --rounds 5'
bench: $(BENCH_INSTALLED) compiled ## Measure beside other pools: two minutes (all of it: make bench-full)
	$(BIN)/python -m benchmarks.side_by_side run $(if $(FULL),--full) $(BENCH)
	$(BIN)/python -m benchmarks.side_by_side page

bench-full: $(RAY_TRIED) ## All workloads, in full size: an hour
	@$(MAKE) --no-print-directory bench FULL=1

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

# Warnings are errors, and so are links between pages that lead nowhere.
SPHINX = $(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs auto --doctree-dir build/site-doctrees

docs: $(DOCS_INSTALLED) ## Build the site into build/site: open build/site/index.html
	@rm -rf build/site
	@$(SPHINX) --builder html docs build/site

docs-links: $(DOCS_INSTALLED) ## Look whether the site's links to other sites work
	@$(SPHINX) --builder linkcheck docs build/site-links

changelog: $(INSTALLED) ## Move the news fragments into CHANGELOG.md, as those of the version that is set
	@grep -qx 'version: $(VERSION)' CITATION.cff && grep -qx '__version__ = "$(VERSION)"' src/prefork/__init__.py || { \
	  echo 'prefork: pyproject.toml says $(VERSION): CITATION.cff and src/prefork/__init__.py must, too' >&2; exit 1; }
	$(BIN)/towncrier build --yes --version '$(VERSION)'

clean: ## Remove all that the other targets made
	rm -rf $(VENV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the demo needs is little, and enough for a first look; so the rest comes later. An editable
# install runs from `src`, and nothing is compiled for it: PREFORK_PURE keeps the compiler out.
$(INSTALLED): $(DEMO_INSTALLED)
	@echo 'Adding what developers need'
	@$(BIN)/python -m pip install --quiet --upgrade $(PIP)
	@PREFORK_PURE=1 $(BIN)/python -m pip install --quiet --editable '.[celery,cli]' --group dev
	@touch $@

$(DEMO_INSTALLED): pyproject.toml
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo 'prefork: no $(PYTHON) here: install Python 3.11 or newer, or set PYTHON' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "prefork: needs Python 3.11 or newer; $(PYTHON) is $$('$(PYTHON)' -V 2>&1):" \
	    'set PYTHON to a newer one' >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'prefork: $(PYTHON) cannot make a virtual environment:' \
	    'install it (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@echo 'Setting up $(VENV)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@PREFORK_PURE=1 $(BIN)/python -m pip install --quiet --editable '.[cli]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@echo 'Adding what the benchmarks need'
	@$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(RAY_TRIED): $(BENCH_INSTALLED)
	@echo 'Adding Ray'
	@$(BIN)/python -m pip install --quiet --group bench-ray || echo 'Ray cannot be had for this Python: it is left out'
	@touch $@

$(DOCS_INSTALLED): $(DEMO_INSTALLED)
	@echo 'Adding what the site needs'
	@$(BIN)/python -m pip install --quiet --upgrade $(PIP)
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $@
