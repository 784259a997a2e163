#!/usr/bin/env bash
# What launch/tpu_pod.sh does on one worker of a TPU pod: it copies this file there, and calls it through ssh.
#
# Everything lies in ~/r2d2_jax of the worker:
#   code.tar, code/, commit   this package at one commit
#   venv/                     its packages
#   run/                      command, log, pid and status of the last run; stopped or terminated if it was asked to
set -euo pipefail

here="$HOME/r2d2_jax"

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The package wants Python 3.11 to 3.13; the images of TPU VMs have 3.10.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11; do
    if command -v "$name" > /dev/null; then
      echo "$name"
      return
    fi
  done
  echo python3.11
}

# A machine that has just started may still be updating itself, and holds the lock of apt meanwhile.
apt_get() {
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq "$@" >&2
}

# get_python: the name of a Python that can make environments, which Debian and Ubuntu put into a package of its own.
get_python() {
  local python
  python=$(find_python)
  if ! "$python" -c "import ensurepip" 2> /dev/null; then
    apt_get update || fail "apt-get update failed; expected that $python can be installed from the image's sources"
    apt_get install "$python" "$python-venv" ||
      fail "apt-get cannot install $python-venv; install Python 3.11 to 3.13 in the file of --setup"
  fi
  echo "$python"
}

# install COMMIT: unpacks code.tar and installs it; runs setup.sh before, if tpu_pod.sh has copied one.
install() {
  local python
  alive && fail "a run is at work here; expected none; stop it first"
  [ ! -f "$here/setup.sh" ] || bash "$here/setup.sh" || fail "setup.sh, the file of --setup, ended with status $?"
  python=$(get_python)
  rm -rf "$here/code.new"
  mkdir "$here/code.new"
  tar -xf "$here/code.tar" -C "$here/code.new"
  rm -rf "$here/code"
  mv "$here/code.new" "$here/code"
  "$python" -m venv "$here/venv"
  "$here/venv/bin/python" -m pip install --quiet --editable "$here/code[tpu,gcs]"
  echo "$1" > "$here/commit"
}

# start PROGRAM FLAGS: starts the program so that it survives this connection.
start() {
  alive && fail "a run is at work here; expected none; stop it first"
  [ -x "$here/venv/bin/python" ] && [ -f "$here/commit" ] || fail "the package is not installed here; install it first"
  mkdir -p "$here/run"
  rm -f "$here"/run/{pid,program,status,stopped,terminated}
  printf '%q ' "$@" > "$here/run/command"
  setsid nohup bash "$here/worker.sh" supervise "$@" > /dev/null 2>&1 < /dev/null &
  echo "$!" > "$here/run/pid"
  for _ in {1..200}; do # a stop that comes now must find the program
    [ ! -f "$here/run/program" ] || return 0
    sleep 0.05
  done
  fail "the program has not started within 10 s; see what is wrong with the machine"
}

# supervise PROGRAM FLAGS: runs the program, keeps its output and exit status.
#
# A machine that shuts down sends SIGTERM to every process. The program gets its own and saves; if this one passed
# its on, the program would take the second for a demand to leave at once.
supervise() {
  local status program woken=yes
  trap 'touch "$here/run/terminated"; woken=yes' TERM
  cd "$here/code"
  printf '\n== %s, commit %s: %s\n' "$(date -Is)" "$(cat "$here/commit")" "$*" >> "$here/run/log"
  "$here/venv/bin/python" -u "$@" >> "$here/run/log" 2>&1 &
  program=$!
  echo "$program" > "$here/run/program"
  while [ -n "$woken" ]; do # a signal has ended the wait, not the program
    woken="" status=0
    wait "$program" || status=$?
  done
  echo "$status" > "$here/run/status.new"
  mv "$here/run/status.new" "$here/run/status"
}

# After a restart of the machine, another process may have the number of the supervisor.
alive() {
  [ -f "$here/run/pid" ] && [ ! -f "$here/run/status" ] &&
    grep -qa supervise "/proc/$(cat "$here/run/pid")/cmdline" 2> /dev/null
}

# state: one word and, if the program has ended, its exit status.
state() {
  if [ ! -f "$here/run/pid" ]; then
    echo "none"
  elif alive; then
    echo "running"
  elif [ ! -f "$here/run/status" ]; then
    echo "lost" # the machine has started again, or somebody has killed the supervisor
  elif [ -f "$here/run/stopped" ]; then
    echo "stopped $(cat "$here/run/status")"
  elif [ -f "$here/run/terminated" ]; then
    echo "terminated $(cat "$here/run/status")"
  else
    echo "ended $(cat "$here/run/status")"
  fi
}

# stop: asks the program to save and end. Once only, because a second SIGTERM makes it leave at once.
stop() {
  alive || return 0
  [ ! -f "$here/run/stopped" ] || return 0
  touch "$here/run/stopped"
  kill -TERM "$(cat "$here/run/program")" 2> /dev/null || true
}

# end: kills what is left of a run, its decoding processes included.
end() {
  alive || return 0
  kill -KILL -- "-$(cat "$here/run/pid")" 2> /dev/null || true
}

# last: commit, state and last line of the log.
last() {
  local line=""
  [ ! -f "$here/run/log" ] || line=$(tail -c 4000 "$here/run/log" | tr '\r' '\n' | grep -v '^ *$' | tail -n 1 || true)
  printf '%s, commit %s, %s\n' "$(state)" "$(cut -c 1-12 "$here/commit" 2> /dev/null || echo none)" "$line"
}

# follow: the log as it grows, until the run has ended.
follow() {
  [ -f "$here/run/log" ] || fail "there is no log here; expected a run that was started"
  tail -n 20 --pid="$(cat "$here/run/pid")" -F "$here/run/log" 2> /dev/null
}

# tail_of_log: its last lines, for a message.
tail_of_log() {
  [ ! -f "$here/run/log" ] || tail -n 15 "$here/run/log"
}

"$@"
