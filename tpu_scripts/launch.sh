#!/usr/bin/env bash
# Starts a vadapter command on every host of the TPU, in the background; logs.sh shows what it prints. Starting what is
# running already changes nothing. On each host the command is started again after a crash, but not after a user's
# error. MODEL_DIR must be a place that all hosts see, such as a bucket: every start goes on from its last checkpoint.
#
# Usage: tpu_scripts/launch.sh [--dry_run] [--env=FILE] -- COMMAND [ARGUMENT...]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
# Example:
#   tpu_scripts/launch.sh -- train --gin_file=runs/train.gin --gin.MODEL_DIR='"gs://my-bucket/run"'
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "no command was given. Expected for example: launch.sh -- train --gin_file=FILE"

# Several slices find one another by these variables. The hosts' metadata have them too, but not always the right ones
# once a slice was replaced.
coordinator=""
if [[ "$SLICES" -gt 1 ]]; then
  address=(
    gcloud compute tpus tpu-vm describe "${NODES[0]}" --project="$PROJECT" --zone="$ZONE"
    "--format=value(networkEndpoints[0].ipAddress)"
  )
  if [[ "$DRY_RUN" == 1 ]]; then
    run "${address[@]}"
    coordinator=COORDINATOR_ADDRESS
  else
    coordinator="$(retry "${address[@]}")"
    [[ -n "$coordinator" ]] || fail "${NODES[0]} has no address yet. Is it there? See create.sh."
  fi
fi

start() { # NODE NUMBER
  local variables=()
  if [[ "$SLICES" -gt 1 ]]; then
    variables=("MEGASCALE_COORDINATOR_ADDRESS=$coordinator" "MEGASCALE_NUM_SLICES=$SLICES" "MEGASCALE_SLICE_ID=$2")
  fi
  on_hosts "$1" all "bash ~/vadapter-dist/host.sh start ${variables[*]} -- $(printf '%q ' "${ARGUMENTS[@]}")"
}
each_node start
