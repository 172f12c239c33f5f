# shellcheck shell=bash
# Makes redis-server available to the tests, which start one of their own. Sourced by test.sh.
#
#   ensure_redis    installs it with apt-get where that is possible; otherwise says that its tests skip, or, where CI
#                   is set, stops: there, nothing may be skipped for want of a package

ensure_redis() {
    command -v redis-server >/dev/null 2>&1 && return
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null 2>&1; then
        say "installing redis-server"
        # RUNLEVEL: the package must not start a server of its own.
        if DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
            bash -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server' </dev/null; then
            return
        fi
    fi
    [[ -z "${CI:-}" ]] || die "redis-server is missing and could not be installed. Install Redis 7 (Debian, Ubuntu: apt-get install redis-server)."
    say "redis-server is missing; the tests that need it will skip (Debian, Ubuntu: apt-get install redis-server)"
}
