#!/usr/bin/env bash
# Deletes the TPU and its queued resource. What lies on its hosts is lost; what lies in buckets stays.
#
# Usage: tpu_scripts/delete.sh [--dry_run] [--env=FILE]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet
