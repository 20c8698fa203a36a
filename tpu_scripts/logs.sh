#!/usr/bin/env bash
# Follows what the command that launch.sh started prints, on one host.
#
# Usage: tpu_scripts/logs.sh [--dry_run] [--env=FILE] [WORKER]
#   WORKER      number of the host (default: 0), or all
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

on_hosts "${ARGUMENTS[0]:-0}" 'tail -n 100 -F ~/vadapter.log'
