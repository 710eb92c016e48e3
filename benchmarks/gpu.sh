#!/usr/bin/env bash
# What this project does on a GPU, in at most eight minutes and without a network: see --help.
# Nothing is installed: PYTHON must have torch and what pyproject.toml names.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
