#!/bin/bash
# A job that restarts from its last commit when a rank is lost, up to MAX_RESTARTS times:
#   launch/torchrun.sh --config mine.yaml
# It uses all GPUs of this machine, or NPROC_PER_NODE processes. On several machines, run the same command on each, with
#   NNODES=2 RDZV_ENDPOINT=node1:29400 launch/torchrun.sh --config mine.yaml
# and run.dir in a folder that all of them share.
set -euo pipefail

if [[ ${NNODES:-1} != 1 ]]; then  # torchrun's own store would give ranks the addresses of the attempt that died
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-170}"  # seconds to commit (default: 30)
# With a longer --monitor-interval, some ranks would rendezvous while others are still ending.
exec torchrun --nnodes "${NNODES:-1}" --nproc-per-node "${NPROC_PER_NODE:-auto}" \
    --max-restarts "${MAX_RESTARTS:-3}" --monitor-interval 1 \
    --rdzv-backend c10d --rdzv-endpoint "${RDZV_ENDPOINT:-localhost:0}" --rdzv-id "${RDZV_ID:-accel-restore}" \
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1 -m accel_restore.train "$@"
