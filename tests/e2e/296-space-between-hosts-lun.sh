#!/bin/bash
# Two hosts share a datastore on a LUN: what one has freed the other can write; a host that died with all the space is recovered for it.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array

run_check array lun add store "$T/store.img" --size 512M
run_check array up --portal 127.0.0.1:0
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
run_check a datastore create ds "$lun" --timing fast
run_check b datastore join ds "$lun"
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check a disk create ds/a --size 1G
all=$(filled a ds/a 1)
run_check a disk delete ds/a
wait_for 30 sh -c "GRANARY_HOME=$B granary datastore info ds --json | jq -e '.free > 420000000'"
run_check b disk create ds/b --size 1G
again=$(filled b ds/b 2)
check "the second host writes as much ($again of $all MiB), but for what the first keeps" [ "$again" -ge $((all - 32)) ]

# it dies with nearly all of it, right behind a delete
run_check b disk delete ds/b
wait_for 30 sh -c "GRANARY_HOME=$B granary datastore info ds --json | jq -e '.free > 420000000'"
run_check a disk create ds/c --size 1G
run_check a datastore info ds # it was seen a moment ago, so it is not gone for who asks no better
kill -KILL "$(cat "$B/run/storaged.pid")"
third=$(filled a ds/c 3)
check "the first host again, beside one that is dead ($third of $all MiB)" [ "$third" -ge $((all - 48)) ]
run_check b down
run_check a datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check a down
