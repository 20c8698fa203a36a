#!/usr/bin/env bash
# Keeps a run going until it is done: asks for the TPU, sets it up, launches the command, and watches. When the TPU is
# taken away (spot) or fails, it is deleted, asked for anew, and the run goes on from its last checkpoint. Gives up
# after a final exit status (docs/reliability.md), such as a user's error, or after RESTARTS fresh starts without a newer checkpoint. Let it run where it stays up, such as
# in tmux on a small VM. It may itself be stopped and started again at any time, and the run does not notice.
#
# Usage: tpu_scripts/keep.sh [--delete] [--dry_run] [--env=FILE] -- COMMAND [ARGUMENT...]
#   --delete    delete the TPU once the run is done
#   --dry_run   print the commands of one round and run none
#   --env=FILE  settings (default: tpu_scripts/env, see env.example)
# Example:
#   tpu_scripts/keep.sh --delete -- train --gin_file=runs/train.gin --gin.MODEL_DIR='"gs://my-bucket/run"' \
#     --gin.TrainConfig.checkpoint_every=500
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

delete_when_done=0
if [[ "${ARGUMENTS[0]:-}" == --delete ]]; then
  delete_when_done=1
  ARGUMENTS=("${ARGUMENTS[@]:1}")
fi
[[ ${#ARGUMENTS[@]} -gt 0 ]] || fail "no command was given. Expected for example: keep.sh -- train --gin_file=FILE"
model_dir=""
for argument in "${ARGUMENTS[@]}"; do
  if [[ "$argument" =~ ^--gin\.MODEL_DIR=[\'\"](gs://.+)[\'\"]$ ]]; then model_dir="${BASH_REMATCH[1]%/}"; fi
done
[[ -n "$model_dir" ]] ||
  fail "the command has no --gin.MODEL_DIR='\"gs://...\"'. A run that outlives its hosts needs a bucket."

call() { # SCRIPT ARGUMENT...
  bash "$HERE/$1.sh" "${OPTIONS[@]}" "${@:2}"
}

say() {
  echo "$(date -u +%FT%TZ) $NAME: $*"
}

quoted="$(printf '%q ' "${ARGUMENTS[@]}")"
list_checkpoints=(gcloud storage ls "$model_dir/checkpoint_*/commit_success.txt")

# Step of the newest finished checkpoint, or -1.
newest_checkpoint() {
  local newest=-1 line
  while read -r line; do
    [[ "$line" =~ /checkpoint_([0-9]+)/ ]] || continue
    if [[ "${BASH_REMATCH[1]}" -gt "$newest" ]]; then newest="${BASH_REMATCH[1]}"; fi
  done < <(retry "${list_checkpoints[@]}" 2>/dev/null || true)
  echo "$newest"
}

# Counts a fresh start; the count begins anew with each newer checkpoint.
spend() {
  local step
  step="$(newest_checkpoint)"
  if [[ "$step" -gt "$best" ]]; then best="$step" spent=0; fi
  spent=$((spent + 1))
  if [[ "$spent" -gt "$RESTARTS" ]]; then
    fail "$RESTARTS fresh starts brought no checkpoint after step $best. Read logs.sh; then call keep.sh again."
  fi
  say "fresh start $spent of $RESTARTS since the checkpoint of step $best"
}

look() { # NODE NUMBER
  on_hosts "$1" all "bash ~/vadapter-dist/host.sh state -- $quoted 2>/dev/null || echo 'vadapter-state: none'"
}

# The states of all hosts, a line each without repetition; fails if a host does not answer.
host_states() {
  local answers
  answers="$(each_node look)" || return
  sed -n 's/^vadapter-state: //p' <<<"$answers" | sort -u
}

begin() {
  if [[ "$launched" == 1 ]]; then spend; fi
  launched=1
  call stop || say "not all hosts could be stopped"
  if ! { call setup && call launch -- "${ARGUMENTS[@]}"; }; then say "the start failed"; fi
}

start_anew() {
  spend
  call delete || say "it could not be deleted yet"
  launched=0 silent=0
}

finish() {
  say "the run is done"
  if [[ "$delete_when_done" == 1 ]]; then call delete; fi
  exit 0
}

watch_hosts() {
  local states
  if ! states="$(host_states)" || [[ -z "$states" ]]; then
    silent=$((silent + 1))
    say "a host does not answer ($silent of $TRIES)"
    if [[ "$silent" -ge "$TRIES" ]]; then start_anew; fi
    return
  fi
  silent=0
  say "hosts: ${states//$'\n'/, }"
  case $'\n'"$states"$'\n' in
    $'\ndone\n') finish ;;
    *$'\n'other$'\n'*) fail "another command is running on the hosts. Stop it with stop.sh, or let it end." ;;
    *$'\n'none$'\n'* | *$'\n'lost$'\n'*) begin ;; # before `failed 2`: the others may have missed a replaced host
    *$'\nfailed 2\n'* | *$'\nfailed 3\n'* | *$'\nfailed 130\n'*) # final, as in host.sh
      if [[ "$launched" == 1 ]]; then
        call stop || true
        fail "the command ended: $(grep failed <<<"$states" | tr '\n' ' ')(2 is a user's error, 3 its answer is no, 130 " \
          "somebody interrupted it). Read logs.sh, change it, and call keep.sh again."
      fi
      begin # that was before this call, and may be put right
      ;;
    *$'\n'stopped$'\n'* | *$'\nfailed '*) begin ;;
    *) launched=1 ;; # running, or some are done already
  esac
}

if [[ "$DRY_RUN" == 1 ]]; then
  run "${describe[@]}"
  call create --no_wait
  call setup
  call launch -- "${ARGUMENTS[@]}"
  each_node look
  run "${list_checkpoints[@]}"
  call stop
  call delete
  exit 0
fi

launched=0 silent=0 spent=0
best="$(newest_checkpoint)"
while true; do
  state="$(queued_state)"
  say "$state"
  case "$state" in
    NONE) call create --no_wait ;;
    ACTIVE) watch_hosts ;;
    FAILED | SUSPENDED) start_anew ;;
  esac # in all other states it comes or goes by itself
  sleep "$WAIT"
done
