# Needs Python 3.11 or newer with pip, and make. Another interpreter:
#   make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SPHINXOPTS ?=
# Small networks gain nothing from threads: a process for each of two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo test test-slow test-browser lint docs clean

help:
	@echo "make demo       forecast real patients from their first readings (3 minutes)"
	@echo "make test       format check, lint, tests and doctests (10 minutes)"
	@echo "make test-slow  the tests that take longer"
	@echo "make test-browser  the page of examples/browser, in headless Chromium"
	@echo "make lint       format check and lint only"
	@echo "make docs       build the documentation, examples included"
	@echo "make clean      remove the virtual environment and everything built"

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/plot_forecast_patients.py

test: lint
	$(PYTEST) -n 2

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow -n 2

# Needs Chromium and npm.
test-browser: $(VENV)/.installed-test examples/browser/node_modules/.package-lock.json
	$(PYTEST) -m browser tests/browser

examples/browser/node_modules/.package-lock.json: examples/browser/package-lock.json
	npm ci --prefix examples/browser
	@touch $@

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html $(SPHINXOPTS) docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build docs/auto_examples docs/generated
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an interrupted install starts again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sk_meta needs Python 3.11 or newer; $(PYTHON) is not." \
	       "Name one that is: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing sk_meta[$*] into $(VENV): a few minutes, once"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@
