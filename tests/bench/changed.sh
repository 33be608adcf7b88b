#!/bin/bash
# How long it takes to say what changed on a large disk of which one in a hundred bytes has: blocks of 64 KiB anywhere, pieces of 4 KiB anywhere. All of
# the disk is mapped; of its data nothing is kept, so a disk of 1 TiB takes 5 GiB here. Cold: the map is on the device alone (O_DIRECT, joined anew);
# warm: the device's file is in the page cache (the map of a disk of 1 TiB does not fit the datastore's own cache, nor is it put there).
# Beside it QEMU with the same changes, recorded as exactly: the map of a qcow2 with subclusters of 4 KiB (qemu-img), and a dirty bitmap of that granularity
# asked over NBD (qemu-nbd, nbdinfo).
# Usage: tests/bench/changed.sh [GIB]   DIR: where the files go, a file system that knows O_DIRECT (TMPDIR, /tmp). Judge by CPU where the machine does other
# things, or say WRAP="chrt -f 10".
NAME=changed
DIR=${DIR:-${TMPDIR:-/tmp}}
# shellcheck source=tests/lib/bench.sh
. "$(dirname "$0")/../lib/bench.sh"
gib=${1:-1024}

echo "changed: $gib GiB, all of it mapped, 1 % changed; $(nproc) CPUs, Linux $(uname -r)"
$WRAP "$B/tests/bench/changed" "$dir" "$gib" > "$dir/json" 2> "$dir/err" || die "$(cat "$dir/err")"
jq -r '"  \(.what), \(.how): \(.seconds) s, \(."cpu-seconds") s of CPU; \(.ranges) ranges, \(."changed-gib") GiB; \(.leaves) leaves, \(.nodes) nodes in \(.reads) reads of \(."read-mib") MiB; map in memory \(."map-mib") MiB"' "$dir/json"
value() { jq -r "select(.what == \"$1\" and .how == \"$2\") | .\"$3\"" "$dir/json"; }
if [ "$gib" = 1024 ]; then
    goal "64 KiB runs, cold: seconds" "$(value runs cold seconds)" max 2
    goal "64 KiB runs, cold: seconds of CPU" "$(value runs cold cpu-seconds)" max 2
    goal "scattered 4 KiB, warm: seconds" "$(value scattered warm seconds)" max 2
    goal "scattered 4 KiB, warm: seconds of CPU" "$(value scattered warm cpu-seconds)" max 2
    goal "scattered 4 KiB, cold: seconds" "$(value scattered cold seconds)" max 6
fi

# timed WHAT COMMAND...: seconds, and seconds of CPU of it and its children
timed() { $WRAP python3 - "$@" << 'PY'
import os, subprocess, sys, time
began = time.time()
out = subprocess.Popen(sys.argv[2:], stdout=subprocess.PIPE)
lines = sum(chunk.count(b'\n') for chunk in iter(lambda: out.stdout.read(1 << 20), b''))
_, status, usage = os.wait4(out.pid, 0)
assert status == 0, sys.argv[2:]
print('  %s: %.2f s, %.2f s of CPU; %d lines' % (sys.argv[1], time.time() - began, usage.ru_utime + usage.ru_stime, lines))
PY
}
uncache() { dd of="$1" oflag=nocache conv=notrunc,fdatasync count=0 status=none < /dev/null; }
if ! command -v qemu-img > /dev/null || ! command -v qemu-io > /dev/null; then
    echo "changed: QEMU is left out (scripts/setup --bench)"
    exit 0
fi
peer=$dir/peer.qcow2
for what in runs scattered; do
    rm -f "$peer"
    qemu-img create -q -f qcow2 -o cluster_size=128k,extended_l2=on "$peer" "${gib}G"
    qemu-img bitmap --add -g 4096 "$peer" since
    "$B/tests/bench/changed" "$gib" $what | qemu-io -f qcow2 --cache writeback "$peer" > /dev/null || die "qemu-io failed" # zeros: of the data nothing is kept
    uncache "$peer"
    timed "qemu-img map, $what, cold" qemu-img map --output=json --image-opts "driver=qcow2,file.driver=file,file.filename=$peer,cache.direct=on"
    timed "qemu-img map, $what, warm" qemu-img map --output=json "$peer"
    if command -v nbdinfo > /dev/null && command -v qemu-nbd > /dev/null; then
        qemu-nbd -r -t -f qcow2 -B since -k "$dir/sock" -x '' --fork --pid-file="$dir/pid" "$peer" || die "qemu-nbd does not start"
        daemon=$(cat "$dir/pid")
        timed "qemu-nbd's bitmap (in its memory) by nbdinfo, whose CPU it is, $what" nbdinfo --map=qemu:dirty-bitmap:since "nbd+unix:///?socket=$dir/sock"
        kill "$daemon"
        daemon=
    fi
done
