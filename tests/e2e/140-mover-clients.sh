#!/bin/bash
# The data mover with stock clients over plain text on loopback: nbdinfo, nbdcopy, qemu-img, qemu-io, nbdsh.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
requires nbdinfo nbdcopy qemu-img qemu-io jq nbdsh
demo=$BUILD/tests/tools/mover_demo

# a sparse image with data at known places
truncate -s 64M "$T/disk.raw"
dd if=/dev/urandom of="$T/disk.raw" bs=64K count=16 seek=16 conv=notrunc status=none
dd if=/dev/urandom of="$T/disk.raw" bs=4K count=3 seek=9000 conv=notrunc status=none
cp --sparse=always "$T/disk.raw" "$T/rw.raw"
start demo "$demo" --plain "ds/web 01@nightly=file:$T/disk.raw" "ds/live=rw:$T/rw.raw" ds/mem=mem:32M
wait_for 10 grep -q '^port' "$T/demo.log"
port=$(sed -n 's/^port //p' "$T/demo.log")
snap="nbd://127.0.0.1:$port/ds/web%2001%40nightly"
live="nbd://127.0.0.1:$port/ds/live"

run_check nbdinfo --list --json "nbd://127.0.0.1:$port/"
check 'three exports are listed' test "$(jq '.exports | length' "$T/out")" = 3
check 'names arrive as they are' jq -e '.exports[] | select(."export-name" == "ds/web 01@nightly") | .is_read_only and ."export-size" == 67108864 and .description == "demo"' "$T/out"
run_check nbdinfo --json "$snap"
check 'multi-conn, DF and contexts' jq -e '.exports[0] | .can_multi_conn and .can_df and (.contexts | index("base:allocation") != null) and (.contexts | index("granary:changed:EVERY-2") != null)' "$T/out"
check 'structured replies' jq -e '.structured' "$T/out"
run_mustfail 1 'ds/none' nbdinfo "nbd://127.0.0.1:$port/ds/none"

run_check nbdinfo --map --json "$snap"
check 'the map ends at the size' test "$(jq '[.[].length] | add' "$T/out")" = 67108864
check 'data where data is' jq -e 'any(.[]; .type == 0 and .offset <= 1048576 and .offset + .length >= 2097152)' "$T/out"
check 'holes are holes' jq -e 'any(.[]; .type == 3 and .offset == 0)' "$T/out"
run_check nbdinfo --map=granary:changed:EVERY-3 --json "$snap"
check 'changed-since: every third block' test "$(jq '[.[] | select(.type == 1) | .length] | add' "$T/out")" = $((342 * 65536))
run_check nbdinfo --map=granary:changed:00000000-0000-0000-0000-000000000000:0:2 --json "$snap"
check 'changed-since by token' test "$(jq '[.[] | select(.type == 1) | .length] | add' "$T/out")" = $((512 * 65536))
run_mustfail 1 'granary:changed:nothing' nbdinfo --map=granary:changed:nothing "$snap"

run_check nbdcopy "$snap" "$T/copy.raw"
check 'nbdcopy reads every byte' equal "$T/disk.raw" "$T/copy.raw"
run_check nbdcopy --connections=1 --requests=1 --request-size=65536 "$snap" "$T/copy2.raw"
check 'and with one request at a time' equal "$T/disk.raw" "$T/copy2.raw"
run_check qemu-img convert -O raw "$snap" "$T/qemu.raw"
check 'qemu-img reads every byte' equal "$T/disk.raw" "$T/qemu.raw"
run_check qemu-img map --output=json "$snap"
check 'qemu-img map sees holes' jq -e 'any(.[]; .zero and (.data | not))' "$T/out"

head -c 67108864 /dev/urandom > "$T/new.raw"
run_check nbdcopy --flush "$T/new.raw" "$live"
check 'nbdcopy writes every byte' equal "$T/new.raw" "$T/rw.raw"
run_check qemu-io -f raw -c 'write -P 0x5a 1M 1M' -c 'write -z 4M 64k' -c 'discard 8M 1M' -c 'flush' -c 'read -P 0x5a 1M 1M' -c 'read -P 0 4M 64k' "$live"
check 'writes reach the file' test "$(dd if="$T/rw.raw" bs=1M skip=1 count=1 status=none | tr -d '\132' | wc -c)" = 0
run_mustfail 1 '.' qemu-io -f raw -c 'write 0 512' "$snap"
check 'the read-only file is as it was' equal "$T/disk.raw" "$T/copy.raw"

run_check env PATH=/usr/bin:/bin nbdsh -u "$snap" -c 'assert h.pread(3, 1048575)[0] == 0' -c '
cookies = [h.aio_pread(nbd.Buffer(70000), 1000 * i) for i in range(500)]
while h.aio_in_flight() > 0: h.poll(-1)
assert all(h.aio_command_completed(c) for c in cookies)' -c '
try:
    h.pread(512, 64 << 20); assert False
except nbd.Error as e: print(e)'
stop demo
check 'it ended in order' grep -q '^served' "$T/demo.log"
