#!/usr/bin/env bash
# Installs this checkout on every host of the TPU: builds the wheel here, copies it, installs it with the pinned versions.
#
# Usage: tpu_scripts/setup.sh [--dry_run] [--env=FILE]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dist="$ROOT/dist/tpu"
run rm -rf "$dist"
run python3 -m pip wheel --quiet --no-deps --wheel-dir "$dist" "$ROOT"
run cp "$ROOT/constraints.txt" "$dist/"
on_hosts all 'rm -rf ~/vadapter-dist'
run gcloud compute tpus tpu-vm scp --recurse "$dist" "$NAME:vadapter-dist" --project="$PROJECT" --zone="$ZONE" --worker=all

# The images' own Python can be older than 3.11; uv brings the one that is asked for.
on_hosts all "set -e
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --clear --python $PYTHON_VERSION ~/vadapter-env
wheel=\$(ls ~/vadapter-dist/vadapter-*.whl)
python3 -m uv pip install --quiet --python ~/vadapter-env/bin/python -c ~/vadapter-dist/constraints.txt \"vadapter[tpu] @ file://\$wheel\"
~/vadapter-env/bin/vadapter --version"
