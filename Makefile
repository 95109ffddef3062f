# Each target works alone on a machine with Python 3.11 or later and make, and works twice in a row.
#   make train ARGS="--env Acrobot-v1"      make test ARGS="tests/test_actions.py -x"
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON_IS_NEW := import sys; sys.version_info >= (3, 11) or sys.exit( \
	"Python 3.11 or later is needed, as in: make PYTHON=python3.11 ...")

# As variables, so that the isolated build environment is pinned too, not only what `pip install`
# names. Before pip 25.3 the first covers both.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install train test test-full docs check lint types imports format lock clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(PYTHON_IS_NEW)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[all]'
	@touch $@

train: install
	$(BIN)/rl-gumbel train $(ARGS)

# Two workers of one thread each: half the time on two cores, no more memory than a laptop has.
test: export OMP_NUM_THREADS := 1
test: install
	$(BIN)/python -m pytest --numprocesses 2 $(ARGS)

docs: install
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build

# What takes minutes: hundreds of faults instead of a few.
test-full: export OMP_NUM_THREADS := 1
test-full: install
	$(BIN)/python -m pytest --numprocesses 2 -m full $(ARGS)

check: lint types imports test

lint: install
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports --no-logo

format: install
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# New pins for everything but torch, whose pin moves by hand.
lock: export PIP_CONSTRAINT := .venv-lock/torch.txt
lock: export PIP_BUILD_CONSTRAINT := .venv-lock/torch.txt
lock:
	$(PYTHON) -m venv --clear .venv-lock
	grep '^torch==' constraints.txt > .venv-lock/torch.txt
	.venv-lock/bin/python -m pip install --editable '.[all]'
	grep '^#' constraints.txt > .venv-lock/constraints.txt
	.venv-lock/bin/python -m pip freeze --all --exclude pip --exclude-editable \
		| sed 's/^\(torch==[^+]*\)+.*/\1/' >> .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .venv-* build dist docs/_build
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
