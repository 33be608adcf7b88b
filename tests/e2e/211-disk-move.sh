#!/bin/bash
# A disk is given from host to host while initiators write and verify: they see a short silence, no error, and nothing is lost.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
run_check a datastore create ds "$T/ds.img" --size 1G
run_check b datastore join ds "$T/ds.img"
run_check a disk create ds/d --size 64M
run_check a disk create ds/idle --size 16M
run_mustfail 1 "no host 'nobody'" a disk move ds/d nobody
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
pa=$(a status --json | jq -r .portal) pb=$(b status --json | jq -r .portal)
name() { a datastore info ds --json | jq -r --arg p "$1" '.hosts[] | select(.portal == $p) | .host'; }
na=$(name "$pa") nb=$(name "$pb")
owner() { a datastore info ds --json > "$T/info"; b lun list ds/d --json | jq -r '.[0]."iscsi-url"' | sed 's|iscsi://||; s|/.*||'; }
target=$(a lun list ds/d --json | jq -r '.[0].target')
check 'it begins with a' [ "$(owner)" = "$pa" ]
run_mustfail 1 "no host 'nobody'" a disk move ds/d nobody
run_mustfail 2 'HOST' a disk move ds/d

# through either portal, one initiator that verifies what it reads; six moves, asked of whoever
start one "$BUILD/tests/tools/live_load" "$pa" "$target" 60 iqn.2026-11.local.granary:one
start two "$BUILD/tests/tools/live_load" "$pb" "$target" 60 iqn.2026-11.local.granary:two 8192
sleep 1
for _ in 1 2 3; do
    run_check a disk move ds/d "$nb"
    check 'it is with b' [ "$(owner)" = "$pb" ]
    sleep 0.5
    run_check a disk move ds/d "$pa" --json
    check 'and says how long it was nowhere' jq -e '.seconds > 0 and .seconds < 10 and ."until-gone" <= .seconds' "$T/out"
    check 'it is with a' [ "$(owner)" = "$pa" ]
    sleep 0.5
done
run_check b disk move ds/d "$na"
sleep 0.5
enough one two
for l in one two; do
    check "$l: no error, and it went on" jq -e '.errors == 0 and .ios > 100 and .reconnects >= 6' "$T/$l.log"
done
check 'a notice, no warning' sh -c "grep -qa '^<5>.*has moved to' '$A/log/storaged.log' && ! grep -qa '^<4>.*has moved to' '$A/log/storaged.log' '$B/log/storaged.log'"
grep -ha 'has moved to' "$A/log/storaged.log" "$B/log/storaged.log" | sed 's/^/# /'

# QEMU's own initiator sees no error either
qemu-img bench -f raw -t none -w -c 60000 -d 16 -s 4096 "iscsi://$pb/$target/0" > "$T/bench" 2>&1 &
bench=$!
for _ in 1 2 3; do
    sleep 0.3
    run_check a disk move ds/d "$nb"
    sleep 0.3
    run_check b disk move ds/d "$na"
done
check "QEMU went on: $(cat "$T/bench")" wait $bench

# a snapshot goes with it
run_check a snapshot create ds/d --name s
run_check a disk move ds/d "$nb"
run_check a snapshot list ds/d --json
check 'the snapshot went with it' jq -e 'map(.name) == ["s"]' "$T/out"

# to one that is not there
b down > /dev/null
run_mustfail 1 'no host' a disk move ds/idle "$nb"
run_check qemu-io -r -f raw -c 'read 0 64k' "iscsi://$pa/$(a lun list ds/idle --json | jq -r '.[0].target')/0"
run_check a datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
