#!/usr/bin/env bash
# Trains on all GPUs of a Slurm job, by torchrun, without Ray:
#
#     source .venv/bin/activate
#     sbatch --nodes 4 --gpus-per-node 8 deploy/slurm-train.sh --data /shared/run --preset base --out /shared/runs/base
#
# Data and OUT are on a file system of all nodes. A process that dies is started again with all others, from the newest checkpoint; so
# is the job when a node dies, and when its time is up before the end: five minutes earlier a checkpoint is written. The same line again
# goes on where it stopped.
#SBATCH --job-name=lvsm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
if [ $# = 0 ]; then
    echo "usage: sbatch deploy/slurm-train.sh FLAGS OF lvsm-data train, for example: --data /shared/run --out /shared/runs/base" >&2
    exit 2
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 12000)) # jobs may share a node
again=
# Of scancel --batch --signal=TERM, or of Slurm before the time is up (USR1). srun hands the signal on.
trap 'kill -TERM "$!"' TERM INT
trap 'again=yes; kill -TERM "$!"' USR1
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-$(nproc)}" \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID" --max-restarts=3 \
    "$(command -v lvsm-data)" train "$@" &
while kill -0 "$!" 2>/dev/null; do
    wait "$!" || true # which a trap ends before srun has ended
done
status=0
wait "$!" || status=$?
if [ -n "$again" ] && [ "$status" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
