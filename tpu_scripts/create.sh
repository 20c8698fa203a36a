#!/usr/bin/env bash
# Asks for the TPU as a queued resource (one slice, or several) and waits until it is there.
#
# Usage: tpu_scripts/create.sh [--no_wait] [--dry_run] [--env=FILE]
#   --no_wait   ask only
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

request=(
  gcloud compute tpus queued-resources create "$NAME" --project="$PROJECT" --zone="$ZONE"
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"
)
if [[ "$SLICES" == 1 ]]; then
  request+=(--node-id="$NAME")
else
  request+=(--node-count="$SLICES" --node-prefix="$NAME")
fi
case "$CAPACITY" in
  spot) request+=(--spot) ;;
  reserved) request+=(--reserved) ;;
esac
run "${request[@]}"

if [[ "${ARGUMENTS[0]:-}" == --no_wait ]]; then exit 0; fi
if [[ "$DRY_RUN" == 1 ]]; then
  run "${describe[@]}"
  exit 0
fi
while true; do
  state="$(queued_state)"
  echo "$NAME is $state"
  case "$state" in
    ACTIVE) break ;;
    NONE | FAILED | SUSPENDING | SUSPENDED | DELETING)
      fail "the request ended as $state. Look at it with: ${describe[*]:0:8}"
      ;;
  esac
  sleep "$WAIT"
done
