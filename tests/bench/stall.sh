#!/bin/bash
# What a snapshot of a 100 GiB disk costs a guest at work: 4 KiB random writes at depth 32 over iSCSI, the longest any of them took, in
# rounds without and with snapshots (one every 200 ms), alternating; and how long each snapshot took until durable. Every 8 MiB of the
# disk hold data, so that the whole map exists; the datastore is preallocated, so that a virtual machine's first touch of its memory is
# not measured. Each round's snapshots are deleted after it: the free space of later rounds is in splinters. On tmpfs and on this
# machine's disk (whose own outliers are in both columns).
# Usage: tests/bench/stall.sh [ROUNDS] [SECONDS of a round]. Exits 1 when, on tmpfs, the median with snapshots is 10 ms or more above
# the median without.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
case $B in /*) ;; *) B=$root/$B ;; esac
rounds=${1:-5} secs=${2:-3} span=${SPAN:-4G}
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX"); shm=$(mktemp -d /dev/shm/granary-bench.XXXXXX)
export GRANARY_HOME=$dir/home
cleanup() {
    "$B/bin/granary" down > /dev/null 2>&1 || true
    rm -rf "$dir" "$shm"
}
trap cleanup EXIT
ns() { date +%s%N; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
for store in ${STORES:-shm disk}; do
    at=$dir; [ $store = disk ] || at=$shm
    "$B/bin/granary" datastore create $store "$at/ds" --size 12G --preallocate > /dev/null
    "$B/bin/granary" disk create $store/big --size 100G > /dev/null
    seq 0 8388608 107374182399 | awk '{ print "w", $1, 4096, NR }' | "$B/tests/tools/disk_poke" $store/big
done
"$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null
portal=$("$B/bin/granary" lun list --json | sed -n 's|.*iscsi://\([^/]*\)/.*|\1|p' | head -1)
load() { # STORE -> longest write in ms
    "$B/tests/bench/iscsi_load" "$portal" "iqn.2026-11.local.granary:$1:big" --rw randwrite --bs 4K --depth 32 --time "$secs" --size "$span" |
        sed 's/.*"max-us":\([0-9.]*\).*/\1/' | awk '{ printf "%.2f\n", $1 / 1000 }'
}
status=0
for store in ${STORES:-shm disk}; do
    load $store > /dev/null # once over what is not written yet
    : > "$dir/without"; : > "$dir/with"; : > "$dir/took"
    for ((i = 1; i <= rounds; i++)); do
        load $store >> "$dir/without"
        load $store >> "$dir/with" & pid=$!
        sleep 0.3
        for ((s = 1; s <= secs * 4; s++)); do
            t=$(ns)
            "$B/bin/granary" snapshot create $store/big --name "s$i-$s" > /dev/null
            echo $((($(ns) - t) / 1000)) >> "$dir/took"
            sleep 0.2
        done
        wait $pid
        for ((s = 1; s <= secs * 4; s++)); do "$B/bin/granary" snapshot delete "$store/big@s$i-$s" > /dev/null; done
    done
    a=$(median < "$dir/without"); b=$(median < "$dir/with"); t=$(median < "$dir/took")
    printf '%-5s longest write, median of %d rounds: %7.2f ms without, %7.2f ms with snapshots; the command takes %.1f ms (median of %d)\n' \
        $store "$rounds" "$a" "$b" "$(awk -v t="$t" 'BEGIN { print t / 1000 }')" "$(wc -l < "$dir/took")"
    if [ $store = shm ] && awk -v a="$a" -v b="$b" 'BEGIN { exit !(b - a >= 10) }'; then
        echo "stall: snapshots stall the guest for more than 10 ms"
        status=1
    fi
done
exit $status
