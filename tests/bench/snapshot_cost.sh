#!/bin/bash
# What snapshots cost in bytes, flushes and memory, counted (so that these figures do not depend on what else the machine does), beside qcow2 and files
# with reflinks.
#   writes   a 64 GiB disk with 4 GiB filled: at its front, or every sixteenth block of it, so that all of its map exists; and writes anywhere, most of them
#            to blocks that were never written. After a snapshot, 4 KiB random writes with a flush every 1,000: device bytes per guest byte with
#            journal, map and one checkpoint (goal 1.15), data read for them (none), device flushes per guest flush (1.05), the rate over that before (0.9)
#            and the longest write
#   peers    the same for qcow2 (64 KiB clusters; with extended L2) after an external snapshot, and for a file of XFS and of btrfs after a reflink, 64 GiB of
#            which 4 are filled. Bytes and flushes as the loop device below counts them; by fio, on a file and over NBD
#   depth    random reads and memory of the map with 1,000 snapshots beside the same layout without (0.98 and 1.1)
# Only rates need a quiet machine. Usage: tests/bench/snapshot_cost.sh [COUNT...]: of writes; 10000 100000 1000000 by default
# SHM: where the datastore goes for counts (a sparse file, /dev/shm); FILE_DIR: where peers go (as root; 10 GiB), a file system that knows O_DIRECT.
# ONLY: one of writes, peers, depth. WRAP: put in front of programs ("chrt -f 10" on a machine that others use at the same time).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd); B=${B:-$root/build/release}
WRAP=${WRAP:-}; ONLY=${ONLY:-}
command -v jq > /dev/null || { echo "snapshot_cost: jq is not installed"; exit 0; }
counts=("$@"); [ ${#counts[@]} -gt 0 ] || counts=(10000 100000 1000000)
shm=$(mktemp -d "${SHM:-/dev/shm}/granary-bench.XXXXXX"); dir=$(mktemp -d "${FILE_DIR:-${TMPDIR:-/tmp}}/granary-bench.XXXXXX")
loop=; daemon=
cleanup() {
    set +e
    jobs -p | xargs -r kill 2> /dev/null
    wait # else the file system is in use
    ! mountpoint -q "$dir/m" || umount "$dir/m" || umount -l "$dir/m"
    [ -z "$loop" ] || losetup -d "$loop"
    rm -rf "$shm" "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
goal() { # WHAT VALUE min|max GOAL
    awk -v w="$1" -v v="$2" -v m="$3" -v g="$4" 'BEGIN { printf "  %-64s %8s   goal: at %s %s   %s\n", w, v, m == "min" ? "least" : "most", g, (m == "min" ? v >= g : v <= g) ? "met" : "missed" }'
}
run() { $WRAP "$B/tests/bench/snapshot_cost" "$shm" "$@" > "$dir/json" || exit 1; }

writes() {
    local where n
    for where in front spread all; do
        for n in "${counts[@]}"; do
            run writes $where "$n"
            jq -r '"  \(.where), \(.writes) writes: \(."device-bytes-per-guest-byte") device bytes a byte (journal \(.journal), map \(.map)), \(.reads) reads, \(."flushes-per-flush") flushes a flush and \(.forced) forced writes, \(."iops-before") IOPS before, \(."iops-after") after, \(."cpu-us") us of CPU a write (\(."cpu-us-before") before), longest write \(."longest-ms") ms (\(."longest-ms-before") before), \(.checkpoints) checkpoints"' "$dir/json"
            [ "$n" = 100000 ] || continue
            goal "$where: device bytes per guest byte" "$(jq '."device-bytes-per-guest-byte"' "$dir/json")" max 1.15
            goal "$where: bytes of data read" "$(jq '."data-read"' "$dir/json")" max 0
            goal "$where: device flushes per guest flush" "$(jq '."flushes-per-flush"' "$dir/json")" max 1.05
            [ $where = all ] || goal "$where: IOPS over those before" "$(jq .kept "$dir/json")" min 0.9
        done
    done
}

# ---- peers, all on one loop device, whose file is written out beforehand ----
prepare() {
    fallocate -l 10G "$dir/loop.img"
    dd if=/dev/zero of="$dir/loop.img" bs=4M count=2560 oflag=direct conv=notrunc status=none # else it is the first touch that is measured
    loop=$(losetup -f --show --direct-io=on "$dir/loop.img")
    mkdir "$dir/m"
}
device() { awk -v n="$1" '{ print $n }' "/sys/block/${loop#/dev/}/stat"; } # 7: sectors written, 3: sectors read, 16: flushes
# SEED N ENGINE-OPTIONS...: random writes with a flush every 1,000; iops, the longest in ms, device bytes a byte, device flushes a flush and KiB read
fio_writes() {
    local n=$2 w r f
    sync -f "$dir/m"
    w=$(device 7) r=$(device 3) f=$(device 16)
    $WRAP fio --name=x --rw=randwrite --bs=4k --iodepth=32 --size=4G --number_ios="$n" --norandommap --randrepeat=1 --randseed="$1" \
        --output-format=json --output="$dir/fio" "${@:3}" > "$dir/err" 2>&1 || { cat "$dir/err"; exit 1; }
    sync -f "$dir/m"
    jq -r '.jobs[0].write | "\(.iops | floor) \(.lat_ns.max / 1e6)"' "$dir/fio" |
        awk -v n="$n" -v w=$(($(device 7) - w)) -v r=$(($(device 3) - r)) -v f=$(($(device 16) - f)) '{ print $1, $2, w / 8 / n, f / (n / 1000), r / 2 }'
}
peer() { # NAME N SNAPSHOT-COMMAND: before and after it
    local name=$1 n=$2 before after
    before=$(fio_writes 1 "$n" "${engine[@]}")
    "${@:3}"
    after=$(fio_writes 2 "$n" "${engine[@]}")
    echo "$before $after" | awk -v name="$name" -v n="$n" '{
        printf "  %-23s %7d writes: %.2f device bytes a byte (%.2f before), %.0f KiB read, %.2f flushes a flush (%.2f), %d IOPS, before %d (kept %.2f), longest write %.1f ms (%.1f)\n",
            name, n, $8, $3, $10, $9, $4, $6, $1, $6 / $1, $7, $2 }'
}
reflink() { cp --reflink=always "$dir/m/disk" "$dir/m/snapshot"; sync -f "$dir/m"; }
overlay() {
    quit
    mv "$dir/m/disk.qcow2" "$dir/m/base.qcow2"
    qemu-img create -q -f qcow2 -o "$form" -b "$dir/m/base.qcow2" -F qcow2 "$dir/m/disk.qcow2"
    serve
}
serve() {
    $WRAP qemu-storage-daemon --nbd-server addr.type=unix,addr.path="$dir/nbd" --blockdev driver=file,node-name=f,filename="$dir/m/disk.qcow2",cache.direct=on,aio=io_uring \
        --blockdev driver=qcow2,node-name=q,file=f --export type=nbd,id=e,node-name=q,name=d,writable=on > "$dir/qemu.log" 2>&1 &
    daemon=$!
    for _ in $(seq 100); do [ -S "$dir/nbd" ] && return; sleep 0.05; done
    cat "$dir/qemu.log"; exit 1
}
quit() {
    kill "$daemon"; wait "$daemon" 2> /dev/null || true
    daemon=; rm -f "$dir/nbd"
}
on_filesystem() { # xfs|btrfs|ext4: made and mounted, or why not
    command -v "mkfs.$1" > /dev/null || { echo "  $1 is left out: mkfs.$1 is not installed (scripts/setup --bench)"; return 1; }
    grep -qw "$1" /proc/filesystems || modprobe "$1" 2> /dev/null || { echo "  $1 is left out: not on this machine: a kernel without it"; return 1; }
    case $1 in
    xfs) mkfs.xfs -q -f -m reflink=1 "$loop" ;;
    btrfs) mkfs.btrfs -q -f -d single -m single "$loop" > /dev/null 2>&1 ;;
    ext4) mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$loop" ;;
    esac
    mount "$loop" "$dir/m" && return
    echo "  $1 is left out: it cannot be mounted here"
    return 1
}
peers() {
    local fs n engine form sub
    command -v fio > /dev/null || { echo "  peers are left out: fio is not installed (scripts/setup --bench)"; return; }
    [ "$(id -u)" = 0 ] || { echo "  peers are left out: only root can mount"; return; }
    prepare
    for fs in xfs btrfs; do
        on_filesystem $fs || continue
        [ $fs = xfs ] || chattr +C "$dir/m" # as libvirt does for images: else every write of btrfs goes elsewhere, with a reflink or without
        truncate -s 64G "$dir/m/disk"
        dd if=/dev/zero of="$dir/m/disk" bs=1M count=4096 oflag=direct conv=notrunc status=none
        engine=(--filename="$dir/m/disk" --ioengine=io_uring --direct=1 --fdatasync=1000)
        for n in "${counts[@]}"; do
            peer "$fs, reflink" "$n" reflink
            rm -f "$dir/m/snapshot"
        done
        umount "$dir/m"
    done
    command -v qemu-storage-daemon > /dev/null || { echo "  qcow2 is left out (scripts/setup --bench)"; return; }
    for sub in off on; do
        on_filesystem ext4 || return
        form=cluster_size=64k,extended_l2=$sub
        qemu-img create -q -f qcow2 -o "$form" "$dir/m/disk.qcow2" 64G
        qemu-img bench -w -c 4096 -d 4 -s 1M --pattern=90 -t none -n -f qcow2 "$dir/m/disk.qcow2" > /dev/null
        engine=(--ioengine=nbd --uri="nbd+unix:///d?socket=$dir/nbd" --fsync=1000)
        for n in "${counts[@]}"; do
            serve
            peer "qcow2, extended L2 $sub" "$n" overlay
            quit
            mv "$dir/m/base.qcow2" "$dir/m/disk.qcow2"
        done
        umount "$dir/m"
    done
    losetup -d "$loop"
    loop=
    rm -f "$dir/loop.img"
}

depth() {
    run depth 1000
    jq -r '"  \(.what), \(.snapshots) snapshots: \(.iops) IOPS, \(."cpu-us") us of CPU a read, map \(."map-bytes") bytes, \(."map-mib-per-tib") MiB per TiB"' "$dir/json"
    goal "1,000 snapshots: memory of the map over that without" "$(jq -s '.[0]."map-bytes" / .[1]."map-bytes" * 100 | round / 100' "$dir/json")" max 1.1
    goal "1,000 snapshots: IOPS of random reads over those without" "$(jq -s '.[0].iops / .[1].iops * 100 | round / 100' "$dir/json")" min 0.98
}
echo "snapshot_cost: $(nproc) CPUs, Linux $(uname -r)${WRAP:+, under $WRAP}"
for what in writes peers depth; do
    [ -n "$ONLY" ] && [ "$ONLY" != $what ] || $what
done
