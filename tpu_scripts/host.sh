#!/usr/bin/env bash
# The part of launch.sh that runs on the TPU hosts (setup.sh copies it there): it keeps one vadapter command running.
#
# Usage:
#   host.sh start [NAME=VALUE...] -- COMMAND [ARGUMENT...]   start in the background, unless it is running
#   host.sh stop                                             let it save and end; after GRACE seconds end it
#   host.sh state -- COMMAND [ARGUMENT...]                   print how it stands with it, as 'vadapter-state: STATE'
# States: none, running, done, failed STATUS, stopped, lost (the host was started anew meanwhile), other (another
# command is running).
#
# The command's exit status says what follows: 0 done; 2 a user's error and 130 an interruption, which are final; any
# other (a crash, a lost neighbour, 143 told to stop by the machine) starts it again, up to HOST_RESTARTS times.
set -euo pipefail

folder="$HOME/.vadapter-run"
log="$HOME/vadapter.log"
settings="$(dirname "${BASH_SOURCE[0]}")/host.env"
mkdir -p "$folder"
if [[ -f "$settings" ]]; then
  set -a
  # shellcheck source=/dev/null
  source "$settings"
  set +a
fi
: "${HOST_RESTARTS:=20}" "${HOST_PAUSE:=15}" "${GRACE:=300}"

# Whoever runs the command holds this lock, and so does the command: it is free when both have ended, however they did.
running() {
  ! flock --nonblock "$folder/lock" true
}

state() {
  local said
  said="$(cat "$folder/state" 2>/dev/null || echo none)"
  if running; then
    said=running
    if ! recorded "$@"; then said=other; fi
  elif ! recorded "$@"; then
    said=none
  elif [[ "$said" == running ]]; then
    said=lost
  fi
  echo "vadapter-state: $said"
}

# The command after the variables and --, as a line.
command_line() {
  while [[ "$1" != -- ]]; do shift; done
  shift
  printf '%q ' "$@"
}

recorded() {
  [[ "$(command_line "$@")" == "$(cat "$folder/command" 2>/dev/null)" ]]
}

start() {
  exec 9>"$folder/lock"
  if ! flock --timeout 1 9; then
    if recorded "$@"; then
      echo "It is running already."
      return
    fi
    echo "host.sh: another command is running on this host: $(cat "$folder/command"). Stop it with stop.sh." >&2
    exit 2
  fi
  command_line "$@" >"$folder/command"
  echo running >"$folder/state"
  nohup setsid bash "${BASH_SOURCE[0]}" supervise "$@" >>"$log" 2>&1 </dev/null & # it inherits the lock
  echo "$!" >"$folder/pid"
}

supervise() {
  local variables=() status crashes=0 child="" stopping=0
  while [[ "$1" != -- ]]; do
    variables+=("$1")
    shift
  done
  shift
  trap 'stopping=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while true; do
    env "${variables[@]}" "$HOME/vadapter-env/bin/vadapter" "$@" &
    child="$!"
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` before the command has ended
      status=0
      wait "$child" || status=$?
    done
    if [[ "$stopping" == 1 ]]; then settle stopped; fi
    case "$status" in
      0) settle "done" ;;
      2 | 130) settle "failed $status" ;;
    esac
    crashes=$((crashes + 1))
    if [[ "$crashes" -gt "$HOST_RESTARTS" ]]; then settle "failed $status"; fi
    echo "host.sh: the command ended with status $status; start $crashes of $HOST_RESTARTS again in $HOST_PAUSE s"
    sleep "$HOST_PAUSE" &
    child="$!"
    wait "$child" || true
    if [[ "$stopping" == 1 ]]; then settle stopped; fi
  done
}

settle() {
  echo "host.sh: $1"
  echo "$1" >"$folder/state"
  exit 0
}

stop() {
  if ! running; then return; fi
  local pid
  pid="$(cat "$folder/pid")"
  kill -TERM "$pid" 2>/dev/null || true
  if ! flock --timeout "$GRACE" "$folder/lock" true; then
    kill -KILL -- "-$pid" 2>/dev/null || true
    echo stopped >"$folder/state"
  fi
}

case "${1:-}" in
  start | state | supervise) "$@" ;;
  stop) stop ;;
  *)
    echo "host.sh: expected start, stop or state" >&2
    exit 2
    ;;
esac
