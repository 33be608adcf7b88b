#!/bin/bash
# granary datastore scrub: finds what rotted, names it, exit status 5, under the daemon and without; repairs copies of metadata; its rate, its result.
. "$(dirname "$0")/lib.sh"
requires jq python3
run_check granary datastore create ds "$T/ds.img" --size 512M --data-crc
head -c 40M /dev/urandom > "$T/a"
run_check granary disk import "$T/a" ds/dir/a --format raw
run_check granary datastore info ds --json
check 'none was made yet' jq -e '.scrub == null' "$T/out"
run_check granary datastore scrub ds
check 'it says how much it read' grep -q "datastore 'ds' is well: 40.* of data read" "$T/out"
check 'no progress where nobody looks' test ! -s "$T/err"

flip() { # byte of $T/a: one bit of it, wherever it lies
    python3 - "$T/ds.img" "$T/a" "$1" << 'PY'
import sys
off = int(sys.argv[3])
piece = open(sys.argv[2], 'rb').read()[off:off + 4096]
with open(sys.argv[1], 'r+b') as f:
    at = f.read().find(piece)
    assert at > 0 and at % 4096 == 0
    f.seek(at)
    f.write(bytes([piece[0] ^ 1]))
PY
}
flip $((10 << 20))
printf 'this was a superblock' | dd of="$T/ds.img" bs=1 seek=$((4096 * 4096 + 64)) conv=notrunc status=none
run_mustfail 5 "'ds/dir/a' at byte 10485760: device 0 .*ds.img'.* does not return what was written" granary datastore scrub ds
run_check granary datastore info ds --json
check 'the result is kept' jq -e '.scrub | .ended >= .started and .started > 0 and ."bad-pieces" == 1 and .errors == 0' "$T/out"

run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
on_exit 'granary down > /dev/null 2>&1'
begun=$(date +%s%N)
status=0
granary datastore scrub ds --rate 20M --json > "$T/out" 2> "$T/err" || status=$?
check 'the exit status is 5' test "$status" = 5
check 'the report tells it' jq -e '.sound == false and ."bad-pieces" == 1 and (.broken | length) == 1' "$T/out"
check 'it kept the rate' test $((($(date +%s%N) - begun) / 1000000)) -ge 1800

# interrupted, it goes on
granary datastore scrub ds --rate 10M > "$T/stopped" 2>&1 &
pid=$!
track $pid
sleep 2
kill -TERM $pid
wait $pid || true
wait_for 20 sh -c 'granary datastore info ds --json | jq -e ".scrub.ended == null and .scrub.bytes > 0"'
status=0
granary datastore scrub ds --json > "$T/out" 2> "$T/err" || status=$?
check 'it went on' jq -e '.resumed == true and .bytes == 41943040' "$T/out"
run_mustfail 5 'is damaged: 1 pieces' granary datastore scrub ds --restart
run_mustfail 2 'size of 0' granary datastore scrub ds --rate 0
run_mustfail 1 'no datastore' granary datastore scrub nothing
if grep -sq Sanitizer "$T"/home/log/*.log; then fail 'a sanitizer complains'; fi
