# shellcheck shell=bash
# For the scripts that have the names of DeepGen-RL's: runs our command in its place. Sourced.
#
#   replace_by program arguments ...    prints the command; runs it with our environment, unless DRY_RUN=1
#
# A program that starts with "python" is that of our environment, which is made if needed. What runs stays in the folder
# where the command was typed, so relative paths count from there.

# shellcheck source=scripts/setup_venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
ROOT="$SETUP_ROOT"

replace_by() {
    local command=("$@")
    if [[ "${DRY_RUN:-0}" != 1 && "$1" == python ]]; then
        ensure_venv base
        command[0]="$VENV_PYTHON"
        export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    fi
    printf '%q ' "${command[@]}"
    printf '\n'
    [[ "${DRY_RUN:-0}" == 1 ]] || exec "${command[@]}"
}

# Unset a variable of DeepGen-RL's trainer that our service would read as a setting of its own.
leave_out() { # name, what our service means by it
    if [[ -n "${!1:-}" ]]; then
        say "$1=${!1} is a setting of DeepGen-RL's trainer, and $2 of our service: left out. Give --workers to set it."
        unset "$1"
    fi
}
