#!/usr/bin/env bash
# Lint, formatting, types and shell scripts: `make lint`, and part of continuous integration.
# Runs all of them and fails if one did.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh
ensure_venv dev
status=0

check() { # program, arguments ...
    printf '[lint] %s\n' "$*"
    "$VENV/bin/$1" "${@:2}" || status=1
}

check ruff check .
check ruff format --check .
check mypy
check shellcheck -x train.sh test.sh scripts/*.sh deploy/slurm/*.sbatch .ci/run
exit "$status"
