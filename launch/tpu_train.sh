# shellcheck shell=bash
# How launch/tpu_pod.sh installs, starts, watches and resumes a run. It is read by that program and runs nothing.
#
# shellcheck disable=SC2154  # flags, settings and lists of that program and of launch/tpu_gcloud.sh

# ---- install, run, watch --------------------------------------------------------------------------------------------

# Made once, so that what runs after a preemption is what ran before it.
pack() {
  local changed
  changed=$(git -C "$root" status --porcelain) || bad_input "$root is no git repository; expected a clone of r2d2_jax"
  [ -z "$changed" ] || bad_input "$root has changes that no commit has:
$(head -n 5 <<< "$changed")
Expected a clean tree, so that it is known what the workers run: commit, stash or ignore them."
  commit=$(git -C "$root" rev-parse HEAD)
  git -C "$root" archive --output="$work/code.tar" HEAD
  cp "$root/launch/tpu_worker.sh" "$work/worker.sh"
  [ -z "$setup" ] || cp "$setup" "$work/setup.sh"
}

install() {
  local files=("$work/code.tar" "$work/worker.sh")
  [ -z "$setup" ] || files+=("$work/setup.sh")
  say "installing commit ${commit:0:12} on $count workers"
  on_each copy_to "${files[@]}"
  [ ${#failed[@]} -eq 0 ] || complain "copying" "See that ssh works and that the disk is not full." || return
  each_worker install "$commit"
  [ ${#failed[@]} -eq 0 ] || complain "installing" "Mend it, and run the same command again." || return
}

run_program() {
  say "starting ${program[*]} on $count workers"
  each_worker start "${program[@]}"
  [ ${#failed[@]} -gt 0 ] || return 0
  ! grep -qs "is at work" "$work"/*.err || complain "starting" "What was at work before goes on." || return
  complain "starting" "All workers or none: the others are ended. If it is not installed, install." || each_worker end
  return 1
}

# watch: waits until the run has ended on all workers, and returns how.
watch() {
  local silent=0 halting=0 mended="" outcome=0
  while true; do
    read_states
    if [ ${#failed[@]} -gt 0 ]; then
      check_pod || return
      if mending > /dev/null; then
        mended=yes
      elif [ -n "$mended" ]; then
        return "$PREEMPTED" # what was made anew has nothing installed
      else
        silent=$((silent + 1))
      fi
      [ "$silent" -lt "$REACH_TRIES" ] || unreachable || return
    elif any running; then
      check_pod || return
      silent=0
      ! mending > /dev/null || mended=yes
      # JAX ends all processes within a minute of the first that fails. What is still there after ten looks hangs.
      if any failed || any bad_input; then halting=$((halting + 1)); fi
      [ "$halting" -lt 10 ] || each_worker end
    else
      verdict || outcome=$?
      [ "$outcome" -ne 1 ] || [ -z "$mended" ] || outcome=$PREEMPTED # whatever machines that started again say
      return "$outcome"
    fi
    pause
  done
}

# ---- train ----------------------------------------------------------------------------------------------------------

was_there="" # whether the pod has been there in this attempt
requested="" # whether there should be a request, because train has seen or made one, and has not deleted it

ensure_pod() {
  local state outcome=0
  state=$(queue_state)
  if [ -n "$state" ] || [ -n "$requested" ]; then
    check_pod 2> "$work/fate" || outcome=$?
    # That a pod which train has watched was taken away, it has said already.
    [ "$outcome" -eq "$PREEMPTED" ] && [ -n "$requested" ] || cat "$work/fate" >&2
    [ "$outcome" -ne "$DELETED" ] || return "$DELETED"
    check_slices
  fi
  if [ "$outcome" -eq "$PREEMPTED" ]; then
    undisturbed delete_pod || return
    state="" requested=""
  fi
  [ -n "$state" ] || undisturbed create || return
  requested=yes
  wait_for_pod || return
  was_there=yes
}

# attempt: from whatever there is to the end of the run, once.
attempt() {
  ensure_pod || return
  read_states
  if [ ${#failed[@]} -eq 0 ] && any running; then
    check_work || return
    say "a run is at work on $name; watching it"
  else
    install || return
    undisturbed run_program || return
  fi
  say "watching; launch/tpu_pod.sh logs --name=$name --zone=$zone shows what the workers print"
  watch
}

# train: tries again until the run has finished, was stopped, has refused its input, or fails too often.
train() {
  local outcome failures=0 began had_pod=""
  while true; do
    began=$SECONDS outcome=0 count=0 states=() nodes=() node_states=() was_there=""
    attempt || outcome=$?
    [ -z "$was_there" ] || had_pod=yes
    if [ "$outcome" -eq 1 ] && [ -n "$was_there" ]; then check_pod || outcome=$?; fi
    # A first refusal does not go away by itself.
    if [ "$outcome" -eq "$REFUSED" ] && [ -z "$had_pod" ]; then return 1; fi
    case $outcome in
      "$PREEMPTED") say "the run resumes from its newest checkpoint as soon as the pod is there again" ;;
      0 | "$STOPPED" | "$BAD_INPUT" | "$DELETED")
        conclude "$outcome"
        return
        ;;
      *)
        [ ${#states[@]} -eq 0 ] || show_failures
        [ $((SECONDS - began)) -lt "$HEALTHY_SECONDS" ] || failures=0
        failures=$((failures + 1))
        if [ "$failures" -gt "$RETRIES" ]; then
          error "$failures failures in a row on $name; mend what is said above, then the same command resumes"
          return 1
        fi
        say "failure $failures; trying again, $RETRIES times at most"
        [ "$count" -eq 0 ] || each_worker end
        ;;
    esac
    pause
  done
}

# conclude OUTCOME: says how train ends, and returns its exit status.
conclude() {
  case $1 in
    0) say "the run has finished" ;;
    "$STOPPED") say "the run was stopped and has saved; the same command resumes it" ;;
    "$BAD_INPUT")
      show_failures
      error "the program refuses its input, so it is not tried again; mend what it says above"
      return "$BAD_INPUT"
      ;;
    *) requested="" && return 1 ;; # somebody has deleted it
  esac
}

# train_and_settle: train, and what becomes of the pod after it.
train_and_settle() {
  local outcome=0
  train || outcome=$?
  trap '' TERM # what is left to do is done
  if [ -n "$delete_after" ]; then delete_pod || outcome=1; elif [ -n "$requested" ]; then tell_costs; fi
  echo "$outcome" > "$work/settled" # a signal may come before this process has ended
  return "$outcome"
}

# ---- signals --------------------------------------------------------------------------------------------------------

told=""    # the first signal that has come
trainer="" # the process that watches, and its group

# until_told FUNCTION: runs it to its end, or until Ctrl-C or another signal.
#
# A call of gcloud that Ctrl-C cut off would pass for an answer, for example that no worker is at work any more; and bash
# may forget a signal that comes during a command substitution, or end with a syntax error. So the function runs in a
# process group of its own, which Ctrl-C does not reach, and this process does nothing but `wait`, which a signal ends at
# once. Then the whole group is ended, if nothing is under way that is `undisturbed`.
until_told() {
  local outcome
  trap 'tell_trainer Ctrl-C' INT
  trap 'tell_trainer SIGTERM' TERM
  trap 'tell_trainer SIGHUP' HUP
  exec 3>&2 2> /dev/null || exec 3> /dev/null # where bash would say that the trainer was killed
  set -m                                      # gives the next job a group
  (
    trap - INT TERM HUP
    # A call that asks something fails, and does not stop for good. Nobody need read what is said.
    trap '' TTIN TTOU PIPE
    "$@"
  ) 2>&3 3>&- &
  trainer=$!
  set +m
  [ -z "$told" ] || kill -TERM -- "-$trainer" || true # it has come before there was a trainer
  outcome=0
  wait "$trainer" || outcome=$?
  while kill -0 "$trainer"; do # a signal has ended the wait alone
    [ -z "$told" ] || kill -TERM -- "-$trainer" || true
    sleep 0.1 || true # which the next Ctrl-C ends
  done
  trap '' INT TERM HUP
  [ ! -s "$work/settled" ] || return "$(< "$work/settled")"
  [ -n "$told" ] || return "$outcome"
  for _ in {1..20}; do # what the trainer has called may end a moment after it, and is not to say anything after this
    kill -0 -- "-$trainer" || break
    sleep 0.05
  done
  trap '' PIPE # nobody may read this any more
  say "$told: $name is no longer watched, nor resumed; a run there goes on" 2>&3
  tell_costs 2>&3
  case $told in
    Ctrl-C) return 130 ;;
    SIGTERM) return 143 ;;
    SIGHUP) return 129 ;;
  esac
}

# tell_trainer SIGNAL: at a second signal nothing is waited for any more.
tell_trainer() {
  if [ -z "$told" ]; then
    told=$1
    : > "$work/leave" || true # by bash itself: a program that writes it would be ended by the next Ctrl-C
    [ -z "$trainer" ] || kill -TERM -- "-$trainer" 2> /dev/null || true
  else
    [ -z "$trainer" ] || kill -KILL -- "-$trainer" 2> /dev/null || true
  fi
}

# undisturbed FUNCTION: runs it to its end; a signal that comes meanwhile ends the trainer after it.
undisturbed() {
  local outcome=0
  trap '' TERM
  "$@" || outcome=$?
  trap - TERM
  [ ! -f "$work/leave" ] || exit 143
  return "$outcome"
}
