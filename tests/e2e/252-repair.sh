#!/bin/bash
# granary datastore check --repair: a leak and a lost name are mended, told, and proven, without a daemon and with one; the data is what it was.
. "$(dirname "$0")/lib.sh"
requires jq python3
run_check granary datastore create ds "$T/ds.img" --size 256M
head -c 4M /dev/urandom > "$T/a"
run_check granary disk import "$T/a" ds/dir/a --format raw
run_check granary datastore check ds

# Metadata of TYPE is changed in all its copies by the python expression, and sealed again; prints how many blocks that were.
lie() { # TYPE 'expression on block (bytearray), true when it was changed'
    python3 - "$T/ds.img" "$1" "$2" << 'PY'
import struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
def leak(b): # three units that are free in a bitmap that is in use
    if not any(b[64:96]):
        return False
    at = b.index(0, 96)
    b[at] |= 7
    return True
def forget(b): # the folder 'dir' has no entries any more
    if b'\x00a' not in b[64 + 32 + 88:64 + 32 + 88 + 40] or struct.unpack_from('<H', b, 104)[0] != 1 or b'dir' in b:
        return False
    struct.pack_into('<I', b, 160, 0)
    return True
n = 0
with open(sys.argv[1], 'r+b') as f:
    data = f.read()
    for at in range(0, len(data), 4096):
        if data[at:at + 4] != b'GNVB' or struct.unpack_from('<H', data, at + 4)[0] != int(sys.argv[2]):
            continue
        b = bytearray(data[at:at + 4096])
        if not {'leak': leak, 'forget': forget}[sys.argv[3]](b):
            continue
        b[56:60] = bytes(4)
        b[56:60] = struct.pack('<I', crc32c(b))
        f.seek(at)
        f.write(b)
        n += 1
print(n)
PY
}
check 'bitmaps leak' test "$(lie 5 leak)" -ge 2
run_mustfail 5 'nothing uses it' granary datastore check ds
run_mustfail 5 'nothing uses it' granary datastore check ds # a check alone changes nothing
run_check granary datastore check ds --repair
check 'it says what it did' grep -q 'repaired: .* units: given back' "$T/out"
run_check granary datastore check ds

check 'both copies forget' test "$(lie 6 forget)" = 2
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
on_exit 'granary down > /dev/null 2>&1'
run_mustfail 5 '0 directory entries name it' granary datastore check ds
run_check granary datastore check ds --repair --json
check 'the report counts it' jq -e '.sound and .mended >= 1 and .memory > 0 and (.broken | length) >= 2' "$T/out"
run_check granary disk list --json
disk=$(jq -r '.[].disk' "$T/out")
check 'it has a name again' grep -q '^ds/lost+found/object-[0-9]*$' <<< "$disk"
run_check granary disk export "$disk" "$T/out.raw"
equal "$T/a" "$T/out.raw" || fail 'it has another content'
run_check granary datastore check ds --repair
check 'nothing is left to do' grep -q ' 0 rules were broken' "$T/out"

# --- what memory it takes: the report, the manual and who looks from outside agree (tests/bench/check.sh: 1 TiB)
run_check granary down
run_check granary datastore create wide "$T/wide.img" --size 48G
run_check granary disk create wide/thick --size 40G --provision thick # 40 MiB to remember of it
most() { # FILE CMD...: its output; the most bytes that it had at once go to FILE
    python3 -c 'import os, sys
pid = os.fork()
if pid == 0: os.execvp(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss * 1024))
sys.exit(os.waitstatus_to_exitcode(status))' "$@"
}
run_check most "$T/most.info" granary datastore info wide --json
run_check most "$T/most.check" granary datastore check wide --json
said=$(jq .memory "$T/out") grown=$(($(cat "$T/most.check") - $(cat "$T/most.info")))
echo "# check: says $said bytes, took $grown more than 'datastore info' does"
check 'what the manual says' [ "$said" -le $(((256 + 2) << 20)) ]
check 'it remembers each unit' [ "$said" -ge $((40 << 20)) ]
check 'it says what it takes' [ $grown -le $((said + (24 << 20))) ]
if grep -sq Sanitizer "$T"/home/log/*.log; then fail 'a sanitizer complains'; fi
