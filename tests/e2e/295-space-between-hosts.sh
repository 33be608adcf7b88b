#!/bin/bash
# Two hosts share a datastore on a file: what one has freed the other can write, before an initiator is told that no space is left; initiators of both
# are told in time that little is left; a thick disk that does not fit is refused with what is missing; a host that is stopped costs seconds.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
free_mib() { "$1" datastore info ds --json | jq '.free / 1048576 | floor'; }

run_check a datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check a disk create ds/a --size 1G
all=$(filled a ds/a 1 0)
check "the first host fills it ($all MiB)" [ "$all" -gt 400 ]
run_check a disk delete ds/a
wait_for 30 sh -c "GRANARY_HOME=$B granary datastore info ds --json | jq -e '.free > 440000000'"

# the trial: the other one writes what the first has freed
run_check b disk create ds/b --size 1G
again=$(filled b ds/b 2 0)
check "the second host writes as much ($again MiB), but for what the first keeps" [ "$again" -ge $((all - 32)) ]
check 'and was warned' grep -q 'less than 10 %' "$B/log/storaged.log"
b datastore info ds > "$T/info"
check 'what is left is told alike' [ "$(free_mib b)" -lt 40 ]
run_mustfail 1 'bytes are missing' b disk create ds/thick --size 200M --provision thick
run_check qemu-io -f raw -c 'read -q -P 2 0 400M' "$(lun_url b ds/b)"

# the first again, beside its own small disk, which is told
run_check a disk create ds/small --size 64M
run_check b disk delete ds/b
wait_for 30 sh -c "GRANARY_HOME=$A granary datastore info ds --json | jq -e '.free > 440000000'"
start watcher "$BUILD/tests/tools/live_load" "$(a status --json | jq -r .portal)" "$(a lun list ds/small --json | jq -r '.[0].target')" 300
wait_for 20 sh -c "GRANARY_HOME=$A granary session list --json | jq -e 'length == 1'"
run_check a disk create ds/c --size 1G
third=$(filled a ds/c 3 0)
check "the first host again ($third MiB)" [ "$third" -ge $((all - 96)) ]
run_check a disk create ds/d --size 8M # metadata has its reserve
run_check b disk create ds/e --size 8M
enough watcher
check 'the initiator beside it was told, and saw no error' jq -e '.errors == 0 and .ios > 100 and .attentions["3807"] >= 1' "$T/watcher.log"

# a disk that changes hands is emptied by its new owner: its regions are the old one's
run_check a disk delete ds/small
run_check a disk move ds/c "$(a datastore info ds --json | jq -r '.hosts[] | select(.self | not) | .host')"
run_check b disk delete ds/c
wait_for 30 sh -c "GRANARY_HOME=$B granary datastore info ds --json | jq -e '.free > 400000000'" # also what was freed in regions of others
run_check b disk create ds/f --size 1G
fourth=$(filled b ds/f 4 0)
check "what was freed in another's regions is had ($fourth MiB)" [ "$fourth" -ge $((all - 64)) ]

# who does not answer costs seconds, and nothing else waits
run_check a disk create ds/own --size 8M
run_check qemu-io -f raw -c 'write -q -P 9 0 64k' "$(lun_url b ds/f)"
kill -STOP "$(cat "$A/run/storaged.pid")"
on_exit 'kill -CONT "$(cat "$A/run/storaged.pid")"'
begin=$(date +%s)
qemu-io -f raw -c 'write -q -P 5 600M 64M' "$(lun_url b ds/f)" > "$T/io" 2>&1 &
asking=$!
run_check qemu-io -f raw -c 'write -q -P 9 0 64k' "$(lun_url b ds/f)"
check 'what is overwritten in place does not wait' [ $(($(date +%s) - begin)) -lt 8 ]
wait $asking || true
check 'the write that finds no room is answered' grep -q 'No space left' "$T/io"
check 'within a bounded time' [ $(($(date +%s) - begin)) -lt 45 ]
kill -CONT "$(cat "$A/run/storaged.pid")"
run_check b datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check b down
run_check a datastore check ds --json
check 'sound, all regions compared' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check a down
