#!/bin/bash
# Device 1 is lost for good while disks are written and flushed, and the host is killed: journals are on device 0, too, so what is left is what was flushed
# last, nothing is behind, and snapshots are exact. A host that is killed under load before that goes on where it was.
# timeout: 240
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
target() { a lun list "$1" --json | jq -r '.[0].target'; }
portal() { a status --json | jq -r .portal; }
state() { jq -r --arg p "ds/$1" '.objects[] | select(.path == $p) | .state' "$T/left"; }
DISKS="one two three"
bytes() { case $1 in one) echo 8M ;; two) echo 160M ;; three) echo 16M ;; esac; }
read_back() { # FILE-OR-URL PATTERN FROM BYTES
    run_check qemu-io -r -f raw -c "read -P $2 $3 $4" "$1"
    check "what is read of $1 at $3" grep -q '^read [0-9]' "$T/out"
    if grep -q 'Pattern verification failed' "$T/out"; then fail "other bytes in $1 at $3"; fi
}

truncate -s 128M "$T/one.img" "$T/three.img"
truncate -s 48M "$T/two.img" # the second disk fills it, so that what is written later lies elsewhere
run_check a datastore create ds "$T/one.img" "$T/two.img" "$T/three.img"
for d in $DISKS; do run_check a disk create ds/$d --size 512M; done
run_check a disk create ds/load --size 16M
run_check a up --portal 127.0.0.1:0
# shellcheck disable=SC2046 # one word each
patterns a $(for d in $DISKS; do echo "ds/$d=$(bytes $d)"; done)
run_check a datastore devices ds --json
check 'disks lie on all devices' jq -e '[.[] | select(.used > 8000000)] | length == 3' "$T/out"
run_check a snapshot create ds/one ds/two --name before
run_check a down
run_check a up --portal 127.0.0.1:0
start load "$BUILD/tests/tools/live_load" "$(portal)" "$(target ds/load)" 60 iqn.2026-11.local.granary:load
for d in one two; do run_check qemu-io -f raw -c 'write -P 99 1M 1M' -c flush "$(lun_url a ds/$d)"; done
sleep 2
kill -KILL "$(cat "$A/run/storaged.pid")" # its journal has all of that

# --- it is recovered, and the load goes on
run_check a up --portal 127.0.0.1:0
sleep 1
kill -TERM "$(cat "$T/load.pid")"
wait_for 30 sh -c "! ps -p $(cat "$T/load.pid") -o stat= | grep -qv Z"
check "the load saw no error: $(cat "$T/load.log")" jq -e '.errors == 0 and .ios > 100' "$T/load.log"
run_check qemu-io -f raw -c 'write -P 98 2M 1M' -c flush "$(lun_url a ds/one)"
kill -KILL "$(cat "$A/run/storaged.pid")"

# --- device 1 is lost for good
rm "$T/two.img"
sha256sum "$T/one.img" "$T/three.img" > "$T/sums"
run_check b datastore join ds "$T/one.img" "$T/three.img" --rescue --yes
run_check b datastore rescued ds --json
cp "$T/out" "$T/left"
check 'no journal is lost, nothing is behind' jq -e '.missing == [1] and .hosts == [] and .behind == 0 and .whole > 0 and (.objects | length) == 6' "$T/left"
check "a disk that lies elsewhere is whole: $(cat "$T/left")" [ "$(state one)" = whole ]
run_check b disk export ds/one "$T/one.raw"
read_back "$T/one.raw" 10 0 1M
read_back "$T/one.raw" 99 1M 1M
read_back "$T/one.raw" 98 2M 1M
read_back "$T/one.raw" 10 3M 5M
run_check b disk export ds/one@before "$T/before.raw"
read_back "$T/before.raw" 10 0 8M
run_check b datastore leave ds
check 'no byte of a device has changed' sha256sum -c --quiet "$T/sums"
