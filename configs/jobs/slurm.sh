#!/bin/bash
# A run over two nodes of four GPUs under Slurm: sbatch configs/jobs/slurm.sh configs/my.yaml
#
# srun starts one task a GPU; each is a rank of one run (docs/sharding.md). The run's folder lies on
# storage that all nodes share. A job that was requeued, or is sent again, resumes.
#SBATCH --job-name=rlhf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

config=${1:?the experiment, such as configs/my.yaml}
shift

# The stages that need no GPU of many, or people, may be done before, in a job of one task.
# --kill-on-bad-exit ends all tasks when one fails; the message names the rank, its host and why.
# GPUs are asked for by node, not by task, so that a task finds its own by its number on the node.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8}
srun --kill-on-bad-exit=1 rlhf run "$config" --sharding zero2 "$@"
