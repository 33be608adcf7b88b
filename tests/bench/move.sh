#!/bin/bash
# A disk of 64 GiB whose whole map exists changes hands under 4 KiB writes scattered over all of it, at depth 32 (QEMU's initiator: every write dirties another
# leaf of the map): how long the disk was nowhere, of that until its initiators were gone, and the longest wait of an initiator at work (live_load, one
# command at a time, which logs in anew). On a datastore on a file and on a LUN of a target of ours, both on tmpfs, so that no disk's flushes are
# measured; STORES="file lun disk" adds a file on this machine's disk.
# Usage: tests/bench/move.sh [MOVES of each]. The goal is a median of 20 ms; with LIMIT=MS it exits 1 when one is above that. All hosts, the array and the load share
# this machine: when it is busy with something else, that is what is measured, on LUNs above all, where a move is some tens of round trips.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
case $B in /*) ;; *) B=$root/$B ;; esac
moves=${1:-10} goal=${LIMIT:-20}
for c in jq qemu-img; do command -v $c > /dev/null || { echo "move: $c is not installed"; exit 0; }; done
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX"); shm=$(mktemp -d /dev/shm/granary-bench.XXXXXX)
pids=()
on() { local home=$1; shift; GRANARY_HOME=$dir/$home "$B/bin/granary" "$@"; }
cleanup() {
    local p
    for p in "${pids[@]}"; do kill "$p" 2> /dev/null || true; done
    for p in a b array; do on $p down > /dev/null 2>&1 || true; done
    rm -rf "$dir" "$shm"
}
trap cleanup EXIT
mkdir "$dir/a" "$dir/b" "$dir/array"
median() { sort -n | awk '{ v[NR] = $1 } END { printf "%.1f (at most %.1f)", v[int((NR + 1) / 2)], v[NR] }'; }
status=0
table() { # NAME DEVICE
    local name=$1 device=$2 target n to=b all
    shift 2
    on a datastore create "$name" "$device" "$@" > /dev/null
    on b datastore join "$name" "$device" > /dev/null
    on a disk create "$name/d" --size 64G > /dev/null
    seq 0 8388608 68719476735 | awk '{ print "w", $1, 4096, NR }' | GRANARY_HOME=$dir/a "$B/tests/tools/disk_poke" "$name/d"
    on a up --portal 127.0.0.1:0 > /dev/null
    on b up --portal 127.0.0.1:0 > /dev/null
    target=$(on a lun list "$name/d" --json | jq -r '.[0].target')
    declare -A portal=([a]=$(on a status --json | jq -r .portal) [b]=$(on b status --json | jq -r .portal))
    : > "$dir/stall"; : > "$dir/gone"; : > "$dir/seen"
    qemu-img bench --image-opts -t none -w -c 100000000 -d 32 -s 4096 -S 8392704 \
        "driver=raw,size=63G,file.driver=iscsi,file.transport=tcp,file.portal=${portal[a]},file.target=$target,file.lun=0" > "$dir/bench.log" 2>&1 &
    local bench=$!
    pids+=("$bench")
    for ((n = 0; n < moves; n++)); do
        "$B/tests/tools/live_load" "${portal[a]}" "$target" 60 iqn.2026-11.local.granary:live $(((64512 + 2 * n) * 2048)) > "$dir/live.log" &
        local live=$!
        pids+=("$live")
        sleep 1
        on a disk move "$name/d" "${portal[$to]}" --json > "$dir/moved"
        sleep 0.5
        kill "$live"
        wait "$live" || { echo "move: live_load: $(cat "$dir/live.log")"; exit 1; }
        jq '.seconds * 1000' "$dir/moved" >> "$dir/stall"
        jq '."until-gone" * 1000' "$dir/moved" >> "$dir/gone"
        jq '."longest-ms"' "$dir/live.log" >> "$dir/seen"
        to=$([ $to = b ] && echo a || echo b)
    done
    kill -0 "$bench" || { echo "move: qemu-img bench gave up: $(cat "$dir/bench.log")"; exit 1; }
    kill "$bench"
    wait "$bench" || :
    on a down > /dev/null
    on b down > /dev/null
    all=$(median < "$dir/stall")
    printf '%-5s %d moves: nowhere for %s ms, of that until the initiators were gone %s ms; one of them waited %s ms: medians\n' "$name" "$moves" "$all" \
        "$(median < "$dir/gone")" "$(median < "$dir/seen")"
    if awk -v m="${all%% *}" -v goal="$goal" 'BEGIN { exit !(m > goal) }'; then
        echo "move: goal: $goal ms at most: missed"
        status=1
    fi
}
for store in ${STORES:-file lun}; do
    case $store in
    file) table file "$shm/ds" --size 16G ;;
    disk) table disk "$dir/ds" --size 16G ;;
    lun)
        on array lun add store "$shm/store" --size 16G > /dev/null
        on array up --portal 127.0.0.1:0 > /dev/null
        table lun "$(on array lun list --json | jq -r '.[0]."iscsi-url"')" ;;
    esac
done
[ -z "${LIMIT:-}" ] || exit $status
