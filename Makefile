# The two commands of a fresh machine: make demo, make test.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check format bench clean

demo: .venv/run ## train and attack two models on embedded data, write a report
	$(BIN)/equipoise demo

test: .venv/dev check ## lint, types, layers, tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/dev ## ours against others, side by side; a quarter of an hour
	$(BIN)/equipoise bench --out runs/bench.json

clean:
	rm -rf .venv build dist src/*.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("equipoise needs Python 3.11 or newer; got " + sys.version.split()[0] + ". Set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -e '.[torch-tested]'
	@touch $@

# torchattacks asks for packages that break others, and needs none of them for what is compared.
.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q --no-deps torchattacks==3.5.1
	@touch $@ .venv/run
