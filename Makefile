# The commands of a fresh machine: make demo, make test. While you work: make quick.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Each of the two workers has one thread: two of two threads each are several times slower.
# Compiled modules are kept: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-long test-extras quick check format docs pictures wheel-test bench clean

demo: .venv/run ## train and attack two models on embedded data, write a report
	$(BIN)/equipoise demo

test: .venv/dev check ## lint, types, layers, all tests but the longest and those of heavy optional packages
	$(PYTEST) -m "not long and not extras and not cuda"

test-long: .venv/dev ## the tests that take more than ten seconds each
	$(PYTEST) -m "long and not extras"

test-extras: .venv/extras ## the tests with packages of others, which must be there
	EQUIPOISE_REQUIRE_PEERS=1 $(PYTEST) -m extras

quick: .venv/dev check ## lint, types, layers and the fast tests: two minutes on two cores
	$(PYTEST) -m "not slow and not long and not extras and not cuda"

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs ## the site, in site/: guides, API, commands; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict
	$(BIN)/python -m website.check site

pictures: demo .venv/dev ## the pictures of the documents; needs Chromium
	$(BIN)/python -m website.pictures

wheel-test: .venv/bin/python ## build the wheel, run the demo from it in an empty environment
	$(BIN)/python tests/wheel.py

bench: .venv/extras ## ours against others, side by side; a quarter of an hour
	$(BIN)/python -m benchmarks --out runs/bench.json

clean:
	rm -rf .venv build dist site src/*.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("equipoise needs Python 3.11 or newer; got " + sys.version.split()[0] + ". Set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -e '.[torch-tested]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@ .venv/run

# torchattacks asks for packages that break others, and needs none of them for what is compared.
.venv/extras: .venv/dev
	$(BIN)/pip install -q -e '.[peers,export,loops,tensorboard,mlflow,wandb,sweep,slurm,dask]'
	$(BIN)/pip install -q --no-deps torchattacks==3.5.1
	@touch $@

.venv/docs: .venv/dev
	$(BIN)/pip install -q -e '.[docs]'
	@touch $@
