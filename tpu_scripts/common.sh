# shellcheck shell=bash
# Shared by the scripts beside it: options, settings, and `run`, which prints a command and, unless --dry_run, runs it.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck disable=SC2034 # setup.sh and xpk.sh use it
ROOT="$(dirname "$HERE")"
DRY_RUN=0
ENV_FILE=""
ARGUMENTS=() # what is not an option of all scripts
OPTIONS=()   # to call another script in the same way

fail() { # MESSAGE: a user's error
  echo "$(basename "$0"): $*" >&2
  exit 2
}

((BASH_VERSINFO[0] >= 5)) || fail "bash is $BASH_VERSION; expected 5 or newer. On macOS: brew install bash."

# The usage header of the script: its comment lines after the first line.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

# Messages of failures that pass by themselves: the service's, the network's, ssh's while a host starts.
PASSING='UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|INTERNAL|rateLimitExceeded|HTTPError (429|5..)|[Tt]imed out'
PASSING+='|Connection (reset|refused|closed|aborted)|[Cc]ould not resolve|Temporary failure'
PASSING+='|exit status 255|return code \[255\]'

# Runs a command, again with growing pauses while it fails for a passing reason. Its exit status is the last try's.
retry() {
  local try=1 pause="$PAUSE" status messages
  messages="$(mktemp)"
  while true; do
    status=0
    { "$@" 2>&1 1>&3 3>&- | tee "$messages" >&2; } 3>&1 || status=$?
    if [[ "$status" == 0 || "$try" -ge "$TRIES" ]] || ! grep -qE "$PASSING" "$messages"; then break; fi
    echo "$(basename "$0"): try $try of $TRIES failed for a reason that may pass; again in $pause s" >&2
    sleep "$pause"
    pause=$((2 * pause)) try=$((try + 1))
  done
  rm -f "$messages"
  return "$status"
}

run() {
  printf '%q ' "$@"
  echo
  if [[ "$DRY_RUN" == 0 ]]; then retry "$@"; fi
}

# Runs a command line on hosts of a node: on_hosts NODE WORKER COMMAND [FLAG...]
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$1" --project="$PROJECT" --zone="$ZONE" --worker="$2" "${@:4}" --command="$3"
}

# Calls `FUNCTION NODE NUMBER ARGUMENT...` for all nodes at the same time; fails if one fails.
each_node() {
  local number pids=() status=0
  for number in "${!NODES[@]}"; do
    if [[ "$DRY_RUN" == 1 || "$SLICES" == 1 ]]; then
      "$1" "${NODES[number]}" "$number" "${@:2}" || return
    else
      "$1" "${NODES[number]}" "$number" "${@:2}" &
      pids+=("$!")
    fi
  done
  for number in "${!pids[@]}"; do
    wait "${pids[number]}" || status=$?
  done
  return "$status"
}

describe=(gcloud compute tpus queued-resources describe)

# Prints the state of the queued resource: https://cloud.google.com/tpu/docs/queued-resources, or NONE.
queued_state() {
  local messages state status=0
  messages="$(mktemp)"
  state="$(retry "${describe[@]}" 2>"$messages")" || status=$?
  if [[ "$status" == 0 ]]; then
    echo "${state:-UNKNOWN}"
  elif grep -qE 'NOT_FOUND|was not found' "$messages"; then
    echo NONE
    status=0
  else
    cat "$messages" >&2
  fi
  rm -f "$messages"
  return "$status"
}

while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry_run) DRY_RUN=1 OPTIONS+=("$1") ;;
    --env=*) ENV_FILE="${1#--env=}" ;;
    --) shift; ARGUMENTS+=("$@"); break ;;
    *) ARGUMENTS+=("$1") ;;
  esac
  shift
done

if [[ -z "$ENV_FILE" ]]; then
  ENV_FILE="$HERE/env"
  if [[ ! -f "$ENV_FILE" && "$DRY_RUN" == 1 ]]; then ENV_FILE="$HERE/env.example"; fi
fi
[[ -f "$ENV_FILE" ]] ||
  fail "no settings at $ENV_FILE. Copy $HERE/env.example there and fill it in, or name another file with --env=FILE."
OPTIONS+=("--env=$ENV_FILE")
# shellcheck source=env.example
source "$ENV_FILE"
for variable in PROJECT ZONE NAME ACCELERATOR SLICES RUNTIME CAPACITY PYTHON_VERSION WAIT TRIES PAUSE RESTARTS; do
  [[ -n "${!variable:-}" ]] || fail "$variable is not set. Set it in $ENV_FILE; env.example says what it is."
done
[[ "$SLICES" =~ ^[1-9][0-9]*$ ]] || fail "SLICES is '$SLICES'; expected 1 or more. Change it in $ENV_FILE."
case "$CAPACITY" in
  spot | on-demand | reserved) ;;
  *) fail "CAPACITY is '$CAPACITY'; expected spot, on-demand or reserved. Change it in $ENV_FILE." ;;
esac
[[ -z "${HOST_ENV:-}" || -f "$HOST_ENV" ]] ||
  fail "HOST_ENV names $HOST_ENV, which does not exist. Change it in $ENV_FILE."

describe+=("$NAME" --project="$PROJECT" --zone="$ZONE" "--format=value(state.state)")
NODES=("$NAME")
if [[ "$SLICES" -gt 1 ]]; then
  NODES=()
  for ((number = 0; number < SLICES; number++)); do NODES+=("$NAME-$number"); done
fi
if [[ "$DRY_RUN" == 0 ]]; then
  command -v gcloud >/dev/null ||
    fail "gcloud was not found. Install the Google Cloud CLI, or look at the commands with --dry_run."
fi
