#!/bin/bash
# 4 KiB random writes before and after a snapshot: a datastore's disk over iSCSI beside qcow2, with the same client (qemu-img bench),
# alternating. Usage: tests/bench/snapshot.sh [MiB of the disk] [writes] [rounds]
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
bin=${BIN:-$top/build/release/bin}
mib=${1:-1024} writes=${2:-30000} rounds=${3:-3}
dir=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
export GRANARY_HOME=$dir/home
cleanup() {
    "$bin/granary" down >/dev/null 2>&1 || true
    rm -rf "$dir"
}
trap cleanup EXIT
"$bin/granary" datastore create bench "$dir/ds.img" --size $((mib * 4))M --preallocate >/dev/null
"$bin/granary" disk create bench/disk --size "${mib}M" >/dev/null
"$bin/granary" up --portal 127.0.0.1:0 --mover 127.0.0.1:0 >/dev/null
url=$("$bin/granary" lun list --json | jq -r '.[] | select(.disk == "bench/disk") | ."iscsi-url"')

# fill both with data first; qcow2 in its two usual shapes
dd if=/dev/urandom of="$dir/fill" bs=1M count="$mib" status=none
qemu-img convert -n -f raw -O raw "$dir/fill" "$url"
qemu-img create -q -f qcow2 -o cluster_size=64k "$dir/plain.qcow2" "${mib}M"
qemu-img create -q -f qcow2 -o cluster_size=64k,extended_l2=on "$dir/ext.qcow2" "${mib}M"
qemu-img convert -n -f raw -O qcow2 "$dir/fill" "$dir/plain.qcow2"
qemu-img convert -n -f raw -O qcow2 "$dir/fill" "$dir/ext.qcow2"
rm "$dir/fill"
sleep 1

# a step that visits pieces all over the disk, a flush every 1,000 writes
iops() { # format image
    local t
    t=$(qemu-img bench -w -c "$writes" -d 32 -s 4096 -S 61767680 -t none -n -f "$1" --flush-interval=1000 "$2" 2>/dev/null |
        sed -n 's/.*in \([0-9.]*\) seconds.*/\1/p')
    awk -v n="$writes" -v t="$t" 'BEGIN { printf "%.0f", n / t }'
}
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }
declare -A before after
for ((i = 1; i <= rounds; i++)); do
    before[g]+=" $(iops raw "$url")"
    before[q]+=" $(iops qcow2 "$dir/plain.qcow2")"
    before[e]+=" $(iops qcow2 "$dir/ext.qcow2")"
done
for ((i = 1; i <= rounds; i++)); do
    "$bin/granary" snapshot create bench/disk --name "s$i" >/dev/null
    for k in plain ext; do
        mv "$dir/$k.qcow2" "$dir/$k.$i.qcow2"
        sub=off
        [ $k = ext ] && sub=on
        qemu-img create -q -f qcow2 -o cluster_size=64k,extended_l2=$sub -b "$dir/$k.$i.qcow2" -F qcow2 "$dir/$k.qcow2"
    done
    after[g]+=" $(iops raw "$url")"
    after[q]+=" $(iops qcow2 "$dir/plain.qcow2")"
    after[e]+=" $(iops qcow2 "$dir/ext.qcow2")"
done
# shellcheck disable=SC2086 # lists of numbers
for k in g q e; do
    case $k in g) name="Granary, over iSCSI" ;; q) name="qcow2, 64 KiB clusters" ;; e) name="qcow2, extended L2" ;; esac
    b=$(median ${before[$k]}) a=$(median ${after[$k]})
    [ $k = g ] && mine=$a
    awk -v n="$name" -v b="$b" -v a="$a" -v m="$mine" \
        'BEGIN { printf "%-24s before %7d IOPS  after a snapshot %7d IOPS  kept %.2f  Granary is %.1f times this\n", n, b, a, a / b, m / a }'
done
