# shellcheck shell=bash
# Shared by the scripts beside it: options, settings, and `run`, which prints a command and, unless --dry_run, runs it.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck disable=SC2034 # setup.sh uses it
ROOT="$(dirname "$HERE")"
DRY_RUN=0
ENV_FILE=""
ARGUMENTS=()

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# The usage header of the script: its comment lines after the first line.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

run() {
  printf '%q ' "$@"
  echo
  if [[ "$DRY_RUN" == 0 ]]; then "$@"; fi
}

# Runs a command line on hosts of the TPU: on_hosts WORKER COMMAND
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker="$1" --command="$2"
}

while [[ $# -gt 0 ]]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --dry_run) DRY_RUN=1 ;;
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
[[ -f "$ENV_FILE" ]] || fail "no settings at $ENV_FILE. Copy $HERE/env.example there and fill it in, or name another file with --env=FILE."
# shellcheck source=env.example
source "$ENV_FILE"
for variable in PROJECT ZONE NAME ACCELERATOR RUNTIME SPOT PYTHON_VERSION; do
  [[ -n "${!variable:-}" ]] || fail "$variable is not set. Set it in $ENV_FILE; env.example says what it is."
done
if [[ "$DRY_RUN" == 0 ]]; then
  command -v gcloud >/dev/null || fail "gcloud was not found. Install the Google Cloud CLI, or look at the commands with --dry_run."
fi
