#!/bin/bash
# Device 1, which has the journals of a datastore that an older release made, is lost for good, and the host was killed: what it had is as it was at its last checkpoint, and is said to be; snapshots
# are exact. Such a disk, which may have another's bytes, is not shown until that is accepted. Read without a daemon, from another home; refused while a host is at work.
# timeout: 180
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
url() { a lun list "$1" --json | jq -r '.[0]."iscsi-url"'; }
state() { jq -r --arg p "$1" '.objects[] | select(.path == $p) | .state' "$T/left"; }

OLD=$BUILD/older/bin/granary
[ -x "$OLD" ] || skip 'the older build is not there: make tools'
run_check env GRANARY_HOME="$A" "$OLD" datastore create ds "$T/one.img" "$T/two.img" --size 128M
run_check a disk create ds/disk --size 32M
run_check a disk create ds/idle --size 32M
run_check a up --portal 127.0.0.1:0
run_check qemu-io -f raw -c 'write -P 1 0 8M' -c flush "$(url ds/disk)"
run_check qemu-io -f raw -c 'write -P 2 0 8M' -c flush "$(url ds/idle)"
run_check a snapshot create ds/disk --name before
run_check a down
run_check a up --portal 127.0.0.1:0
run_mustfail 4 'at work on it' b datastore join ds "$T/one.img" --rescue --yes
run_check qemu-io -f raw -c 'write -P 3 4M 8M' -c flush "$(url ds/disk)"
kill -KILL "$(cat "$A/run/storaged.pid")"
rm "$T/two.img"
sha256sum "$T/one.img" > "$T/sums"

run_check b datastore join ds "$T/one.img" --rescue --yes
run_check b datastore rescued ds --json
cp "$T/out" "$T/left"
check 'the host is named whose journal is lost' jq -e '.missing == [1] and (.hosts | length) == 1 and (.objects | length) == 3 and .behind >= 1 and .whole + .behind == 3 and .damaged == 0' "$T/left"
check "a disk that was in use is behind" [ "$(state ds/disk)" = behind ]
check 'and is not shown' jq -e '[.objects[] | select(.refused) | .path] | index("ds/disk") != null' "$T/left"
check 'its snapshot is whole' [ "$(state ds/disk@before)" = whole ]
run_check b datastore rescued ds
check 'a person is told that, too' grep -q 'journal of host .* is lost' "$T/err"
run_check b disk export ds/disk@before "$T/before.raw"
run_check qemu-io -r -f raw -c 'read -P 1 0 8M' -c 'read -P 0 8M 24M' "$T/before.raw"
check 'the snapshot is what it was' [ "$(grep -c '^read' "$T/out")" = 2 ]
if grep -q 'Pattern verification failed' "$T/out"; then fail 'other bytes in the snapshot'; fi
run_mustfail 5 "journal of host .* is lost.*another disk's bytes.*accept-loss ds/disk" b disk export ds/disk "$T/disk.raw"
check 'nothing of it is left' [ ! -e "$T/disk.raw" ]
run_check b up --portal 127.0.0.1:0
run_mustfail 1 . qemu-io -r -f raw -c 'read 0 4k' "$(b lun list ds/disk --json | jq -r '.[0]."iscsi-url"')"
run_check b datastore accept-loss ds/disk
check 'a person is told' grep -q "may be another disk's" "$T/out"
run_check qemu-io -r -f raw -c 'read -P 1 0 4M' "$(b lun list ds/disk --json | jq -r '.[0]."iscsi-url"')"
run_check b down
run_check b datastore rescued ds --json
check 'that is remembered' jq -e '.objects[] | select(.path == "ds/disk") | .accepted and (.refused | not) and .state == "behind"' "$T/out"
run_check b disk export ds/disk "$T/disk.raw"
run_check qemu-io -r -f raw -c 'read -P 1 0 4M' "$T/disk.raw"
if grep -q 'Pattern verification failed' "$T/out"; then fail 'other bytes in the disk'; fi
run_check b datastore accept-loss ds/idle
run_check b disk export ds/idle "$T/idle.raw"
run_check qemu-io -r -f raw -c 'read -P 2 0 8M' "$T/idle.raw"
if grep -q 'Pattern verification failed' "$T/out"; then fail 'other bytes in the other disk'; fi
run_mustfail 1 'can only be read' b disk resize ds/disk 64M
run_mustfail 1 'can only be read' b snapshot delete ds/disk@before
run_mustfail 1 'can only be read' b disk set ds/disk --iops 100
run_mustfail 1 'can only be read' b snapshot protect ds/disk@before
run_check b datastore leave ds
check 'no byte of the device has changed' sha256sum -c --quiet "$T/sums"
