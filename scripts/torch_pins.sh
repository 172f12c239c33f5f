#!/bin/sh
# Prints pip's options for the torch of this package index, one a line, for a requirements file that has torch: a constraint
# to the build for a CPU where the index has one, else the pins of what the build for CUDA needs, as PyPI has it.
#   sh scripts/torch_pins.sh PYTHON REQUIREMENTS
set -eu

pins="$(cd "$(dirname "$0")/../requirements" && pwd -P)"
torch="$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$2")"
[ -n "$torch" ] || exit 0
# pip reads the metadata of what it would install. Where it cannot, the installation says why.
report="$("$1" -m pip install --disable-pip-version-check --quiet --dry-run --ignore-installed --no-deps --report - \
    "$torch" </dev/null 2>/dev/null)" || report=""
case "$report" in
    *'+cpu"'*) printf '%s\n' "--constraint=$pins/cpu.txt" ;;
    *nvidia-*) printf '%s\n' "--requirement=$pins/cuda.txt" ;;
esac
