#!/bin/bash
# Reading a disk from its beginning to its end, 1 MiB at a time, four at once: written once (fresh), aged (as many random 4 KiB overwrites as it has
# such blocks, between 100 snapshots, all deleted since), and after granary disk defragment. Rates, and how many requests a MiB of it is below the
# datastore, which depend on no machine. Beside it a qcow2 with internal snapshots, which knows no such pass, and, as root and where it can be
# mounted, a btrfs file with its own. Only rates need a quiet machine.
# Usage: tests/bench/defragment.sh [MIB [SNAPSHOTS]]: of the disk (256), of its life (100). FILE_DIR: a file system that knows O_DIRECT.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
command -v jq > /dev/null || { echo "defragment: jq is not installed"; exit 0; }
mib=${1:-256} snapshots=${2:-100}
dir=$(mktemp -d "${FILE_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
trap 'mountpoint -q "$dir/mnt" && umount "$dir/mnt"; rm -rf "$dir"' EXIT
goal() { # WHAT VALUE GOAL
    awk -v w="$1" -v v="$2" -v g="$3" 'BEGIN { printf "  %-64s %8s   goal: at least %s   %s\n", w, v, g, (v >= g ? "met" : "missed") }'
}
echo "defragment: $(nproc) CPUs, Linux $(uname -r), $mib MiB, $snapshots snapshots"
"$B/tests/bench/defragment" "$dir" "$mib" "$snapshots" > "$dir/json"
jq -r '"  granary: fresh \(.fresh) MiB/s, aged \(."aged-over-fresh") of it, defragmented \(."after-over-fresh") (\(."moved-mib") MiB moved in \(.seconds) s); requests a MiB: \(."reads-fresh"), \(."reads-aged"), \(."reads-after")"' "$dir/json"
goal "sequential reads after it, over those of a fresh disk" "$(jq '."after-over-fresh"' "$dir/json")" 0.9
goal "the same in requests" "$(jq '."reads-fresh" / ."reads-after" * 100 | round / 100' "$dir/json")" 0.9

each=$((mib * 256 / snapshots)) seed=1
bench() { qemu-img bench -t none -n -f "$format" "$@"; }
place() { seed=$(((seed * 1103515245 + 12345) % 2147483648)); echo $((seed % (mib * 256) * 4096)); }
overwrites() { # FILE: a step of an odd number of blocks visits pieces all over it
    bench -w -c "$each" -d 32 -s 4096 -o "$(place)" -S $(((mib * 256 * 3 / 8 | 1) * 4096)) "$1" > /dev/null
}
rate() { # FILE: the median of five
    for _ in 1 2 3 4 5; do bench -c "$mib" -d 4 -s 1M "$1" | awk -v m="$mib" '/completed/ { print m / $4 }'; done | sort -n | sed -n 3p
}
row() { awk -v w="$1" -v f="$2" -v a="$3" -v n="${4:-}" 'BEGIN { printf "  %s: fresh %.0f MiB/s, aged %.3f of it", w, f, a / f; if (n != "") printf ", defragmented %.3f", n / f; print "" }'; }
if ! command -v qemu-img > /dev/null; then
    echo "defragment: qemu-img is left out (scripts/setup --bench)"
    exit 0
fi
format=qcow2
for what in fresh aged; do
    qemu-img create -q -f qcow2 "$dir/$what.qcow2" "${mib}M"
    bench -w -c "$mib" -d 1 -s 1M "$dir/$what.qcow2" > /dev/null
done
for ((i = 0; i < snapshots; i++)); do
    qemu-img snapshot -c "s$i" "$dir/aged.qcow2"
    overwrites "$dir/aged.qcow2"
done
for ((i = 0; i < snapshots; i++)); do qemu-img snapshot -d "s$i" "$dir/aged.qcow2"; done
row "qcow2, 64 KiB clusters (overwritten whole)" "$(rate "$dir/fresh.qcow2")" "$(rate "$dir/aged.qcow2")"
rm -f "$dir"/*.qcow2

format=raw
truncate -s $((mib * 6 + 512))M "$dir/btrfs"
mkdir "$dir/mnt"
if ! { command -v mkfs.btrfs && mkfs.btrfs -q "$dir/btrfs" && mount -o loop "$dir/btrfs" "$dir/mnt"; } > /dev/null 2>&1; then
    echo "defragment: btrfs is left out: it cannot be mounted here"
    exit 0
fi
btrfs subvolume create "$dir/mnt/v" > /dev/null
for what in fresh aged; do
    truncate -s "${mib}M" "$dir/mnt/v/$what"
    bench -w -c "$mib" -d 1 -s 1M "$dir/mnt/v/$what" > /dev/null
done
for ((i = 0; i < snapshots; i++)); do
    btrfs subvolume snapshot "$dir/mnt/v" "$dir/mnt/s$i" > /dev/null
    overwrites "$dir/mnt/v/aged"
done
for ((i = 0; i < snapshots; i++)); do btrfs subvolume delete "$dir/mnt/s$i" > /dev/null; done
btrfs subvolume sync "$dir/mnt" > /dev/null
fresh=$(rate "$dir/mnt/v/fresh") aged=$(rate "$dir/mnt/v/aged")
btrfs filesystem defragment -t 32M "$dir/mnt/v/aged"
sync -f "$dir/mnt"
row "btrfs, on a loop device" "$fresh" "$aged" "$(rate "$dir/mnt/v/aged")"
