# shellcheck shell=bash
# What launch/tpu_pod.sh asks Google Cloud for, and the workers of the pod. It is read by that program and runs nothing.
#
# A pod is one slice, which Google Cloud calls a node, or several that a network joins. All of them are one request.
# Workers are numbered over all slices, as JAX numbers the processes on them.
#
# shellcheck disable=SC2154  # name, zone, project, type, runtime, tier, slices: flags of that program; work: its folder

# ---- the pod --------------------------------------------------------------------------------------------------------

nodes=()       # names of the slices, after find_nodes
node_states=() # of each, after read_nodes
node_of=()     # the slice of each worker, after count_workers
index_of=()    # the number of each worker within its slice

# tpus GROUP VERB NAME ARGUMENTS: gcloud with the zone and the project of this call; what follows -- is for ssh.
tpus() {
  local group=$1 verb=$2 resource=$3
  shift 3
  gcloud compute tpus "$group" "$verb" "$resource" --zone="$zone" ${project:+"--project=$project"} --quiet "$@"
}

# describe GROUP NAME FIELD: one field, nothing if there is no such thing, "unknown" if Google Cloud did not answer.
describe() {
  local said="$work/describe.$2.err"
  if tpus "$1" describe "$2" --format="value($3)" 2> "$said"; then
    return
  fi
  grep -qi "not.found" "$said" && return
  cp "$said" "$work/silence.err"
  echo unknown
}

# silence: what gcloud has said in place of an answer.
silence() {
  error "Google Cloud does not answer for $name in $zone: $(tail -n 3 "$work/silence.err")
Expected the state of the pod; see whether gcloud is logged in, and whether the project and the zone are right."
  return 1
}

queue_state() { describe queued-resources "$name" state.state; }

# find_nodes: the names of all slices into `nodes`, as the request has them: NAME, or NAME-0, NAME-1 and so on.
find_nodes() {
  local many number
  many=$(describe queued-resources "$name" 'tpu.nodeSpec[0].multisliceParams.nodeCount')
  [ "$many" != unknown ] || silence || return
  nodes=("$name")
  [ -z "$many" ] || nodes=()
  for ((number = 0; number < ${many:-0}; number++)); do nodes+=("$name-$number"); done
}

# read_nodes: the state of each slice into `node_states`, asked for all at once.
read_nodes() {
  local number pids=()
  for number in "${!nodes[@]}"; do
    describe tpu-vm "${nodes[number]}" state > "$work/node.$number" &
    pids+=($!)
  done
  node_states=()
  for number in "${!nodes[@]}"; do
    wait "${pids[number]}"
    node_states+=("$(< "$work/node.$number")")
  done
}

# check_pod: fails if a slice was taken away, or the pod was deleted by somebody.
#
# Google Cloud suspends what it takes away, and keeps its request; so a request that is gone was deleted on purpose.
check_pod() {
  local queue number
  queue=$(queue_state)
  case $queue in
    "" | DELETING)
      error "$name in $zone was deleted by somebody; expected a pod; create it again if that was a mistake"
      return "$DELETED"
      ;;
  esac
  [ ${#nodes[@]} -gt 0 ] || find_nodes 2> /dev/null || return 0 # no answer is no bad news
  read_nodes
  for number in "${!nodes[@]}"; do
    case $queue/${node_states[number]} in
      SUSPENDING/* | SUSPENDED/* | FAILED/* | ACTIVE/ | */PREEMPTED | */TERMINATED | */STOPPED | */STOPPING | */DELETING)
        error "${nodes[number]} in $zone was taken away: queue $queue, pod ${node_states[number]:-gone}; expected a \
pod; delete $name and create it anew"
        return "$PREEMPTED"
        ;;
    esac
  done
}

# mending: the slice that Google Cloud repairs, as check_pod has seen it; fails if there is none.
#
# It may make a slice anew after a fault of its hardware, and starts the machines of all others again.
mending() {
  local number
  for number in "${!node_states[@]}"; do
    case ${node_states[number]} in
      CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING)
        echo "${nodes[number]} ${node_states[number]}"
        return
        ;;
    esac
  done
  return 1
}

create() {
  end_if_killed
  need type runtime
  local asked=("--node-id=$name") many=""
  if [ "${slices:-1}" -gt 1 ]; then
    asked=("--node-count=$slices" "--node-prefix=$name") many="$slices slices of "
  fi
  say "asking for $many$type in $zone as $name${tier:+, ${tier#--}}"
  nodes=()
  if ! tpus queued-resources create "$name" "${asked[@]}" --accelerator-type="$type" --runtime-version="$runtime" \
    ${tier:+"$tier"} 2> "$work/create.err"; then
    error "Google Cloud refuses $many$type in $zone as $name: $(grep -v '^ *$' "$work/create.err" | tail -n 5)
Ask for quota, name another --zone or --type, enable tpu.googleapis.com, or, if $name exists, delete it."
    return "$REFUSED"
  fi
}

delete_pod() {
  end_if_killed
  say "deleting $name"
  tpus queued-resources delete "$name" --force 2> "$work/delete.err" && return
  if [ -z "$(queue_state)" ]; then
    say "there is no $name in $zone; somebody has deleted it, or --name, --zone or --project is another"
    return 0
  fi
  error "$name cannot be deleted: $(tail -n 5 "$work/delete.err"). It costs money until it is gone: try delete again"
  return 1
}

# tell_costs: for whoever leaves a pod behind.
tell_costs() {
  say "$name costs money until it is gone: launch/tpu_pod.sh delete --name=$name --zone=$zone\
${project:+ --project=$project}"
}

# check_slices: what is there must be what a new request would ask for.
check_slices() {
  [ ${#nodes[@]} -eq 0 ] || [ ${#nodes[@]} -eq "${slices:-1}" ] ||
    bad_input "$name in $zone has ${#nodes[@]} slices and not ${slices:-1}; give --slices=${#nodes[@]}, or delete it"
}

# Waits for capacity as long as it takes, which may be days.
wait_active() {
  local state last="" unanswered=0
  while true; do
    state=$(queue_state)
    if [ "$state" = ACTIVE ]; then
      check_pod || return
      state="ACTIVE$(mending | sed 's/^/, /' || true)"
    fi
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
        error "$name has failed in the queue: $(describe queued-resources "$name" state.failedData.error.message)
Ask for quota or name another --zone or --type; delete the request before create."
        return 1
        ;;
    esac
    pause
  done
}

# count_workers: how many there are in all slices, and which slice each is in.
count_workers() {
  local node addresses workers index found=0
  count=0 node_of=() index_of=()
  find_nodes || return
  for node in "${nodes[@]}"; do
    addresses=$(describe tpu-vm "$node" 'networkEndpoints[].ipAddress')
    [ "$addresses" != unknown ] || silence || return
    workers=$(tr ';, ' '\n' <<< "$addresses" | grep -c '[0-9]' || true)
    if [ "$workers" -eq 0 ]; then
      node_states=("$(describe tpu-vm "$node" state)")
      error "$node in $zone has no workers, its state is ${node_states[0]:-none}; expected READY; create it or wait for it"
      return 1
    fi
    for ((index = 0; index < workers; index++)); do
      node_of[found]=$node index_of[found]=$index
      found=$((found + 1))
    done
  done
  count=$found
}

# Waits as long as Google Cloud repairs a slice, and REACH_TRIES looks for the rest.
wait_reachable() {
  local tries=0
  while true; do
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
    mending > /dev/null || tries=$((tries + 1))
    [ "$tries" -lt "$REACH_TRIES" ] || break
    pause
  done
  count_workers || return 1
  unreachable
}

unreachable() {
  local number within=""
  if [ ${#nodes[@]} -gt 1 ]; then
    within=$(for number in "${failed[@]}"; do echo "${node_of[number]}"; done | sort -u)
    within=" in ${within//$'\n'/ }"
  fi
  error "worker ${failed[*]} of $name$within cannot be reached by ssh: $(tail -n 2 "$work/${failed[0]}.err")
Expected an answer; see whether the firewall lets ssh in and whether the machine is well, or delete and create the pod."
  return 1
}

wait_for_pod() {
  wait_active || return
  wait_reachable || return
  say "$name is there: $count workers$(in_slices), all reachable"
}

# ---- the workers ----------------------------------------------------------------------------------------------------

# in_slices: for messages, in how many slices the workers are; nothing for one.
in_slices() { [ ${#nodes[@]} -le 1 ] || echo " in ${#nodes[@]} slices"; }

# named NUMBER: a worker for messages.
named() {
  local within=""
  [ ${#nodes[@]} -le 1 ] || within=" (worker ${index_of[$1]} of ${node_of[$1]})"
  echo "worker $1 of $name$within"
}

# remote NUMBER COMMAND: runs a command on one worker; ssh itself ends with 255.
remote() {
  tpus tpu-vm ssh "${node_of[$1]}" --worker="${index_of[$1]}" --command="$2" -- "${SSH_OPTIONS[@]}" < /dev/null
}

# on_each FUNCTION ARGUMENTS: calls it for every worker at once with its number first; fills `failed`.
on_each() {
  local function=$1 number pids=()
  shift
  end_if_killed
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

# copy_to NUMBER FILES: copies files to a worker's folder; scp names the slice within its last argument.
copy_to() {
  local number=$1
  shift
  gcloud compute tpus tpu-vm scp --worker="${index_of[number]}" "$@" "${node_of[number]}:r2d2_jax/" \
    --zone="$zone" ${project:+"--project=$project"} --quiet
}

# complain WHAT WHAT_TO_DO: one line for each worker in `failed`, with the last thing that it said.
complain() {
  local number
  for number in "${failed[@]}"; do
    error "$1 failed on $(named "$number"): $(grep -v '^ *$' "$work/$number.err" | tail -n 3)"
  done
  say "$2"
  return 1
}

# show_failures: how the run has ended on each worker where it failed, and the last lines there.
show_failures() {
  local number
  each_worker tail_of_log
  for ((number = 0; number < count; number++)); do
    case ${states[number]} in
      *" 0" | running | none | "") ;;
      *) say "worker $number: ${states[number]}" && sed "s/^/[$number] /" "$work/$number.out" >&2 ;;
    esac
  done
}

# check_work: what is at work must be what train would start in its place after a preemption.
check_work() {
  local said
  said=$(remote 0 "cat r2d2_jax/run/command" 2> "$work/0.err") || return
  [ "$said" = "$(printf '%q ' "${program[@]}")" ] || bad_input "another program is at work on $name: $said
Expected the one that is given; give that of the run to watch it, or stop it first."
  tell_commit
}

# tell_commit: what the workers run, if it is not the commit of this clone.
tell_commit() {
  local installed here
  installed=$(remote 0 "cat r2d2_jax/commit" 2> /dev/null) || return 0
  here=$(git -C "$root" rev-parse HEAD 2> /dev/null) || return 0
  [ "$installed" = "$here" ] ||
    say "$name runs commit ${installed:0:12}; this clone is at ${here:0:12}, which the next installation brings"
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
  elif any failed || ! any finished; then
    return 1
  fi
}
