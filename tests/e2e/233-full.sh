#!/bin/bash
# A datastore fills up under initiators: they are told in time (soft threshold), who needs a new block is told that there is none, and
# overwrites, reads and other disks go on; when room was made, everything does.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
run_check granary datastore create ds "$T/ds.img" --size 512M
run_check granary disk create ds/works --size 16M --provision thin
run_check granary disk create ds/fills --size 1G
run_check granary disk create ds/waits --size 1G
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
at=$(granary status --json | jq -r .portal)
url() { granary lun list "$1" --json | jq -r '.[0]."iscsi-url"'; }
fill() { qemu-io -f raw -c "write -P $1 $2 $3" "$(url ds/fills)" > "$T/io" 2>&1; }
full() { grep -q 'No space left' "$T/io"; }
start works "$BUILD/tests/tools/live_load" "$at" iqn.2026-11.local.granary:ds:works 120
wait_for 60 sh -c 'granary session list --json | jq -e "length == 1 and .[0].writes > 1000"' # there is a unit under each of its blocks
warned() { grep -c 'less than 10 % of it' "$GRANARY_HOME/log/storaged.log" || true; }

fill 1 0 300M || { cat "$T/io"; fail "there is room for that"; }
check "nobody is warned yet" test "$(warned)" = 0
i=0
while fill 2 $((300 + i * 8))M 8M; do i=$((i + 1)); [ $i -lt 60 ] || fail "it takes more than there is"; done
full || { cat "$T/io"; fail "the writer is told that no space is left"; }
check "the log warned once" test "$(warned)" = 1
qemu-io -r -f raw -c 'read -P 1 0 300M' "$(url ds/fills)" > "$T/io" 2>&1 && grep -q 'read 314572800/314572800' "$T/io" || { cat "$T/io"; fail "what was written is there"; }
fill 3 0 8M || { cat "$T/io"; fail "what has its place is overwritten"; }
run_mustfail 1 'does not fit' granary disk create ds/thick --size 64M --provision thick
# who may use what can be said all the same
run_check granary lun acl ds/waits --allow iqn.2026-11.org.example:me
run_check granary lun mask ds/fills
run_check granary lun unmask ds/fills
# room is made: all goes on
run_check granary datastore grow ds 700M
fill 4 900M 8M || { cat "$T/io"; fail "there is room again"; }
sleep 0.5
enough works
check "the other disk's initiator saw no error and was told once" jq -e '.errors == 0 and .reconnects == 0 and .ios > 1000 and .attentions["3807"] == 1' "$T/works.log"
run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
