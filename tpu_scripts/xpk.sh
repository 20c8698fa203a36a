#!/usr/bin/env bash
# Many slices on Google Kubernetes Engine, by xpk and JobSet: JobSet starts the slices together, tells them of one
# another, and starts all again when one is lost. xpk lives in an environment of its own.
#
# Usage: tpu_scripts/xpk.sh [--dry_run | --xpk_dry_run] [--env=FILE] ACTION
#   install                          make xpk's environment (XPK_ENV)
#   image                            build this checkout's container image and push it (IMAGE)
#   cluster                          create the cluster CLUSTER with SLICES slices of ACCELERATOR
#   workload NAME -- COMMAND [ARGUMENT...]   start a vadapter command on all slices as the workload NAME
#   list                             list the workloads
#   stop NAME                        delete the workload NAME
#   delete                           delete the cluster
#   --dry_run      print the commands and run none
#   --xpk_dry_run  let xpk print what it would do in turn; it changes nothing
#   --env=FILE     settings (default: tpu_scripts/env, see env.example)
# Example:
#   tpu_scripts/xpk.sh workload stage2 -- train --gin_file=runs/train.gin --gin.MODEL_DIR='"gs://my-bucket/run"'
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

VERSION=1.16.0
where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
if [[ "${ARGUMENTS[0]:-}" == --xpk_dry_run ]]; then
  where+=(--dry-run)
  ARGUMENTS=("${ARGUMENTS[@]:1}")
fi
action="${ARGUMENTS[0]:-}"
name="${ARGUMENTS[1]:-}"

xpk() {
  [[ "$DRY_RUN" == 1 || -x "$XPK_ENV/bin/xpk" ]] || fail "xpk is not in $XPK_ENV. Call first: xpk.sh install"
  run "$XPK_ENV/bin/xpk" "$@"
}

need_name() {
  [[ -n "$name" ]] || fail "no workload was named. Expected: xpk.sh $action NAME"
}

install() {
  run python3 -m venv "$XPK_ENV"
  run "$XPK_ENV/bin/python" -m pip install --quiet "xpk==$VERSION"
}

image() {
  local dist="$ROOT/dist/tpu"
  run rm -rf "$dist"
  run python3 -m pip wheel --quiet --no-deps --wheel-dir "$dist" "$ROOT"
  run cp "$ROOT/constraints.txt" "$dist/"
  run docker build --platform=linux/amd64 --build-arg="PYTHON_VERSION=$PYTHON_VERSION" --tag="$IMAGE" \
    --file="$HERE/Dockerfile" "$dist"
  run docker push "$IMAGE"
}

cluster() {
  local flags=(--tpu-type="$ACCELERATOR" --num-slices="$SLICES")
  case "$CAPACITY" in
    spot) flags+=(--spot) ;;
    on-demand) flags+=(--on-demand) ;;
    reserved)
      [[ -n "$RESERVATION" ]] || fail "CAPACITY is reserved and RESERVATION is not set. Set it in $ENV_FILE."
      flags+=(--reservation="$RESERVATION")
      ;;
  esac
  xpk cluster create "${where[@]}" "${flags[@]}"
}

# Crashes and lost slices (statuses 1 and 127 to 255) start all slices again; a user's error (2) does not.
workload() {
  need_name
  local command=("${ARGUMENTS[@]:2}") flags=()
  [[ ${#command[@]} -gt 0 ]] ||
    fail "no command was given. Expected for example: xpk.sh workload NAME -- train --gin_file=FILE"
  if [[ -n "${HOST_ENV:-}" ]]; then flags+=(--env-file="$HOST_ENV"); fi
  xpk workload create "${where[@]}" --workload="$name" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" \
    --docker-image="$IMAGE" --max-restarts=100 --restart-on-exit-codes=1 "${flags[@]}" \
    --command="vadapter $(printf '%q ' "${command[@]}")"
}

case "$action" in
  install | image | cluster | workload) "$action" ;;
  list) xpk workload list "${where[@]}" ;;
  stop) need_name; xpk workload delete "${where[@]}" --workload="$name" --force ;;
  delete) xpk cluster delete "${where[@]}" --force ;;
  *) fail "expected install, image, cluster, workload, list, stop or delete; found '$action'. See xpk.sh --help." ;;
esac
