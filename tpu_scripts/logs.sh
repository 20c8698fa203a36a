#!/usr/bin/env bash
# Follows what the command that launch.sh started prints, on one host.
#
# Usage: tpu_scripts/logs.sh [--dry_run] [--env=FILE] [WORKER [SLICE]]
#   WORKER      number of the host (default: 0), or all
#   SLICE       number of the slice (default: 0)
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

slice="${ARGUMENTS[1]:-0}"
[[ "$slice" =~ ^[0-9]+$ && "$slice" -lt "$SLICES" ]] || fail "there is no slice $slice. Expected 0 to $((SLICES - 1))."
on_hosts "${NODES[slice]}" "${ARGUMENTS[0]:-0}" 'tail -n 100 -F ~/vadapter.log'
