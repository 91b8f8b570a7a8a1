# The environment is .venv at the root, made on first use from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run serve test check stress soak fuzz bench picture gpu gpu-report gpu-wheels clean

# The shipped model with a quarter of its 192 experts in slots, and a prompt of its own world.
run: $(STAMP)
	@$(BIN)/sidestage run --slots 48 --prompt "Once upon a time there was a king who"

# The same over HTTP, at 127.0.0.1:8000, until Ctrl-C.
serve: $(STAMP)
	@$(BIN)/sidestage serve --slots 48

# One worker a core; a file's tests stay together, for they share stores and processes.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile -rs

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist loadfile -rs

stress: $(STAMP)
	$(BIN)/python -m pytest -m stress

# Half an hour of everything at once; memory must stay flat. Its table is in the lab book.
soak: $(STAMP)
	$(BIN)/sidestage stress --seconds 1800 --clients 2 --faults all --json -

# Each parser for a minute; `pip install -e '.[fuzz]'` guides it by coverage.
FUZZ_SECONDS ?= 60
fuzz: $(STAMP)
	for target in codec arena manifest safetensors config trace units; do \
	    $(BIN)/python tests/fuzz/fuzz.py $$target $(FUZZ_SECONDS) || exit 1; \
	done

bench: $(STAMP)
	$(BIN)/python -m pytest -m bench -s
	$(BIN)/sidestage bench

# The README's picture: a real run and what `sidestage top` shows of it.
picture: $(STAMP)
	$(BIN)/python docs/pictures/record.py

# Both need a CUDA device: what must hold there (under five minutes), and the figures (under ten).
gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu tests/gpu

GPU_REPORT ?= build/gpu
gpu-report: $(STAMP)
	$(BIN)/python tests/gpu/report.py $(GPU_REPORT)

# What a machine without network may lack, for its version of Python: docs/gpu.md. hqq has no wheel of its own.
GPU_PYTHON ?= 3.12
gpu-wheels: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps -c constraints.txt --wheel-dir build/gpu-wheels hqq
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --python-version $(GPU_PYTHON) \
	    --dest build/gpu-wheels pyzmq einops termcolor

# Leaves the environment alone; remove .venv to have it made again.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find protocol loader compute launch tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The build compiles C files, so those are prerequisites as well.
$(STAMP): pyproject.toml constraints.txt $(wildcard hatch_build.py compute/kernels/build.py compute/kernels/*.c compute/kernels/c/*.h compute/policies/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "sidestage needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
