# Everything a person does here. Only Python 3.11 or 3.12 and a C compiler are expected on the machine.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3,$(shell command -v $(name) 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ARGS ?=
# Two workers of pytest: what starts processes of its own fills the cores beside what computes in one.
WORKERS ?= 2
TEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: setup train train-3d test test-all test-slurm check bench golden layouts clean

setup: $(STAMP)

# torch first and exactly: the CPU build is taken where pip is told of one, and nothing after it may replace it.
# DS_BUILD_OPS=0: DeepSpeed compiles what it needs at first use instead of everything now.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

train: setup
	$(BIN)/triaxis train experiment=tiny $(ARGS)

train-3d: setup
	$(BIN)/triaxis train experiment=tiny_3d $(ARGS)

test: setup
	$(TEST) -m "not slow and not slurm" $(ARGS)

test-all: setup
	$(TEST) -m "not slurm" $(ARGS)

test-slurm: setup  # a SLURM of several nodes on this machine, with real training jobs; Debian's packages, in a few seconds
	slurm/testcluster/install
	$(BIN)/python -m pytest -m slurm tests/slurm $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

golden: setup  # after a change that is meant to move curves
	$(BIN)/python tests/golden/record.py

bench: setup
	$(BIN)/triaxis bench train $(ARGS)

layouts: setup  # after a change of the list in tests/parallel/test_parity.py: README's table
	$(BIN)/python -m pytest tests/parallel/test_parity.py -k test_matches_single_process --junitxml=build/layouts.xml
	$(BIN)/python -m tests.parallel.record_layouts build/layouts.xml

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
