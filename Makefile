# `make help` lists the targets. Everything is installed into .venv, and nothing outside the checkout is touched.

PYTHON ?= python3
# Where `make gpu` puts its measurements.
OUT ?= gpu-results
# Extras to install (pyproject.toml): all that the demo, the tests and the linters need.
EXTRAS ?= dev

PY := .venv/bin/python
INSTALLED := .venv/.installed
BUILD_SOURCES := pyproject.toml setup.py tools/install_torch.py $(shell find csrc -type f 2>/dev/null)
PYTHON_SOURCES := $(shell find paperops kernels benchmarks -name '*.py' 2>/dev/null)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo test lint types docs wheel aot gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=python3.12 chooses the Python of .venv; PAPEROPS_TORCH=cuda, cpu or a requirement chooses torch."

install: $(INSTALLED)  ## .venv with the package, its native library built, and all extras

demo: install  ## 3D-LMNet, trained on real images, in under two minutes
	$(PY) -m paperops demo lmnet3d

# Two processes share the files; waiting threads sleep, so that they do not take the cores from each other.
test: install lint types docs wheel  ## linters, types, documentation and all tests (none needs a GPU)
	OMP_WAIT_POLICY=passive PAPEROPS_WHEEL="$$(ls dist/*.whl)" $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install  ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: install  ## mypy
	$(PY) -m mypy

docs: install  ## the documentation, in build/docs; a warning is an error
	OMP_WAIT_POLICY=passive $(PY) -m sphinx -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "The documentation begins at build/docs/index.html"

wheel: dist/.built  ## a wheel in dist/

aot: install  ## compile every kernel for every architecture, without a GPU; print registers and spills
	$(PY) -m pytest tests/test_aot_triton.py tests/test_aot_cuda.py --capture=no $(ARGS)
	$(PY) tools/aot_triton_table.py

gpu: install  ## on a machine with a GPU: test, check and measure into OUT=gpu-results
	@$(PY) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "This torch sees no GPU. \
	Remove .venv and run: PAPEROPS_TORCH=cuda make gpu")'
	mkdir -p $(OUT)
	$(PY) -m paperops info | tee $(OUT)/info.txt
	$(PY) -m pytest $(ARGS) | tee $(OUT)/test.txt
	$(PY) -m paperops check --device cuda | tee $(OUT)/check.txt
	$(PY) -m paperops bench --device cuda --out $(OUT)/bench | tee $(OUT)/bench.txt
	$(PY) -m paperops bench triangle_multiplication --device cuda --dtype bfloat16 --out $(OUT)/bench | tee -a $(OUT)/bench.txt
	$(PY) -m paperops.benchmarks.gpu_mode_trimul | tee $(OUT)/gpu-mode-trimul.txt
	$(PY) -m paperops.benchmarks.evidence --results $(OUT)/bench | tee $(OUT)/evidence.txt

clean:  ## remove what was built, and .venv
	rm -rf .venv build dist docs/ops docs/models docs/library *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f paperops/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# A Python whose venv cannot make an environment (Debian packs ensurepip apart) leaves half of one behind.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "paperops needs Python 3.10 or newer; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# Without build isolation: the native library is compiled against the torch that will load it. (See pyproject.toml.)
$(INSTALLED): $(BUILD_SOURCES) | $(PY)
	$(PY) tools/install_torch.py
	@echo "Installing paperops: its C++ takes a minute or two to compile, and, where there is an nvcc, its CUDA several"
	@echo "more (PAPEROPS_BUILD_CUDA=0 leaves that out). The table below tells what was built."
	$(PY) -m pip install --quiet --no-build-isolation --editable '.[$(EXTRAS)]'
	$(PY) -m paperops info
	@touch $@

dist/.built: $(INSTALLED) $(PYTHON_SOURCES)
	rm -rf dist build/lib* build/bdist*
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl
	@touch $@
