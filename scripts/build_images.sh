#!/usr/bin/env bash
# Builds the images of the reward services and of the trainer with whichever engine is here.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

usage() {
    cat <<'TEXT'
Usage: bash scripts/build_images.sh [NAME ...]

Builds rewards-NAME:TAG for each NAME: a service that is deployed, or trainer.
`python3 -m services.kit.catalogue` lists the services. Without a name: those that `docker compose up` starts.

Environment:
    ENGINE            docker, podman or buildah (default: the first that works)
    TAG               the images' tag (default latest)
    PYTHON_IMAGE      the image to build on (default: the version pinned in the Dockerfiles)
    PIP_CONFIG_FILE   a pip.conf for a private package index; it is mounted while building and stays out of the image
    BUILD_FLAGS       further flags for the engine's build command, separated by blanks
    DRY_RUN=1         print the commands and stop
TEXT
}

die() {
    printf '[images] error: %s\n' "$*" >&2
    exit 1
}

# Reads the list of services: each one's default port, what `docker compose up` starts, and the shelf.
read_catalogue() {
    local list name port deployed
    list="$(cd "$ROOT" && python3 -m services.kit.catalogue)" ||
        die "the list of services cannot be read: python3 (3.8 or newer) is needed."
    while read -r name port deployed; do
        case "$deployed" in
        default) SERVICES+=("$name") ;;
        shelf) SHELF+=("$name") ;;
        *) continue ;;
        esac
        PORTS["$name"]="$port"
    done <<<"$list"
}

find_engine() {
    local candidate
    for candidate in docker podman buildah; do
        # The docker and podman programs are of no use where they reach no daemon or storage.
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" info >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no working docker, podman or buildah found. Install one, start its daemon, or name it: ENGINE=podman."
}

# Sets COMMAND to the build of one image.
build_command() { # engine, name
    local file=docker/service.Dockerfile flags=()
    if [[ "$2" == trainer ]]; then file=docker/trainer.Dockerfile; fi
    read -ra flags <<<"${BUILD_FLAGS:-}"
    COMMAND=("$1" build "${flags[@]}" --file "$file" --tag "rewards-$2:${TAG:-latest}")
    # The OCI format, the default of these two, has no health check.
    if [[ "$1" != docker ]]; then COMMAND+=(--format docker); fi
    if [[ "$2" != trainer ]]; then COMMAND+=(--build-arg "SERVICE=$2" --build-arg "PORT=${PORTS[$2]}"); fi
    if [[ -n "${PYTHON_IMAGE:-}" ]]; then COMMAND+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"); fi
    if [[ -n "${PIP_CONFIG_FILE:-}" ]]; then COMMAND+=(--secret "id=pip,src=$PIP_CONFIG_FILE"); fi
    COMMAND+=(.)
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    usage
    exit 0
fi
declare -A PORTS=()
SERVICES=() SHELF=()
read_catalogue
NAMES=("$@")
((${#NAMES[@]})) || NAMES=("${SERVICES[@]}")
for name in "${NAMES[@]}"; do
    [[ "$name" == trainer || -n "${PORTS[$name]:-}" ]] || die "no image $name. There are: ${SERVICES[*]} ${SHELF[*]} trainer."
done
if [[ "${DRY_RUN:-0}" == 1 ]]; then ENGINE="${ENGINE:-docker}"; else ENGINE="${ENGINE:-$(find_engine)}"; fi
cd "$ROOT"
for name in "${NAMES[@]}"; do
    build_command "$ENGINE" "$name"
    printf '%q ' "${COMMAND[@]}"
    printf '\n'
    if [[ "${DRY_RUN:-0}" != 1 ]]; then "${COMMAND[@]}" || die "building rewards-$name failed (see above)."; fi
done
