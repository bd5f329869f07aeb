#!/bin/bash
#SBATCH --job-name=arpo
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
set -euo pipefail
source /shared/venv/bin/activate
export ARPO_CACHE=/shared/cache
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS=$head:6379
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n') # else anybody may run programs
srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port=6379 --block &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude "$head" \
    ray start --address="$RAY_ADDRESS" --block &
  sleep 20
fi
arpo cluster check --folder /shared/runs
run=/shared/runs/$SLURM_JOB_NAME
if [ -e "$run/recipe.yaml" ]; then start=(--resume "$run"); else start=(/shared/recipe.yaml cluster.ranks=16 "out=$run"); fi
arpo train "${start[@]}" &
driver=$!
trap 'kill -TERM "$driver"; wait "$driver"' TERM # ten minutes before the end: the run saves what is finished
wait "$driver"
