# Every target does its own set-up: a virtual environment in .venv and an editable install that builds the kernels.
#
#   make demo      train, search, extract and check a subnet on scikit-learn's digits
#   make test      lint and the tests, but for those marked slow
#   make test-slow the tests marked slow, which check the same at full size
#   make test-oldest  make test with the oldest dependencies that pyproject.toml allows, in .venv-oldest
#   make test-newest  make test with the newest ones of today, in .venv-newest
#   make fuzz      10,000 mutated inputs (FUZZ_N, FUZZ_SEED); GUIDED=1 by coverage, with atheris installed
#   make mutants   small faults in the sources, twenty of the list or with ALL=1 every one: a test fails for each
#   make sanitize  the CPU kernels under AddressSanitizer and UBSan
#   make lint      ruff alone
#   make docs      the documentation as a website in site/, links checked
#   make bench     the kernels against torch
#   make gpu       the checks and measurements that need a CUDA device, RUN=a or RUN=b, with the python3 that has torch (no .venv)
#   make clean     remove what was built; .venv stays
#
# PYTHON=... chooses the interpreter .venv is made from, and the one `make gpu` uses.

.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-oldest test-newest fuzz mutants sanitize lint docs bench gpu clean setup

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_OPTIONS :=
DOCS_STAMP := $(VENV)/.installed-docs
SOURCES := $(shell find csrc -type f 2>/dev/null)

# A name on PATH may be a shim for a version that is not installed, so each candidate has to run.
OLDEST := import sys, venv; sys.exit(sys.version_info < (3, 11))
CANDIDATES := python3.13 python3.12 python3.11 python3

demo: $(STAMP)
	$(BIN)/growtas demo

# Many tests start a Python of their own: bytecode is kept, whatever the environment says.
test: lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 -m slow

test-oldest:
	$(MAKE) test VENV=.venv-oldest PIP_OPTIONS="--constraint tests/oldest.txt"

test-newest:
	rm -f .venv-newest/.installed
	$(MAKE) test VENV=.venv-newest PIP_OPTIONS="--upgrade --upgrade-strategy eager"

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/fuzz.py --n $(or $(FUZZ_N),10000) --seed $(or $(FUZZ_SEED),0) $(if $(GUIDED),--guided)

mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py $(if $(ALL),--all,$(if $(SEED),--seed $(SEED)))

# A module of its own, built beside the installed one, which stays.
sanitize: $(STAMP)
	$(BIN)/python building/sanitize.py

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Strict: a broken link or an undocumented parameter fails. The variable silences Material's advertisement.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks -n 0 --benchmark-only
	$(BIN)/python benchmarks/slice_matmul.py

gpu:
	$(or $(PYTHON),python3) benchmarks/gpu.py --run $(or $(RUN),a)

setup: $(STAMP)

$(BIN)/python:
	@python=""; \
	for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
	    if $$candidate -c '$(OLDEST)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "growtas needs Python 3.11 or newer with its venv module, and none of $(or $(PYTHON),$(CANDIDATES)) is that:" \
	        "install one (Debian and Ubuntu: apt install python3 python3-venv python3-dev) or run make PYTHON=/path/to/python3." >&2; \
	    exit 1; \
	fi; \
	if ! $$python -m venv $(VENV); then \
	    rm -rf $(VENV); \
	    echo "$$python could not create $(VENV): install its venv module (Debian and Ubuntu: apt install python3-venv)." >&2; \
	    exit 1; \
	fi

# Dependencies and kernels: made again when either changes. The Python sources are used where they lie.
$(STAMP): $(BIN)/python pyproject.toml setup.py $(SOURCES)
	$(BIN)/python -m pip install$(if $(PIP_OPTIONS), $(PIP_OPTIONS)) -e '.[dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $@

clean:
	rm -rf build dist site .cache *.egg-info demo-output fuzz-failures .pytest_cache .ruff_cache .benchmarks .hypothesis
	rm -f growtas/_cpu*.so growtas/_cuda*.so growtas/_build_cpu.json growtas/_build_cuda.json $(STAMP) $(DOCS_STAMP)
	find growtas kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
