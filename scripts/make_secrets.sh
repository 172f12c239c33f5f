#!/usr/bin/env bash
# Makes the secrets docker-compose.yml mounts. What is there already is kept.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

usage() {
    cat <<'TEXT'
Usage: bash scripts/make_secrets.sh [FOLDER]

Writes into FOLDER (default: secrets/ in the repository), each only if it is missing:
    reward_tokens      who may call the services: a `name:token` line for the trainer and one for Prometheus
    metrics_token      Prometheus' token alone, as it reads it
    grafana_password   the password of Grafana's user admin

The folder is closed to other users of this machine; its files are readable, because the containers' users have other
numbers than yours.
TEXT
}

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    usage
    exit 0
fi
FOLDER="${1:-$ROOT/secrets}"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

write() { # name, content
    printf '%s\n' "$2" >"$FOLDER/.$1"
    chmod 444 "$FOLDER/.$1"
    mv "$FOLDER/.$1" "$FOLDER/$1"
    printf '[secrets] wrote %s\n' "$FOLDER/$1"
}

umask 077
mkdir -p "$FOLDER"
chmod 700 "$FOLDER"
if [[ -e "$FOLDER/reward_tokens" && -e "$FOLDER/metrics_token" ]]; then
    printf '[secrets] kept %s\n' "$FOLDER/reward_tokens" "$FOLDER/metrics_token"
elif [[ -e "$FOLDER/reward_tokens" || -e "$FOLDER/metrics_token" ]]; then
    printf '[secrets] error: %s has one of reward_tokens and metrics_token, which belong together: put the other back, or remove it.\n' "$FOLDER" >&2
    exit 1
else
    metrics="$(random)"
    write metrics_token "$metrics"
    write reward_tokens "trainer:$(random)"$'\n'"prometheus:$metrics"
fi
if [[ -e "$FOLDER/grafana_password" ]]; then
    printf '[secrets] kept %s\n' "$FOLDER/grafana_password"
else
    write grafana_password "$(random)"
fi
