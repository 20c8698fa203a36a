#!/usr/bin/env bash
# Installs this checkout on every host of the TPU: builds the wheel here, copies it, and installs it with the
# pinned versions.
#
# Usage: tpu_scripts/setup.sh [--dry_run] [--env=FILE]
#   --dry_run   print the commands and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dist="$ROOT/dist/tpu"
run rm -rf "$dist"
run python3 -m pip wheel --quiet --no-deps --wheel-dir "$dist" "$ROOT"
run cp "$ROOT/constraints.txt" "$HERE/host.sh" "$dist/"

copy() { # NODE FROM TO
  run gcloud compute tpus tpu-vm scp --recurse "$2" "$1:$3" --project="$PROJECT" --zone="$ZONE" --worker=all
}

# The images' own Python can be older than 3.11; uv brings the one that is asked for.
install="set -e
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --clear --python $PYTHON_VERSION ~/vadapter-env
cd ~/vadapter-dist
wheel=\$(ls vadapter-*.whl)
python3 -m uv pip install --quiet --python ~/vadapter-env/bin/python -c constraints.txt \
  \"vadapter[tpu] @ file://\$PWD/\$wheel\"
~/vadapter-env/bin/vadapter --version"

copy_variables() { # NODE
  if [[ -z "${HOST_ENV:-}" ]]; then return; fi
  on_hosts "$1" all 'umask 077 && touch ~/vadapter-dist/host.env' && copy "$1" "$HOST_ENV" vadapter-dist/host.env
}

set_up() { # NODE NUMBER
  on_hosts "$1" all 'rm -rf ~/vadapter-dist' && copy "$1" "$dist" vadapter-dist && copy_variables "$1" \
    && on_hosts "$1" all "$install"
}
each_node set_up
