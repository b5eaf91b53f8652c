#!/usr/bin/env bash
# Ends the nodes that start.sh started, by their process groups, and no other Ray.
set -euo pipefail

state=${BALLAST_LOCAL:-${XDG_CACHE_HOME:-$HOME/.cache}/ballast/local}
if [[ ! -s $state/pids ]]; then
  echo "stop.sh: no cluster of start.sh in $state"
  exit 0
fi
mapfile -t groups <"$state/pids"
for signal in TERM KILL; do
  for group in "${groups[@]}"; do
    kill "-$signal" -- "-$group" 2>/dev/null || true
  done
  for ((k = 0; k < 20; k++)); do
    alive=
    for group in "${groups[@]}"; do
      if kill -0 -- "-$group" 2>/dev/null; then alive=yes; fi
    done
    if [[ -z $alive ]]; then break 2; fi
    sleep 0.5
  done
done
rm -f "$state/pids" "$state/token"
