#!/bin/bash
# What snapshots cost in bytes, flushes and memory, counted (so that the figures do not depend on what else the machine does), beside qcow2.
#   writes   a 64 GiB disk with 4 GiB filled: at its front, or every sixteenth block of it, so that all of its map exists; and writes anywhere, most of them
#            to blocks that were never written. After a snapshot, 4 KiB random writes with a flush every 1,000: device bytes per guest byte with
#            journal, map and one checkpoint, reads made for them, device flushes per guest flush; and the rate beside that before
#   qcow2    the same with an overlay: bytes that reached the disk (O_DIRECT, as the kernel counts them) by guest byte
#   depth    random reads and memory of the map with 1,000 snapshots beside the same layout without
#   free     a snapshot with 100 GiB of its own is deleted
# Only rates need a quiet machine. Usage: tests/bench/snapshot_cost.sh [COUNT...]: of writes; 10000 100000 by default (1000000 takes a few minutes)
# SHM: where the datastore goes for counts (a sparse file, /dev/shm); FILE_DIR: where qcow2 goes, a file system that knows O_DIRECT.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
command -v jq > /dev/null || { echo "snapshot_cost: jq is not installed"; exit 0; }
counts=("$@"); [ ${#counts[@]} -gt 0 ] || counts=(10000 100000)
shm=$(mktemp -d "${SHM:-/dev/shm}/granary-bench.XXXXXX"); dir=$(mktemp -d "${FILE_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
trap 'rm -rf "$shm" "$dir"' EXIT
goal() { # WHAT VALUE min|max GOAL
    awk -v w="$1" -v v="$2" -v m="$3" -v g="$4" 'BEGIN { printf "  %-64s %8s   goal: at %s %s   %s\n", w, v, m == "min" ? "least" : "most", g, (m == "min" ? v >= g : v <= g) ? "met" : "missed" }'
}
run() { "$B/tests/bench/snapshot_cost" "$shm" "$@" > "$dir/json" || exit 1; }

echo "snapshot_cost: $(nproc) CPUs, Linux $(uname -r)"
for where in front spread all; do
    for n in "${counts[@]}"; do
        run writes $where "$n"
        jq -r '"  \(.where), \(.writes) writes: \(."device-bytes-per-guest-byte") device bytes a byte (journal \(.journal), map \(.map)), \(.reads) reads, \(."flushes-per-flush") flushes a flush and \(.forced) forced writes, \(."iops-before") IOPS before, \(."iops-after") after, \(.checkpoints) checkpoints"' "$dir/json"
        [ "$n" = 100000 ] || continue
        goal "$where: device bytes per guest byte" "$(jq '."device-bytes-per-guest-byte"' "$dir/json")" max 1.15
        goal "$where: device flushes per guest flush" "$(jq '."flushes-per-flush"' "$dir/json")" max 1.05
        [ $where = all ] || goal "$where: IOPS over those before" "$(jq .kept "$dir/json")" min 0.9
    done
done

# The kernel counts what a process gave to the disk past the page cache.
written() { python3 -c 'import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock * 512)' "$@"; }
if command -v qemu-img > /dev/null; then
    for sub in off on; do
        qemu-img create -q -f qcow2 -o cluster_size=64k,extended_l2=$sub "$dir/base.qcow2" 64G
        qemu-img bench -w -c 4096 -d 4 -s 1M -t none -n -f qcow2 "$dir/base.qcow2" > /dev/null
        for n in "${counts[@]}"; do
            [ "$n" -le 100000 ] || continue
            rm -f "$dir/top.qcow2"
            qemu-img create -q -f qcow2 -o cluster_size=64k,extended_l2=$sub -b "$dir/base.qcow2" -F qcow2 "$dir/top.qcow2"
            # a step of 61,767,680 bytes, which visits pieces all over the disk
            bytes=$(written qemu-img bench -w -c "$n" -d 32 -s 4096 -S 61767680 -t none -n -f qcow2 --flush-interval=1000 "$dir/top.qcow2")
            awk -v b="$bytes" -v n="$n" -v s=$sub 'BEGIN { printf "  qcow2, 64 KiB clusters, extended L2 %s, anywhere, %d writes: %.2f device bytes a byte\n", s, n, b / n / 4096 }'
        done
        rm -f "$dir"/*.qcow2
    done
else
    echo "snapshot_cost: qemu-img is left out (scripts/setup --bench)"
fi
command -v mkfs.xfs > /dev/null || echo "snapshot_cost: XFS with reflinks is left out: mkfs.xfs is not installed"

run depth 1000
jq -r '"  \(.what), \(.snapshots) snapshots: \(.iops) IOPS, \(."cpu-us") us of CPU a read, map \(."map-bytes") bytes, \(."map-mib-per-tib") MiB per TiB"' "$dir/json"
goal "1,000 snapshots: memory of the map over that without" "$(jq -s '.[0]."map-bytes" / .[1]."map-bytes" * 100 | round / 100' "$dir/json")" max 1.1
goal "1,000 snapshots: IOPS of random reads over those without" "$(jq -s '.[0].iops / .[1].iops * 100 | round / 100' "$dir/json")" min 0.98
run free 100
jq -r '"  \(."freed-gib") GiB freed: answered after \(."answered-ms") ms, free after \(.seconds) s (\(."cpu-seconds") s of CPU), \(."written-mib") MiB written"' "$dir/json"
goal "100 GiB freed: seconds" "$(jq .seconds "$dir/json")" max 10
goal "100 GiB freed: MiB written" "$(jq '."written-mib"' "$dir/json")" max 64
