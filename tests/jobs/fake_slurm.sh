#!/bin/bash
# Slurm on one machine, for tests: each of its commands is a link to this file. Jobs lie in $FAKE_SLURM/NUMBER.
state() { cat "$FAKE_SLURM/$1/state" 2>/dev/null; }
run() { # the life of job $1 in its folder
    cd "$FAKE_SLURM/$1" || exit
    while true; do
        rm -f requeue
        echo RUNNING > state
        SLURM_JOB_ID=$1 SLURM_JOB_NODELIST=here CUDA_VISIBLE_DEVICES=4 bash script > out 2>&1 &
        echo $! > pid
        wait $! && ended=COMPLETED || ended=FAILED
        [ -e requeue ] || break
    done
    echo $ended > state
}
case $(basename "$0") in
sbatch)
    if grep -q 'partition=missing' "$1"; then
        echo "sbatch: error: invalid partition specified: missing" >&2
        exit 1
    fi
    number=$(($(ls "$FAKE_SLURM" | wc -l) + 101))
    mkdir "$FAKE_SLURM/$number"
    cp "$1" "$FAKE_SLURM/$number/script"
    echo PENDING > "$FAKE_SLURM/$number/state"
    run $number > /dev/null 2>&1 < /dev/null &
    echo "Submitted batch job $number"
    ;;
srun)
    shift 5 # --unbuffered --output FILE --error FILE
    exec "$@"
    ;;
squeue)
    for number in $(ls "$FAKE_SLURM"); do
        case $(state "$number") in PENDING | RUNNING) echo "$number" ;; esac
    done
    ;;
sacct)
    state "${5#--jobs=}"
    ;;
scontrol)
    touch "$FAKE_SLURM/$2/requeue"
    ;;
scancel) # every process of the job's steps gets the signal, not only the first
    signal=${3:-SIGTERM}
    ours=$(grep -lszFx "FAKE_SLURM=$FAKE_SLURM" /proc/[0-9]*/environ)
    for file in $(grep -lszFx "SLURM_JOB_ID=$1" $ours /dev/null); do
        pid=$(basename "$(dirname "$file")")
        [ "$pid" = "$(cat "$FAKE_SLURM/$1/pid")" ] || kill -s "${signal#SIG}" "$pid"
    done
    ;;
esac
