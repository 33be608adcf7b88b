#!/bin/bash
# Backup beside its peers on the same image in the same run: full, incremental after 1 % of the 64 KiB units changed, restore, verify,
# and export as VMDK. All on tmpfs, so that what is measured is work, not a disk. CPU seconds (user + system) are beside wall time, as
# other load on the machine inflates the latter. Ratios: > 1: we are faster, or smaller.
#   SIZE=768 (MiB of data)  ROUNDS=2
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
b=${B:-build/release}
case $b in /*) ;; *) b=$top/$b ;; esac
for p in zstd qemu-img jq; do command -v "$p" > /dev/null || { echo "backup: needs $p, left out (scripts/setup --bench)"; exit 0; }; done
t=$(mktemp -d /dev/shm/granary-bench.XXXXXX)
trap 'rm -rf "$t"' EXIT
export GRANARY_HOME=$t/home PATH=$b/bin:$PATH
poke=$b/tests/tools/disk_poke
mib=${SIZE:-768} rounds=${ROUNDS:-2}
cd "$t"

# programs, libraries, texts of this system, with holes between: about what a guest's disk holds
truncate -s $((mib * 2))M a.raw
find /usr/bin /usr/lib /usr/share /usr/include -xdev -type f -size +8k -print0 2> /dev/null | sort -z |
    xargs -0 cat 2> /dev/null | head -c $((mib * 1048576)) > data || true
piece=$(($(stat -c %s data) / 4096 / 4 * 4096))
for i in 0 1 2 3; do dd if=data of=a.raw bs=4096 skip=$((piece / 4096 * i)) seek=$((piece / 4096 * i * 2)) count=$((piece / 4096)) conv=notrunc status=none; done
rm data

timed() { # COMMAND...: sets wall and cpu of the best of $rounds runs
    local i s e line c
    wall=999999 cpu=999999
    for i in $(seq "$rounds"); do
        [ -z "${before:-}" ] || eval "$before"
        s=$(date +%s%N)
        line=$( { TIMEFORMAT='%U %S'; time "$@" > out.log 2> err.log; } 2>&1 ) || { cat out.log err.log; exit 1; }
        e=$(date +%s%N)
        c=$(awk '{ print $1 + $2 }' <<< "$line")
        wall=$(awk "BEGIN { w = ($e - $s) / 1e9; print w < $wall ? w : $wall }")
        cpu=$(awk "BEGIN { print $c < $cpu ? $c : $cpu }")
    done
    : "$i"
}
row() { awk -v what="$1" -v w="$wall" -v c="$cpu" -v s="$2" 'BEGIN { printf "%-44s %7.2f s wall %7.2f s CPU %9.1f MiB\n", what, w, c, s / 1048576 }'; }
ratio() { awk -v what="$1" -v ours="$2" -v theirs="$3" 'BEGIN { printf "    %-60s %.2f\n", what, theirs / ours }'; }
size() { du -sb --apparent-size "$@" | awk '{ s += $1 } END { print s }'; }

granary datastore create ds "$t/vol" --size $((mib * 3))M > /dev/null
granary disk import a.raw ds/a --format raw > /dev/null

before='rm -f a.zst' timed zstd -T2 -3 -q -k a.raw -o a.zst; zw=$wall zc=$cpu zs=$(size a.zst); row "zstd -T2 -3" "$zs"
before='rm -f a.qcow2' timed qemu-img convert -f raw -O qcow2 -c -o compression_type=zstd a.raw a.qcow2; row "qemu-img convert qcow2, zstd" "$(size a.qcow2)"; qw=$wall qc=$cpu
before='rm -f b.raw' timed qemu-img convert -f raw -O raw a.raw b.raw; row "qemu-img convert raw" "$(du -B1 b.raw | cut -f1)"; rw=$wall
before='rm -rf repo' timed granary-proxy backup --disk ds/a --repo repo; gw=$wall gc=$cpu gs=$(size repo/packs); row "granary full (hashes, packs, map)" "$gs"
ratio "full: wall, zstd -T2 -3 / granary" "$gw" "$zw"; ratio "full: CPU, zstd -T2 -3 / granary" "$gc" "$zc"
ratio "full: size, zstd -T2 -3 / granary" "$gs" "$zs"; ratio "full: wall, qemu-img qcow2+zstd / granary" "$gw" "$qw"
ratio "full: CPU, qemu-img qcow2+zstd / granary" "$gc" "$qc"

# 1 % of the units that hold data
awk -v n=$((mib * 16 / 100)) -v units=$((mib * 8)) 'BEGIN { srand(7); for (i = 0; i < n; i++) print "w", int(rand() * units) * 65536, 65536, i }' | sort -t' ' -k2n -u > ch
changed=$(awk '{ s += $3 } END { print s }' ch)
"$poke" ds/a < ch; "$poke" --file a.raw < ch
s0=$(size repo/packs)
rounds=1 timed granary-proxy backup --disk ds/a --repo repo --json
iw=$wall read=$(jq '.read' out.log); row "granary incremental" $(($(size repo/packs) - s0))
echo "    changed $changed bytes, read $read"
ratio "incremental: wall, zstd of the whole / granary" "$iw" "$zw"; ratio "incremental: wall, qemu-img convert raw / granary" "$iw" "$rw"
awk -v r="$read" -v c="$changed" 'BEGIN { printf "    incremental: read / changed                                   %.3f\n", r / c; exit r > 1.1 * c }' || { echo "read more than 1.1 of what changed"; exit 1; }

timed granary backup verify --repo repo; row "granary verify" "$(size repo/packs)"
before='rm -f b.raw' timed granary backup export ds/a b.raw --format raw --repo repo; row "granary restore to a file" "$(du -B1 b.raw | cut -f1)"; ew=$wall
cmp a.raw b.raw
before='rm -f b.raw' timed zstd -d -q --sparse a.zst -o b.raw; row "zstd -d --sparse" "$(du -B1 b.raw | cut -f1)"; ratio "restore: wall, zstd -d / granary" "$ew" "$wall"

before='rm -f a.vmdk' timed granary backup export ds/a a.vmdk --repo repo; vw=$wall vc=$cpu vs=$(size a.vmdk); row "granary export, stream-optimized VMDK" "$vs"
rounds=1; before='rm -f q.vmdk' timed qemu-img convert -f raw -O vmdk -o subformat=streamOptimized a.raw q.vmdk; row "qemu-img convert, stream-optimized VMDK" "$(size q.vmdk)"
ratio "VMDK: wall, qemu-img / granary" "$vw" "$wall"; ratio "VMDK: CPU, qemu-img / granary" "$vc" "$cpu"; ratio "VMDK: size, qemu-img / granary" "$vs" "$(size q.vmdk)"
