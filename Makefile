# Two commands do all the set-up: `make demo` and `make test`. Everything is installed into .venv, from constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
# Two test files at a time: most of what starts processes waits for them. A test that takes its process with it ends all:
# pytest-xdist can wait for ever for what would have come after it (https://github.com/pytest-dev/pytest-xdist/issues/1378).
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart=0 --durations=5

# Older processors' instructions, in oneDNN, torch's own kernels and MKL.
SSE := DNNL_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default
AVX2 := DNNL_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: demo test test-all quick chaos bench gpu-dry check api clean

demo: .venv/installed
	$(BIN)/ddpo train demo

test: .venv/tested
	$(PYTEST) -m "not ray"
	$(PYTEST) -m ray

# This processor's instructions first, then what networks compute under those of two older ones.
test-all: test
	$(SSE) $(PYTEST) -m numbers
	$(AVX2) $(PYTEST) -m numbers

quick: .venv/tested
	$(PYTEST) -m "not ray"

chaos: .venv/tested
	$(BIN)/python tests/chaos --count 20

bench: .venv/installed
	$(BIN)/python -m bench

# The GPU check on a CPU with tiny networks: that all of its parts run. On a GPU: python -m bench.gpu
gpu-dry: .venv/installed
	$(BIN)/python -m bench.gpu --dry

check: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/pyright

# HTML from the docstrings: docs/api/index.html
api: .venv/tested
	$(BIN)/pdoc --no-show-source -o docs/api ddpo actors rewards learner deploy

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# torch is named on its own first: a range alone makes pip choose the newest build with gigabytes of CUDA libraries.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache docs/api *.egg-info
