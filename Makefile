# Each target works alone on a machine with Python 3.11 or later and make, and works twice in a row.
#   make train ARGS="--env Acrobot-v1"    make test ARGS="tests/test_actions.py -x"
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# As variables, so that the isolated build environment is pinned too, not only what `pip install`
# names. Before pip 25.3 the first covers both.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install train test check format lint types imports lock clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, \
	$(PYTHON) is " + sys.version.split()[0] + "; name another one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[all]'
	@touch $@

train: install
	$(BIN)/rl-gumbel train $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

check: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest

format: install
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: install
	$(BIN)/ruff check

# New pins for everything but torch, whose pin moves by hand (its first line is kept).
lock:
	grep '^torch==' constraints.txt > .torch-pin
	$(PYTHON) -m venv --clear .venv-lock
	PIP_CONSTRAINT=.torch-pin PIP_BUILD_CONSTRAINT=.torch-pin \
		.venv-lock/bin/python -m pip install --quiet --editable '.[all]'
	{ sed -n '/^#/p' constraints.txt; .venv-lock/bin/python -m pip freeze --all --exclude pip \
		--exclude-editable | sed 's/^\(torch==[^+]*\)+.*/\1/'; } > .constraints
	mv .constraints constraints.txt
	rm -rf .torch-pin .venv-lock

clean:
	rm -rf $(VENV) .venv-* build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
