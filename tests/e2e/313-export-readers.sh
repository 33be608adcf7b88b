#!/bin/bash
# A restore point and a snapshot, exported as stream-optimized VMDK: qemu-img, libvmdk and 7z read the same bytes as we.
. "$(dirname "$0")/lib.sh"
requires granary granary-proxy jq qemu-img 7z cmp
cd "$T"
truncate -s 96M a.raw
dd if=/dev/urandom of=a.raw bs=64K count=40 seek=17 conv=notrunc status=none
dd if=/dev/urandom of=a.raw bs=4K count=33 seek=12345 conv=notrunc status=none
seq 1 200000 | dd of=a.raw bs=512 seek=100001 conv=notrunc status=none
dd if=/dev/urandom of=a.raw bs=512 count=1 seek=196607 conv=notrunc status=none
run_check granary datastore create ds1 "$T/vol.img" --size 512M
run_check granary disk import a.raw ds1/a --format raw
run_check granary snapshot create ds1/a --name s
run_check granary disk export ds1/a@s snap.vmdk --format vmdk
run_check granary backup run --disk ds1/a --repo repo --json
point=$(jq -r '.[0].point' out)
run_check granary backup export "$point" point.vmdk --repo repo
granary backup export "$point:a" - --repo repo > disk.vmdk # the name that the image gives itself when it goes into a pipe
for f in snap point disk; do
    check "$f: marked as a stream" sh -c "head -c 2048 $f.vmdk | grep -aq 'createType=\"streamOptimized\"'"
    check "$f: ends with an end-of-stream marker" sh -c "tail -c 512 $f.vmdk | tr -d '\\000' | wc -c | grep -qx 0"
    check "$f: its footer is the header again" sh -c "tail -c 1024 $f.vmdk | head -c 4 | grep -q KDMV"
    check "$f: qemu-img" qemu-img compare -f raw -F vmdk a.raw $f.vmdk
    7z x -so -tvmdk $f.vmdk > seven.raw 2> 7z.err
    check "$f: 7z" equal a.raw seven.raw
    if command -v vmdkmount > /dev/null && [ -e /dev/fuse ]; then
        mkdir -p m
        run_check vmdkmount $f.vmdk m
        cp m/vmdk1 lib.raw
        umount m || fusermount3 -u m
        check "$f: libvmdk" equal a.raw lib.raw
    fi
    run_check granary disk import $f.vmdk "ds1/back-$f"
    run_check granary disk export "ds1/back-$f" back-$f.raw
    check "$f: ourselves" equal a.raw back-$f.raw
done
