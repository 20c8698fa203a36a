#!/usr/bin/env bash
# Starts a vadapter command on every host of the TPU, in the background; logs.sh shows what it prints.
# MODEL_DIR must be a place that all hosts see, such as a bucket. Launching again resumes from the latest checkpoint.
#
# Usage: tpu_scripts/launch.sh [--dry_run] [--env=FILE] -- COMMAND [ARGUMENT...]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
# Example:
#   tpu_scripts/launch.sh -- train --gin_file=runs/train.gin --gin.MODEL_DIR='"gs://my-bucket/run"'
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "no command was given. Expected for example: launch.sh -- train --gin_file=FILE"
command="$(printf '%q ' "${ARGUMENTS[@]}")"
on_hosts all "if [ -f ~/vadapter.pid ] && kill -0 \$(cat ~/vadapter.pid) 2>/dev/null; then
  echo 'a vadapter command is running on this host; see logs.sh' >&2; exit 2
fi
nohup ~/vadapter-env/bin/vadapter $command > ~/vadapter.log 2>&1 < /dev/null &
echo \$! > ~/vadapter.pid"
