#!/usr/bin/env bash
# Runs TensorBoard on the first host, which reads the bucket with its own rights, and shows it here at
# http://localhost:PORT until it is interrupted.
#
# Usage: tpu_scripts/tensorboard.sh [--dry_run] [--env=FILE] LOGDIR [PORT]
#   LOGDIR      folder of runs, such as gs://my-bucket/runs
#   PORT        here and on the host (default: 6006)
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "no folder was given. Expected for example: tensorboard.sh gs://my-bucket/runs"
port="${ARGUMENTS[1]:-6006}"
[[ "$port" =~ ^[0-9]+$ ]] || fail "the port is '$port'; expected a number."
# With a terminal (-t) the program ends with the connection.
on_hosts "${NODES[0]}" 0 "exec ~/vadapter-env/bin/tensorboard --port=$port --logdir=$(printf '%q' "${ARGUMENTS[0]}")" \
  --ssh-flag="-L $port:localhost:$port" --ssh-flag=-t
