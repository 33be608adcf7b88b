#!/bin/bash
# A datastore with data CRCs: a bit that flips on the device is told to the initiator as a medium error with the block, named in the log with
# disk, offset and device, and never handed on, from the disk, its snapshot and its clone; the other disks are well.
. "$(dirname "$0")/lib.sh"
requires jq python3 qemu-img
send=$BUILD/tests/tools/scsi_send
run_check granary datastore create ds "$T/ds.img" --size 256M --data-crc
run_check granary datastore info ds --json
check 'the datastore says so' jq -e '."data-crc" == true' "$T/out"
head -c 4M /dev/urandom > "$T/a"
head -c 4M /dev/urandom > "$T/b"
run_check granary disk import "$T/a" ds/a --format raw
run_check granary disk import "$T/b" ds/b --format raw
run_check granary snapshot create ds/a --name one
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
on_exit 'granary down > /dev/null 2>&1'
run_check granary lun list --json
url=$(jq -r '.[] | select(.disk == "ds/a") | ."iscsi-url"' "$T/out")
other=$(jq -r '.[] | select(.disk == "ds/b") | ."iscsi-url"' "$T/out")

# one bit of what lies at 1 MiB + 20480 of the disk, wherever that is on the device
python3 - "$T/ds.img" "$T/a" << 'PY'
import sys
piece = open(sys.argv[2], 'rb').read()[1069056:1069056 + 4096]
with open(sys.argv[1], 'r+b') as f:
    at = f.read().find(piece)
    assert at > 0 and at % 4096 == 0
    f.seek(at + 100)
    f.write(bytes([piece[100] ^ 4]))
PY

# a guest that reads it: MEDIUM ERROR, and the block it is about (LBA 2088)
run_check "$send" --info on --in 65536 "$url" 28000000080000008000 # READ(10), 128 blocks from 2048 on
check 'the initiator is told which block' grep -qx 'sense 3/11/00 info 2088' "$T/out"
run_mustfail 1 'nput/output error' qemu-img convert -f raw -O raw "$url" "$T/got"
run_check qemu-img convert -f raw -O raw "$other" "$T/got"
equal "$T/b" "$T/got" || fail 'the other disk has another content'
check 'the log names disk, offset and device' grep -qE "'ds/a' at byte 1069056: device 0 \('.*ds.img'\)" "$GRANARY_HOME"/log/*
run_mustfail 1 'nput/output error' granary disk export ds/a@one "$T/snap.raw"
run_check granary snapshot clone ds/a@one ds/c
run_mustfail 1 'nput/output error' granary disk export ds/c "$T/clone.raw"
run_check granary datastore info ds --json
check 'it is counted' jq -e '.stats."rotten-reads" >= 3' "$T/out"

# written anew it is well again; the snapshot stays as it is
run_check "$send" --in 4096 "$url" 28000000083000000800
check 'its neighbour is well' grep -q '^good' "$T/out"
run_check qemu-io -f raw -c 'write -P 7 1069056 4096' -c 'read -P 7 1069056 4096' "$url"
run_mustfail 1 'nput/output error' granary disk export ds/a@one "$T/snap.raw"
run_check granary datastore check ds
if grep -sq Sanitizer "$T"/home/log/*.log; then fail 'a sanitizer complains'; fi
