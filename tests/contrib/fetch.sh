#!/usr/bin/env bash
# Fetches what the tests of the bridges need and no registry has, at the commits of docs/bridges.md.
#
# usage: tests/contrib/fetch.sh FOLDER
#   GITHUB  where the repositories are (default: https://github.com)
#
# Prints the PYTHONPATH to use. A second run fetches nothing.
set -euo pipefail

folder=$(mkdir -p "$1" && cd "$1" && pwd)
github=${GITHUB:-https://github.com}

# name, owner, commit, and what of it is needed
fetch() {
  local name=$1 owner=$2 commit=$3
  shift 3
  local to="$folder/$name"
  [ -f "$to/.at-$commit" ] && return
  rm -rf "$to"
  git init -q "$to"
  git -C "$to" remote add origin "$github/$owner/$name"
  # The files that are needed alone, all of them at once: some of these repositories hold large ones.
  git -C "$to" sparse-checkout set --no-cone "$@"
  git -C "$to" fetch -q --depth 1 --filter=blob:none origin "$commit"
  git -C "$to" checkout -q FETCH_HEAD
  touch "$to/.at-$commit"
}

fetch t5x google-research cc342d419ec3e3e9c4bf1df33c82330cafdc1e16 '/t5x/**/*.py' '/t5x/**/*.gin'
fetch big_vision google-research 0127fb6b337ee2a27bf4e54dea79cff176527356 '/big_vision/**/*.py'
# t5x imports these two, which are on PyPI broken or not at all.
fetch airio google 69897df7d9a427b947a9f7bb4164c7782b43e601 '/airio/**/*.py'
fetch jestimator google-research 326824a477feef6d92e6f44175000907a72899ca \
  /jestimator/__init__.py /jestimator/amos.py /jestimator/amos_helper.py

echo "$folder/t5x:$folder/big_vision:$folder/airio:$folder/jestimator"
