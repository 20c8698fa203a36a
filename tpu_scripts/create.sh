#!/usr/bin/env bash
# Asks for a TPU slice as a queued resource and waits until it is there.
#
# Usage: tpu_scripts/create.sh [--dry_run] [--env=FILE]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

request=(
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --project="$PROJECT" --zone="$ZONE"
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"
)
if [[ "$SPOT" == 1 ]]; then request+=(--spot); fi
run "${request[@]}"

describe=(
  gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" --format="value(state.state)"
)
if [[ "$DRY_RUN" == 1 ]]; then
  run "${describe[@]}"
  exit 0
fi
while true; do
  state="$("${describe[@]}")"
  echo "$NAME is $state"
  case "$state" in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) fail "the request ended as $state. Look at it with: ${describe[*]}" ;;
  esac
  sleep 30
done
