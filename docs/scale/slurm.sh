#!/bin/bash
# One sweep on several nodes of a Slurm cluster. Change the lines marked with <-- and submit with: sbatch slurm.sh
# Killed, requeued or out of time: submit it again, it goes on from what was finished.
#SBATCH --job-name=sublora
#SBATCH --nodes=2                 # <-- machines
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8         # <-- GPUs of each
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120         # a clean end two minutes before the time limit
#SBATCH --output=sublora-%j.log
set -euo pipefail

source "$HOME/sublora/.venv/bin/activate"        # <-- an environment with pip install 'sublora[ray]', seen by all nodes
export SUBLORA_HOME="$HOME/sublora-store"        # <-- a folder that all nodes see; Ray moves the artifacts if they do not
export HF_HUB_OFFLINE=1                          # download the model once, on the login node
export RAY_AUTH_MODE=token                       # other users of the nodes stay out; the home folder is shared, so all nodes read it
ray get-auth-token --generate >/dev/null 2>&1 || true

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):6379

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --port=6379 --disable-usage-stats --block &
sleep 20
for node in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --address="$address" --disable-usage-stats --block &
done
sleep 20

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  sublora run rank-lr --preset cloud --executor ray --ray-address "$address" --device cuda --out runs/rank-lr-7b
