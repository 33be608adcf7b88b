#!/bin/bash
# Damaged devices: the second superblock is used with a warning; what cannot be used is refused, named, and left alone.
. "$(dirname "$0")/lib.sh"
requires jq python3
unit() { # FILE UNIT: overwrite part of a 4 KiB unit
    printf 'this was a superblock' | dd of="$1" bs=1 seek=$(($2 * 4096 + ${3:-64})) conv=notrunc status=none
}
run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary disk create ds/a --size 8M
head -c 1M /dev/urandom > "$T/img"
run_check granary disk import "$T/img" ds/b --format raw
run_check granary datastore leave ds
cp --sparse=always "$T/ds.img" "$T/good.img"

# one superblock: used, with a warning
for copy in 1 4096; do
    cp --sparse=always "$T/good.img" "$T/ds.img"
    unit "$T/ds.img" $copy
    run_check granary datastore join ds "$T/ds.img"
    check 'a warning names the copy' grep -q 'superblock' "$T/err"
    run_check granary disk export ds/b "$T/out.raw"
    equal "$T/img" "$T/out.raw" || fail 'the disk has another content'
    rm "$T/out.raw"
    run_check granary datastore leave ds
done

# both: refused, exit status 5, and nothing is written
cp --sparse=always "$T/good.img" "$T/ds.img"
unit "$T/ds.img" 1
unit "$T/ds.img" 4096
cp --sparse=always "$T/ds.img" "$T/before.img"
run_mustfail 5 'ds.img' granary datastore join ds "$T/ds.img"
equal "$T/ds.img" "$T/before.img" || fail 'a refused device was written to'
run_check granary datastore list --json
check 'nothing is registered' jq -e '. == []' "$T/out"

# cut short
cp --sparse=always "$T/good.img" "$T/ds.img"
truncate -s 200M "$T/ds.img"
run_mustfail 5 'ds.img.*cut short' granary datastore join ds "$T/ds.img"

# of another version, which one copy is enough to say: refused, and nothing is written
newer() { # FILE UNIT: a superblock of version 99, sealed as a newer Granary would
    python3 - "$1" "$2" << 'PY'
import struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
with open(sys.argv[1], 'r+b') as f:
    f.seek(int(sys.argv[2]) * 4096)
    block = bytearray(f.read(4096))
    block[6:8] = struct.pack('<H', 99)
    block[56:60] = bytes(4)
    block[56:60] = struct.pack('<I', crc32c(block))
    f.seek(int(sys.argv[2]) * 4096)
    f.write(block)
PY
}
for copies in 1 4096 '1 4096'; do
    cp --sparse=always "$T/good.img" "$T/ds.img"
    for copy in $copies; do newer "$T/ds.img" "$copy"; done
    cp --sparse=always "$T/ds.img" "$T/before.img"
    run_mustfail 1 'ds.img.*version 99 is newer' granary datastore join ds "$T/ds.img"
    equal "$T/ds.img" "$T/before.img" || fail 'a device of another version was written to'
done

# no datastore at all; magic gone from both
cp --sparse=always "$T/good.img" "$T/ds.img"
unit "$T/ds.img" 1 0
unit "$T/ds.img" 4096 0
run_mustfail 1 'not a Granary datastore' granary datastore join ds "$T/ds.img"

# one of several devices is missing, or another's is given
run_check granary datastore create two "$T/d1.img" "$T/d2.img" --size 256M
run_check granary disk create two/x --size 1M
run_check granary datastore leave two
run_mustfail 1 'number 1 of 2 is missing' granary datastore join two "$T/d1.img"
run_mustfail 1 "good.img.*belongs to" granary datastore join two "$T/d1.img" "$T/good.img"
run_check granary datastore join two "$T/d2.img" "$T/d1.img"
run_check granary datastore check two
