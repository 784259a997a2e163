#!/usr/bin/env bash
# Starts, watches and resumes a run on TPU slices of Google Cloud; `launch/tpu_pod.sh --help` says how.
set -euo pipefail

usage() {
  cat << 'TEXT'
launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [FLAGS] [-- PROGRAM FLAGS OF THE PROGRAM]

  create   asks for the pod, as a queued resource of this name (--type, --runtime; --spot or --reserved)
  wait     waits until the pod is there and every worker can be reached
  install  copies this package at this commit to every worker and installs it; runs the file of --setup before
  run      starts PROGRAM on every worker; it goes on when this terminal is closed
  logs     shows what all workers print, each line with its worker, until the run has ended
  status   one line for the pod and one for every worker
  stop     asks the run to save and end, and waits for it; --now kills it
  train    all of it: create, wait, install, run and watch. After a preemption it does so again by itself.
  delete   gives the pod back, with everything on its disks

  --name=NAME        of the queued resource and of the pod
  --zone=ZONE        for example us-west4-a
  --type=TYPE        accelerator type of a slice, for example v5litepod-128
  --slices=NUMBER    ask for so many slices, which a network joins, as NAME-0, NAME-1 and so on; default: 1, as NAME.
                     Commands other than create and train find out by themselves
  --runtime=VERSION  software of the workers, for example v2-alpha-tpuv5-lite
  --project=PROJECT  default: that of gcloud's configuration
  --spot             cheaper, may be taken away at any time
  --reserved         from a reservation of the project
  --setup=FILE       a bash script that install runs on every worker, for example to mount what they share
  --delete           train gives the pod back when it ends, however it ends, unless a signal such as Ctrl-C ends it

Workers are numbered over all slices, as JAX numbers the processes on them.

  launch/tpu_pod.sh train --name=r2d2 --zone=us-west4-a --type=v5litepod-128 --runtime=v2-alpha-tpuv5-lite --spot \
    --setup=../mount.sh -- launch/main.py --config=vitl_250m --workdir=gs://BUCKET/runs/vitl_250m \
    --config.data.directory=/mnt/shared/data/zero_250m --distributed

Exit status: 0 done, or stopped and saved; 1 failure; 2 bad input, here or of the program that it runs; 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP; a second signal waits for no call that is under way.
Environment: POLL_SECONDS (30) between two looks; REACH_TRIES (20) looks at a worker that cannot be reached;
RETRIES (3) failures in a row after which train gives up; HEALTHY_SECONDS (3600) of running, after which a failure is
again the first.
TEXT
}

BAD_INPUT=2
# What `watch` and `attempt` return beside 0, 1 and 2.
STOPPED=3 PREEMPTED=4 REFUSED=5 DELETED=6
POLL_SECONDS=${POLL_SECONDS:-30}
REACH_TRIES=${REACH_TRIES:-20}
RETRIES=${RETRIES:-3}
HEALTHY_SECONDS=${HEALTHY_SECONDS:-3600}
SSH_OPTIONS=(-o ConnectTimeout=20 -o ServerAliveInterval=15 -o ServerAliveCountMax=4)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name="" zone="" type="" runtime="" project="" tier="" slices="" setup="" now="" delete_after=""
program=()
commit=""
count=0   # of workers
failed=() # the numbers of those that failed, after on_each
states=() # of all, after read_states
work=""   # a folder for what they answer

# shellcheck source=launch/tpu_gcloud.sh
source "$root/launch/tpu_gcloud.sh"
# shellcheck source=launch/tpu_train.sh
source "$root/launch/tpu_train.sh"

# What cannot be printed changes nothing.
say() { printf '%s\n' "$*" >&2 || true; }

error() { printf 'error: %s\n' "$*" >&2 || true; }

bad_input() {
  error "$@"
  exit "$BAD_INPUT"
}

# pause: until the next look.
pause() {
  sleep "$POLL_SECONDS"
  end_if_killed
}

# end_if_killed: ends a trainer whose program was killed with SIGKILL, before it changes anything more.
#
# Such a program is still there, as a zombie, until its parent has asked how it ended.
end_if_killed() { kill -0 $$ 2> /dev/null && ! grep -qs "^State:.Z" "/proc/$$/status" || exit 1; }

# A call that is still at work must not write into the folder while it is removed, so it is renamed before.
remove_work() {
  trap '' INT TERM HUP
  [ -n "$work" ] || return 0
  mv "$work" "$work.old" 2> /dev/null || true
  rm -rf "$work" "$work.old"
}

# ---- what to do -----------------------------------------------------------------------------------------------------

parse() {
  local argument
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      --name=?*) name=${argument#*=} ;;
      --zone=?*) zone=${argument#*=} ;;
      --type=?*) type=${argument#*=} ;;
      --runtime=?*) runtime=${argument#*=} ;;
      --project=?*) project=${argument#*=} ;;
      --slices=?*)
        slices=${argument#*=}
        [[ $slices =~ ^[1-9][0-9]*$ ]] || bad_input "--slices=$slices is no number of slices; expected 1 or more"
        ;;
      --setup=?*) setup=${argument#*=} ;;
      --spot | --reserved)
        [ -z "$tier" ] || [ "$tier" = "$argument" ] || bad_input "--spot and --reserved exclude each other; give one"
        tier=$argument
        ;;
      --now) now=yes ;;
      -h | --help) usage && exit ;;
      --delete) delete_after=yes ;;
      --)
        program=("$@")
        return
        ;;
      *) bad_input "unknown argument $argument; expected flags like --name=NAME; --help lists them" ;;
    esac
  done
}

need() {
  local flag
  for flag in "$@"; do
    [ -n "${!flag}" ] || bad_input "--$flag is not given; --help says what it is"
  done
}

check_numbers() {
  local setting
  for setting in REACH_TRIES RETRIES HEALTHY_SECONDS; do
    [[ ${!setting} =~ ^[0-9]+$ ]] || bad_input "$setting=${!setting} is no whole number; expected 0 or more"
  done
  [[ $POLL_SECONDS =~ ^[0-9]+([.][0-9]+)?$ ]] || bad_input "POLL_SECONDS=$POLL_SECONDS is no number of seconds"
}

check_setup() {
  [ -z "$setup" ] || [ -f "$setup" ] || bad_input "--setup=$setup is no file; expected a bash script"
}

check_program() {
  local argument
  [ ${#program[@]} -gt 0 ] || bad_input "no program is given; expected -- launch/main.py --config=... --workdir=..."
  [ -f "$root/${program[0]}" ] || bad_input "there is no program ${program[0]} in $root; expected one of launch/"
  for argument in "${program[@]}"; do
    case $argument in
      --workdir=/* | --workdir=*://* | --config.data.directory=/*) ;; # what is wrong with an address, the program says
      --workdir | --config.data.directory) bad_input "$argument has no value; expected $argument=FOLDER" ;;
      --workdir=*) bad_input "$argument is relative; expected a folder that all workers see, like /mnt/shared/run" ;;
      --config.data.directory=*) bad_input "$argument is no absolute path; expected one that every worker has" ;;
    esac
  done
  [ "${program[0]}" = launch/main.py ] || return 0
  # Without it every worker would train for itself, in the same folder.
  [[ " ${program[*]} " == *" --distributed "* ]] ||
    bad_input "launch/main.py is given without --distributed; add it, so that the workers of $name train together"
  [[ " ${program[*]}" == *" --workdir="* ]] || bad_input "launch/main.py is given without --workdir=FOLDER; add it"
}

# ---- commands -------------------------------------------------------------------------------------------------------

logs() {
  local number
  count_workers || return
  # shellcheck disable=SC2046  # several numbers
  trap 'kill $(jobs -p) 2> /dev/null' INT TERM
  for ((number = 0; number < count; number++)); do
    remote "$number" "bash r2d2_jax/worker.sh follow" 2>&1 | sed -u "s/^/[$number] /" &
  done
  wait
}

status() {
  local number queue shown=""
  find_nodes || return
  read_nodes
  for number in "${!nodes[@]}"; do shown+=", ${nodes[number]} ${node_states[number]:-none}"; done
  [ ${#nodes[@]} -gt 1 ] || shown=", pod ${node_states[0]:-none}"
  queue=$(queue_state)
  echo "$name in $zone: queue ${queue:-none}$shown"
  count_workers || return
  each_worker last
  for ((number = 0; number < count; number++)); do
    echo "[$number] $(tail -n 1 "$work/$number.out" | grep . || echo "no answer")"
  done
  [ ${#failed[@]} -eq 0 ] || unreachable
}

stop() {
  local outcome=0
  count_workers || return
  read_states
  if [ ${#failed[@]} -eq 0 ] && ! any running; then
    error "no run is at work on $name in $zone; expected one to stop; status says how the last one has ended"
    return 1
  fi
  if [ -n "$now" ]; then each_worker end; else each_worker stop; fi
  # One worker is enough to stop the run.
  [ ${#failed[@]} -eq 0 ] || complain "stopping" "$((count - ${#failed[@]})) of $count workers were asked." ||
    [ ${#failed[@]} -lt "$count" ] || return
  [ -z "$now" ] || { say "killed; the same program resumes from its newest checkpoint" && return; }
  say "asked to save and end; waiting"
  watch || outcome=$?
  case $outcome in
    0) say "the run has finished" ;;
    "$STOPPED") say "the run has saved and ended; run the same program again to resume" ;;
    *)
      show_failures
      error "the run has not ended in good order, see above; the same program resumes from its newest checkpoint"
      return 1
      ;;
  esac
}

main() {
  local command=${1:---help}
  case $command in
    -h | --help | help)
      usage
      return
      ;;
    create | wait | install | run | logs | status | stop | train | delete) ;;
    *) bad_input "unknown command $command; expected create, wait, install, run, logs, status, stop, train or delete" ;;
  esac
  parse "${@:2}"
  need name zone
  check_numbers
  command -v gcloud > /dev/null || bad_input "gcloud is not found on PATH; install the Google Cloud CLI and log in"
  trap remove_work EXIT
  work=$(mktemp -d)
  case $command in
    create) create || return 1 ;;
    wait) wait_for_pod || return 1 ;;
    install)
      check_setup
      pack
      wait_reachable || return 1
      install
      ;;
    run)
      check_program
      count_workers
      run_program
      tell_commit
      ;;
    train)
      need type runtime
      check_program
      check_setup
      trap 'exit 130' INT # bash alone may forget it where what it runs ends well
      pack
      until_told train_and_settle
      ;;
    delete) delete_pod ;;
    *) "$command" ;;
  esac
}

main "$@"
