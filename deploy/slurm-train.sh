#!/usr/bin/env bash
# Trains on all GPUs of a Slurm job, by torchrun, without Ray:
#
#     source .venv/bin/activate
#     sbatch --nodes 4 --gpus-per-node 8 deploy/slurm-train.sh --data /shared/run --preset base --out /shared/runs/base
#
# Data and OUT are on a file system of all nodes. A process that dies is started again with all others, from the newest checkpoint; so
# is the job when a node dies. The same line again goes on where it stopped.
#SBATCH --job-name=lvsm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
if [ $# = 0 ]; then
    echo "usage: sbatch deploy/slurm-train.sh FLAGS OF lvsm-data train, for example: --data /shared/run --out /shared/runs/base" >&2
    exit 2
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 12000)) # jobs may share a node
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-$(nproc)}" \
    torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID" --max-restarts=3 \
    "$(command -v lvsm-data)" train "$@"
