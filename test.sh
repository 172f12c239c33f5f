#!/usr/bin/env bash
# Runs the tests: sets up the environment if needed, then pytest. Arguments go to pytest.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"

usage() {
    cat <<'TEXT'
Usage: bash test.sh [--all | pytest arguments ...]

    bash test.sh                          all but the slow ones, in three processes; what needs a GPU, a vLLM server, Redis
                                          or a browser that is not there is skipped with the reason
    bash test.sh --all                    the slow ones, too: long runs, kills at random, many processes
    bash test.sh tests/services -x -q     one folder, stopping at the first failure

Environment: PYTHON, VENV as in train.sh; DRY_RUN=1 prints the command and stops.
TEXT
}

# shellcheck source=scripts/setup_venv.sh
source "$ROOT/scripts/setup_venv.sh"
# shellcheck source=scripts/ensure_redis.sh
source "$ROOT/scripts/ensure_redis.sh"

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    usage
    exit 0
fi
# First what shares a vLLM server, alone, because a killed server's restart has a deadline; then the rest. A file stays in
# one process, for its fixtures, and files come in their order, so that the last ones, of the wire, are short
# (docs/decisions/0061-tests-under-fifteen-minutes.md).
if (($# == 0)) || [[ "$*" == --all ]]; then
    status=0
    [[ "$*" == --all ]] && rest="not vllm" || rest="not vllm and not slow"
    bash "${BASH_SOURCE[0]}" tests/vllm -m vllm || status=$?  # all of them lie there: tests/test_scripts.py
    bash "${BASH_SOURCE[0]}" -n 3 --dist loadfile --no-loadscope-reorder -m "$rest" || status=$?
    exit "$status"
fi
if [[ "${DRY_RUN:-0}" == 1 ]]; then
    printf '%q ' python -m pytest "$@"
    printf '\n'
    exit 0
fi

ensure_venv dev
ensure_redis
cd "$ROOT"
printf '[test] python -m pytest %s\n' "$*"
exec "$VENV_PYTHON" -m pytest "$@"
