#!/bin/sh
# Makes a Docker engine answer on this machine: installs Debian's packages where dockerd is missing, starts
# dockerd where nothing answers. Run as root; run again, it changes nothing. Says what it does.
set -eu

LOG=${WORLDSMITH_DOCKERD_LOG:-/var/log/worldsmith-dockerd.log}
WAIT_S=${WORLDSMITH_DOCKERD_WAIT_S:-60}

say() { printf 'docker.sh: %s\n' "$*" >&2; }

answers() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

install_missing() {
    missing=""
    command -v dockerd >/dev/null 2>&1 || missing="$missing docker.io"
    command -v docker >/dev/null 2>&1 || missing="$missing docker.io"
    command -v iptables >/dev/null 2>&1 || missing="$missing iptables"
    command -v debootstrap >/dev/null 2>&1 || missing="$missing debootstrap"
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        say "missing:$missing; installing needs root: run 'sudo .ci/docker.sh'"
        exit 3
    fi
    if ! command -v apt-get >/dev/null 2>&1; then
        say "missing:$missing; this script knows only apt-get: install them by hand, then run it again"
        exit 3
    fi
    say "installing$missing with apt-get"
    # policy-rc.d would be the clean way to keep the package from starting a service; without an init it cannot.
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words on purpose
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

start_engine() {
    if [ "$(id -u)" -ne 0 ]; then
        say "no engine answers and starting one needs root: run 'sudo .ci/docker.sh'"
        exit 3
    fi
    say "no engine answers: starting dockerd in the background, its log is $LOG"
    # A pid file left by a dead engine makes dockerd refuse to start.
    pid_file=/var/run/docker.pid
    if [ -f "$pid_file" ] && ! kill -0 "$(cat "$pid_file")" 2>/dev/null; then
        say "removing $pid_file, which a dead engine left"
        rm -f "$pid_file"
    fi
    setsid nohup dockerd >>"$LOG" 2>&1 </dev/null &
    tries=0
    while ! answers >/dev/null; do
        tries=$((tries + 1))
        if [ "$tries" -ge "$((WAIT_S * 2))" ]; then
            say "dockerd did not answer within $WAIT_S s; the end of $LOG:"
            tail -n 20 "$LOG" >&2
            exit 3
        fi
        sleep 0.5
    done
}

install_missing
if version=$(answers) && [ -n "$version" ]; then
    say "an engine answers already: version $version"
else
    start_engine
    say "engine $(answers) answers"
fi
