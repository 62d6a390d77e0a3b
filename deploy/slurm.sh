#!/usr/bin/env bash
# Runs a command of lvsm-data on all nodes of a Slurm job: in a Ray cluster that starts before it and ends with it.
#
#     source .venv/bin/activate
#     sbatch --nodes 8 --cpus-per-task 64 deploy/slurm.sh render --source objaverse-xl --n 1000000 --res 512 --out /shared/run
#
# On sbatch's command line, too: partition, account, GPUs (--gpus-per-node). --out is on a file system of all nodes, or an address
# (s3://...). The same line again goes on where it stopped; where the time is up before the end, the job is put into the queue again by
# itself. Exit status: that of lvsm-data.
#SBATCH --job-name=lvsm-data
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
if [ $# = 0 ]; then
    echo "usage: sbatch deploy/slurm.sh VERB FLAGS..., for example: render --n 1000 --res 64 --out /shared/run" >&2
    exit 2
fi

nodes=$SLURM_JOB_NUM_NODES cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # this script runs there
ip=$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }')
port=$((20000 + SLURM_JOB_ID % 4000 * 3)) # jobs may share a node
export RAY_ADDRESS=$ip:$port              # what `--address auto` means
# Else whoever reaches these nodes may run what he likes on them; srun hands it on to the others.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # when a node is ended here, its work is done
at_any_port=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)

pids=() again=
finish() {
    status=$?
    trap - EXIT
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do # the head last
        kill "${pids[i]}" 2>/dev/null || true
        wait "${pids[i]}" || true
    done
    if [ -n "$again" ] && [ "$status" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
    exit "$status"
}
trap finish EXIT

# One CPU is the driver's. A temporary folder of its own: /tmp/ray may be another user's.
ray start --head --block --node-ip-address="$ip" --port="$port" --ray-client-server-port=$((port + 1)) \
    --dashboard-port=$((port + 2)) "${at_any_port[@]}" --num-cpus=$((cpus - 1)) --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
pids+=($!)
until (: <"/dev/tcp/$ip/$port") 2>/dev/null; do
    kill -0 "${pids[0]}" || { echo "error: Ray does not start on $head" >&2; exit 1; }
    sleep 0.5
done
if ((nodes > 1)); then
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --relative=1 --cpus-per-task="$cpus" \
        ray start --block --address="$RAY_ADDRESS" "${at_any_port[@]}" --num-cpus="$cpus" &
    pids+=($!)
fi
python - "$nodes" <<'END'
import sys, time, ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + 600
ray.init("auto", log_to_driver=False, logging_level="ERROR")
while (joined := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"error: {joined} of {wanted} nodes joined within ten minutes")
    time.sleep(0.5)
END

# Five minutes before the time is up (USR1), or at scancel --batch --signal=TERM: what is in flight is finished. The trap is set
# before the command starts, so that no signal is lost between the two; `$!` tells whether it has started.
ray=$!
stop() {
    if [ "$!" = "$ray" ]; then exit 143; fi
    kill -TERM "$!" || true
}
trap stop TERM INT
trap 'again=yes; stop' USR1
lvsm-data "$@" --address auto &
driver=$!
while kill -0 "$driver" 2>/dev/null; do
    wait "$driver" || true # which a trap ends before the driver has ended
done
wait "$driver"
