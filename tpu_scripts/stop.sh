#!/usr/bin/env bash
# Stops the command that launch.sh started: it saves a checkpoint and ends. The TPU stays, and costs.
#
# Usage: tpu_scripts/stop.sh [--dry_run] [--env=FILE]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

stop() { # NODE NUMBER
  on_hosts "$1" all 'if [ -f ~/vadapter-dist/host.sh ]; then bash ~/vadapter-dist/host.sh stop; fi'
}
each_node stop
