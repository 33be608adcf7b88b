#!/bin/bash
# Our iSCSI target beside Debian's tgt, in the same run, alternating: 4 KiB random and 1 MiB sequential at depth 32. Stores:
# "ds": a fully allocated disk of a datastore (a file) beside tgt on a bare O_DIRECT file of the same disk; "ds-shm": the same on
# tmpfs; "file" and "shm": our target too serves the bare file. Medians of ROUNDS rounds of SECONDS_EACH seconds, and their ratios.
# On a disk both sides may meet the disk's own limit (tests/bench/loop shows it); commands per second of the target's CPU time
# then tell more than the ratio.
# ONLY: a pattern of the rows to measure ("^ds rand").
# WRAP: put in front of both targets and of the client ("chrt -f 10" on a machine that others use at the same time).
# FILE_DIR: where the disk files go (default: a directory under TMPDIR). Exits 1 when a 4 KiB ratio is below MIN_RATIO on
# tmpfs, or on the disk while our target was not waiting for it (more than half of its CPU used).
set -u
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
ROUNDS=${ROUNDS:-3}; SECONDS_EACH=${SECONDS_EACH:-2}; SIZE=${SIZE:-512M}; MIN_RATIO=${MIN_RATIO:-1.5}; WRAP=${WRAP:-}
command -v tgtd > /dev/null && command -v tgtadm > /dev/null || { echo "iscsi: tgt is not installed, nothing to compare with (scripts/setup --bench)"; exit 0; }
[ "$(id -u)" = 0 ] || { echo "iscsi: tgt needs root"; exit 0; }
dir=$(mktemp -d "${FILE_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX"); shm=$(mktemp -d /dev/shm/granary-bench.XXXXXX); pids=()
cleanup() {
    GRANARY_HOME=$dir/home "$B/bin/granary" down > /dev/null 2>&1
    for p in "${pids[@]}"; do kill -KILL "$p" 2> /dev/null; wait "$p" 2> /dev/null; done
    rm -rf "$dir" "$shm"
}
trap cleanup EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
for n in ours peer; do
    fallocate -l "$SIZE" "$dir/$n" 2> /dev/null || truncate -s "$SIZE" "$dir/$n"
    fallocate -l "$SIZE" "$shm/$n"
done
# allocated and written once, so that neither side pays for the file system's first writes
for n in ours peer; do dd if=/dev/zero of="$dir/$n" bs=4M count=$(($(stat -c %s "$dir/$n") >> 22)) oflag=direct conv=notrunc status=none; done
port=$(free_port); control=$((port % 10000 + 20000))
$WRAP "$B/tests/tools/tgt_demo" --portal 127.0.0.1:0 "bench/disk=file:$dir/ours" "bench/shm=file:$shm/ours" > "$dir/out" 2> "$dir/err" &
ours_pid=$!; pids+=("$ours_pid")
$WRAP tgtd -f -C $control --iscsi portal=127.0.0.1:"$port" > "$dir/tgtd.log" 2>&1 &
peer_pid=$!; pids+=("$peer_pid")
for _ in $(seq 100); do grep -q ready "$dir/out" && tgtadm -C $control --op show --mode sys > /dev/null 2>&1 && break; sleep 0.1; done
adm() { tgtadm -C $control --lld iscsi "$@" || exit 1; }
adm --op new --mode target --tid 1 -T iqn.2026-11.local.granary:bench:disk
adm --op new --mode logicalunit --tid 1 --lun 0x1 -b "$dir/peer" --bstype rdwr --bsoflags direct
adm --op bind --mode target --tid 1 -I ALL
adm --op new --mode target --tid 2 -T iqn.2026-11.local.granary:bench:shm
adm --op new --mode logicalunit --tid 2 --lun 0x1 -b "$shm/peer" --bstype rdwr
adm --op bind --mode target --tid 2 -I ALL
export GRANARY_HOME=$dir/home
"$B/bin/granary" datastore create bench "$dir/ds" --size $(($(numfmt --from=iec "$SIZE") + (1 << 30))) > /dev/null &&
    "$B/bin/granary" disk create bench/disk --size "$SIZE" --provision eager > /dev/null &&
    "$B/bin/granary" datastore create shm "$shm/ds" --size $(($(numfmt --from=iec "$SIZE") + (1 << 30))) > /dev/null &&
    "$B/bin/granary" disk create shm/disk --size "$SIZE" --provision eager > /dev/null &&
    $WRAP "$B/bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 > /dev/null || { echo "iscsi: the datastore cannot be served"; exit 1; }
ds=$("$B/bin/granary" lun list --json | sed -n 's|.*iscsi://\([^/]*\)/.*|\1|p' | head -1)
ds_pid=$(cat "$GRANARY_HOME/run/storaged.pid")
ours=$(sed -n 's|.*iscsi://\([^/]*\)/.*|\1|p' "$dir/out" | head -1)
one() { # SIDE DISK RW BS -> "iops p99 target-cpu"
    local at=$ours pid=$ours_pid lun=0 name=bench:disk
    case $2 in shm | ds-shm) name=bench:shm ;; esac
    if [ "$1" = peer ]; then
        at=127.0.0.1:$port pid=$peer_pid lun=1
    else
        case $2 in ds) at=$ds pid=$ds_pid ;; ds-shm) at=$ds pid=$ds_pid name=shm:disk ;; esac
    fi
    $WRAP "$B/tests/bench/iscsi_load" "$at" "iqn.2026-11.local.granary:$name" --rw "$3" --bs "$4" --lun $lun --depth 32 --conns "${CONNS:-1}" \
        --time "$SECONDS_EACH" --size "$SIZE" --pid "$pid" | sed 's/.*"iops":\([0-9]*\).*"p99-us":\([0-9.]*\).*"target-cpu":\([0-9.]*\).*/\1 \2 \3/'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
status=0
printf '%-6s %-10s %5s %10s %10s %7s %9s %9s %12s %12s\n' store rw bs ours tgt ratio p99 "p99 tgt" "iops/cpu" "tgt iops/cpu"
for job in "ds randread 4K" "ds randwrite 4K" "ds read 1M" "ds write 1M" "ds-shm randread 4K" "ds-shm randwrite 4K" "ds-shm read 1M" "ds-shm write 1M" "file randread 4K" "file randwrite 4K" "file read 1M" "file write 1M" "shm randread 4K" "shm randwrite 4K" "shm read 1M" "shm write 1M"; do
    [[ $job =~ ${ONLY:-.} ]] || continue
    read -r store rw bs <<< "$job"
    : > "$dir/r.ours"; : > "$dir/r.peer"
    for _ in $(seq "$ROUNDS"); do
        one ours "$store" "$rw" "$bs" >> "$dir/r.ours"
        one peer "$store" "$rw" "$bs" >> "$dir/r.peer"
    done
    a=$(cut -d' ' -f1 "$dir/r.ours" | median); b=$(cut -d' ' -f1 "$dir/r.peer" | median)
    pa=$(cut -d' ' -f2 "$dir/r.ours" | median); pb=$(cut -d' ' -f2 "$dir/r.peer" | median)
    ca=$(awk '$3 > 0 { print int($1 / $3) }' "$dir/r.ours" | median); cb=$(awk '$3 > 0 { print int($1 / $3) }' "$dir/r.peer" | median)
    ratio=$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", b ? a / b : 0 }')
    printf '%-6s %-10s %5s %10s %10s %7s %9s %9s %12s %12s\n' "$store" "$rw" "$bs" "$a" "$b" "$ratio" "$pa" "$pb" "$ca" "$cb"
    awk -v r="$ratio" -v m="$MIN_RATIO" 'BEGIN { exit !(r < m) }' && [ "$bs" = 4K ] || continue
    used=$(awk '{ print $3 }' "$dir/r.ours" | median)
    case $store in
    *shm) status=1 ;;
    *) awk -v u="$used" 'BEGIN { exit !(u > 0.5) }' && status=1 ;;
    esac
    echo "iscsi: $store $rw is below $MIN_RATIO times tgt (our target used $used of a CPU)"
done
exit $status
