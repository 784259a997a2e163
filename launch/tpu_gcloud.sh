# shellcheck shell=bash
# What launch/tpu_pod.sh asks Google Cloud for, and the workers of the pod. It is read by that program and runs nothing.
#
# shellcheck disable=SC2154  # name, zone, project, type, runtime and tier are that program's flags, work is its folder

# ---- the pod --------------------------------------------------------------------------------------------------------

# tpus GROUP VERB ARGUMENTS: gcloud with the zone and the project of this call; what follows -- is for ssh.
tpus() {
  local group=$1 verb=$2
  shift 2
  gcloud compute tpus "$group" "$verb" "$name" --zone="$zone" ${project:+"--project=$project"} --quiet "$@"
}

# describe GROUP FIELD: one field, nothing if there is no such thing, "unknown" if Google Cloud did not answer.
describe() {
  if tpus "$1" describe --format="value($2)" 2> "$work/describe.err"; then
    return
  fi
  grep -qi "not.found" "$work/describe.err" || echo unknown
}

# silence: what gcloud has said in place of an answer.
silence() {
  error "Google Cloud does not answer for $name in $zone: $(tail -n 3 "$work/describe.err")
Expected the state of the pod; see whether gcloud is logged in, and whether the project and the zone are right."
  return 1
}

queue_state() { describe queued-resources state.state; }

node_state() { describe tpu-vm state; }

# check_pod: fails if the pod was taken away, or deleted by somebody.
#
# Google Cloud suspends what it takes away, and keeps its request; so a request that is gone was deleted on purpose.
check_pod() {
  local queue node
  queue=$(queue_state)
  case $queue in
    "" | DELETING)
      error "$name in $zone was deleted by somebody; expected a pod; create it again if that was a mistake"
      return "$DELETED"
      ;;
  esac
  node=$(node_state)
  case $queue/$node in
    SUSPENDING/* | SUSPENDED/* | FAILED/* | ACTIVE/ | */PREEMPTED | */TERMINATED | */STOPPED | */STOPPING | */DELETING)
      error "$name in $zone was taken away: queue $queue, pod ${node:-gone}; expected a pod; delete and create it anew"
      return "$PREEMPTED"
      ;;
  esac
}

create() {
  need type runtime
  say "asking for $type in $zone as $name${tier:+, ${tier#--}}"
  if ! tpus queued-resources create --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    ${tier:+"$tier"} 2> "$work/create.err"; then
    error "Google Cloud refuses $type in $zone as $name: $(grep -v '^ *$' "$work/create.err" | tail -n 5)
Ask for quota, name another --zone or --type, or, if it exists already, delete it."
    return "$REFUSED"
  fi
}

delete_pod() {
  say "deleting $name"
  tpus queued-resources delete --force 2> "$work/delete.err" && return
  [ -n "$(queue_state)" ] || return 0 # somebody else was faster
  error "$name cannot be deleted: $(tail -n 5 "$work/delete.err"). It costs money until it is gone: try delete again"
  return 1
}

# Waits for capacity as long as it takes, which may be days.
wait_active() {
  local state last="" unanswered=0
  while true; do
    state=$(queue_state)
    [ "$state" = "$last" ] || say "$name: ${state:-does not exist}"
    last=$state
    case $state in
      ACTIVE) return 0 ;;
      "")
        error "there is no queued resource $name in $zone; expected one that create has asked for"
        return 1
        ;;
      SUSPENDING | SUSPENDED)
        check_pod
        return
        ;;
      unknown)
        unanswered=$((unanswered + 1))
        [ "$unanswered" -lt "$REACH_TRIES" ] || silence || return
        ;;
      FAILED)
        error "$name has failed in the queue: $(describe queued-resources state.failedData.error.message)
Ask for quota or name another --zone or --type; delete the request before create."
        return 1
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

count_workers() {
  local addresses state
  addresses=$(describe tpu-vm 'networkEndpoints[].ipAddress')
  count=$(tr ';, ' '\n' <<< "$addresses" | grep -c '[0-9]' || true)
  [ "$count" -eq 0 ] || return 0
  [ "$addresses" != unknown ] || silence || return
  state=$(node_state)
  error "$name in $zone has no workers, its state is ${state:-none}; expected READY; create it or wait for it"
  return 1
}

wait_reachable() {
  local try
  for ((try = 1; try <= REACH_TRIES; try++)); do
    if count_workers 2> /dev/null; then
      # The first connection may make the keys, so it is alone. Each prepares its worker for what install copies.
      if remote 0 true > /dev/null 2> "$work/0.err"; then
        each_remote "mkdir -p r2d2_jax && rm -f r2d2_jax/setup.sh"
        [ ${#failed[@]} -gt 0 ] || return 0
      else
        failed=(0)
      fi
    fi
    check_pod || return
    [ "$try" -eq "$REACH_TRIES" ] || sleep "$POLL_SECONDS"
  done
  count_workers || return 1
  unreachable
}

unreachable() {
  error "worker ${failed[*]} of $name cannot be reached by ssh: $(tail -n 2 "$work/${failed[0]}.err")
Expected an answer; see whether the firewall lets ssh in and whether the machine is well, or delete and create the pod."
  return 1
}

wait_for_pod() {
  wait_active || return
  wait_reachable || return
  say "$name is there: $count workers, all reachable"
}

# ---- the workers ----------------------------------------------------------------------------------------------------

# remote NUMBER COMMAND: runs a command on one worker; ssh itself ends with 255.
remote() {
  tpus tpu-vm ssh --worker="$1" --command="$2" -- "${SSH_OPTIONS[@]}" < /dev/null
}

# on_each FUNCTION ARGUMENTS: calls it for every worker at once with its number first; fills `failed`.
on_each() {
  local function=$1 number pids=()
  shift
  for ((number = 0; number < count; number++)); do
    "$function" "$number" "$@" > "$work/$number.out" 2> "$work/$number.err" &
    pids[number]=$!
  done
  failed=()
  for ((number = 0; number < count; number++)); do
    wait "${pids[number]}" || failed+=("$number")
  done
}

each_remote() { on_each remote "$1"; }

# each_worker COMMAND ARGUMENTS: calls launch/tpu_worker.sh on every worker.
each_worker() { each_remote "bash r2d2_jax/worker.sh$(printf ' %q' "$@")"; }

# copy_to NUMBER FILES POD:FOLDER: scp names the pod within its last argument.
copy_to() {
  local number=$1
  shift
  gcloud compute tpus tpu-vm scp --worker="$number" "$@" --zone="$zone" ${project:+"--project=$project"} --quiet
}

# complain WHAT WHAT_TO_DO: one line for each worker in `failed`, with the last thing that it said.
complain() {
  local number
  for number in "${failed[@]}"; do
    error "$1 failed on worker $number of $name: $(grep -v '^ *$' "$work/$number.err" | tail -n 3)"
  done
  say "$2"
  return 1
}

# read_states: what each worker says, into `states`; nothing for those that cannot be reached.
read_states() {
  local number
  each_worker state
  states=()
  for ((number = 0; number < count; number++)); do
    states+=("$(tail -n 1 "$work/$number.out")")
  done
}

# kind STATE: what it means.
kind() {
  case $1 in
    running) echo running ;;
    *" 2") echo bad_input ;;
    *" 0") echo finished ;;
    "terminated "*) echo interrupted ;; # with any status: its machine was shutting down
    "stopped 130" | "stopped 143") echo stopped ;; # 143: before it could listen
    "ended 130") echo interrupted ;; # by another process of the run, or by a signal that is not that of `stop`
    *) echo failed ;;
  esac
}

# any KIND: whether there is a worker of this kind.
any() {
  local state
  for state in "${states[@]}"; do
    [ "$(kind "$state")" != "$1" ] || return 0
  done
  return 1
}

# verdict: what the states of workers that have all ended mean together.
#
# A process that is asked to end takes the others with it. One whose machine shuts down may make them fail.
verdict() {
  if any bad_input; then
    return "$BAD_INPUT"
  elif any stopped; then
    ! any failed || return 1
    return "$STOPPED"
  elif any interrupted; then
    return "$PREEMPTED"
  elif any failed; then
    return 1
  fi
}
