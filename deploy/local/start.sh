#!/usr/bin/env bash
# Several Ray nodes on one machine, to try on a desk what a cluster would do:
#
#   deploy/local/start.sh 2 4          # two nodes of four logical CPUs; prints what to export
#   ballast submit --address http://127.0.0.1:8265 experiment=tiny cluster.address=auto
#   deploy/local/stop.sh
#
# All nodes share this machine's network and memory: ports and addresses are not tested by it.
# State, the token and the processes' numbers lie in BALLAST_LOCAL (default: ~/.cache/ballast/local).
set -euo pipefail

count=${1:-2}
cpus=${2:-4}
state=${BALLAST_LOCAL:-${XDG_CACHE_HOME:-$HOME/.cache}/ballast/local}
port=${BALLAST_RAY_PORT:-6379}
dashboard=${BALLAST_DASHBOARD_PORT:-8265}

if [[ ! $count =~ ^[1-9][0-9]*$ || ! $cpus =~ ^[1-9][0-9]*$ ]]; then
  echo "start.sh: '$count' nodes of '$cpus' CPUs: give two whole numbers, such as 2 4" >&2
  exit 2
fi
if [[ -s $state/pids ]]; then
  echo "start.sh: $state/pids names a cluster that was not stopped: run deploy/local/stop.sh" >&2
  exit 1
fi

umask 077
mkdir -p "$state"
head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$state/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0 # or any other program of this machine starves the workers

node() {
  setsid ray start --block --num-cpus="$cpus" --object-store-memory=500000000 \
    --node-ip-address=127.0.0.1 --dashboard-agent-listen-port=0 "$@" >>"$state/ray.log" 2>&1 &
  echo "$!" >>"$state/pids"
}
node --head --port="$port" --ray-client-server-port="$((port + 1))" \
  --include-dashboard=true --dashboard-port="$dashboard"
for ((k = 1; k < count; k++)); do
  sleep 1 # the head must listen; a node that comes too early tries again
  node --address="127.0.0.1:$port"
done
if ! ballast nodes --address "127.0.0.1:$port" --wait-for "$count" --timeout 120; then
  echo "start.sh: see $state/ray.log; deploy/local/stop.sh ends what has started" >&2
  exit 1
fi
echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$state/token"
