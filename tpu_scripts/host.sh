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
# The command's exit status says what follows (docs/reliability.md): 0 done; those of FINAL would come again, or somebody
# wanted them; any other (a crash, a lost neighbour, 143 told to stop by the machine) starts it again. It gives up after
# HOST_RESTARTS starts without a newer checkpoint.
set -euo pipefail
FINAL=" 2 3 130 " # as vadapter/base/exit_codes.py has them

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

# Step of the newest finished checkpoint in the MODEL_DIR of a command, or -1.
newest_checkpoint() { # ARGUMENT...
  local argument line model_dir="" newest=-1
  for argument in "$@"; do
    if [[ "$argument" =~ ^--gin\.MODEL_DIR=[\'\"](.+)[\'\"]$ ]]; then model_dir="${BASH_REMATCH[1]%/}"; fi
  done
  while read -r line; do
    [[ "$line" =~ /checkpoint_([0-9]+)/ ]] || continue
    if [[ "${BASH_REMATCH[1]}" -gt "$newest" ]]; then newest="${BASH_REMATCH[1]}"; fi
  done < <(
    case "$model_dir" in
      "") ;;
      gs://*) timeout 120 gcloud storage ls "$model_dir/checkpoint_*/commit_success.txt" ;;
      *) printf '%s\n' "$model_dir"/checkpoint_*/_CHECKPOINT_METADATA ;;
    esac 2>/dev/null
  )
  echo "$newest"
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
  local variables=() status starts=0 child="" stopping=0 best step
  while [[ "$1" != -- ]]; do
    variables+=("$1")
    shift
  done
  shift
  best="$(newest_checkpoint "$@")"
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
    if [[ "$status" == 0 ]]; then settle "done"; fi
    if [[ "$FINAL" == *" $status "* ]]; then settle "failed $status"; fi
    step="$(newest_checkpoint "$@")"
    if [[ "$step" -gt "$best" ]]; then best="$step" starts=0; fi
    starts=$((starts + 1))
    if [[ "$starts" -gt "$HOST_RESTARTS" ]]; then settle "failed $status"; fi
    echo "host.sh: the command ended with status $status; start $starts of $HOST_RESTARTS since step $best in $HOST_PAUSE s"
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
