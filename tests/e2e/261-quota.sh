#!/bin/bash
# Quotas of folders: an initiator fills its disk up to the limit of its folder and is told so as on a full datastore, in time first; other
# disks go on; creates and moves are refused with the reason; two hosts share one limit.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
run_check granary datastore create ds "$T/ds.img" --size 512M
run_check granary disk create ds/tenant/a --size 128M
run_check granary disk create ds/tenant/inner/b --size 128M
run_check granary disk create ds/other --size 64M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
at=$(granary status --json | jq -r .portal)
written() { # DISK PATTERN OFFSET LENGTH
    qemu-io -f raw -c "write -P $2 $3 $4" "$(granary lun list "$1" --json | jq -r '.[0]."iscsi-url"')" > "$T/io" 2>&1
}
run_mustfail 2 'a size of 0' granary datastore quota ds/tenant 0
run_mustfail 1 'does not exist' granary datastore quota ds/nothing 10M
run_mustfail 1 'is not a folder' granary datastore quota ds/other 10M
run_check granary datastore quota ds/tenant 32M
run_check granary datastore quota ds/tenant/inner 16M
run_check granary datastore quota ds --json
check 'both are listed' jq -e 'map([.folder, .limit]) == [["ds/tenant", 33554432], ["ds/tenant/inner", 16777216]]' "$T/out"

start watcher "$BUILD/tests/tools/live_load" "$at" "$(granary lun list ds/tenant/a --json | jq -r ".[0].target")" 120
wait_for 60 sh -c 'granary session list --json | jq -e "length == 1 and .[0].writes > 1000"' # there is a unit under each of its blocks
written ds/tenant/inner/b 1 0 15M || { cat "$T/io"; fail 'there is room for that'; }
i=0
while written ds/tenant/inner/b 2 $((15 + i))M 1M; do i=$((i + 1)); [ $i -lt 4 ] || fail 'it takes more than its folder may hold'; done
check 'the writer is told that no space is left' grep -q 'No space left' "$T/io"
written ds/tenant/inner/b 3 0 8M || { cat "$T/io"; fail 'what it has is overwritten'; }
written ds/other 4 0 32M || { cat "$T/io"; fail 'other disks do not care'; }
check 'the log warned' grep -q "folder 'ds/tenant/inner': .* of its quota" "$GRANARY_HOME/log/storaged.log"
run_mustfail 1 "folder 'ds/tenant/inner': its quota is 16777216 bytes" granary disk create ds/tenant/inner/c --size 1M
run_mustfail 1 "folder 'ds/tenant': its quota is 33554432 bytes" granary disk create ds/tenant/thick --size 30M --provision thick
run_check granary datastore quota ds/tenant --json
check 'what is used stays below' jq -e 'all(.used <= .limit) and .[1].used >= 15000000' "$T/out"

# more is allowed: all goes on; what is deleted is room
run_check granary datastore quota ds/tenant/inner off
written ds/tenant/inner/b 5 16M 4M || { cat "$T/io"; fail 'there is room again'; }
while written ds/tenant/inner/b 6 $((20 + i))M 1M; do i=$((i + 1)); [ $i -lt 30 ] || fail 'it takes more than its folder may hold'; done
sleep 1
enough watcher
check 'the initiator beside it was told once, and saw no error' jq -e '.errors == 0 and .ios > 100 and .attentions["3807"] == 1' "$T/watcher.log"
run_check granary disk delete ds/tenant/a
run_check granary datastore info ds
wait_for 20 sh -c 'granary datastore quota ds --json | jq -e ".[0].free > 2000000"'
sleep 1.2
written ds/tenant/inner/b 7 60M 1M || { cat "$T/io"; fail 'what was deleted is room'; }

# another host below the same limit
export GRANARY_HOME_A=$GRANARY_HOME
hosts b
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary datastore quota ds/tenant 64M
run_check b disk create ds/tenant/d --size 128M
url=$(b lun list ds/tenant/d --json | jq -r '.[0]."iscsi-url"')
i=0
while qemu-io -f raw -c "write -P 8 ${i}M 1M" "$url" > "$T/io" 2>&1; do i=$((i + 1)); [ $i -lt 70 ] || fail 'two hosts take more than the folder may hold'; done
check 'it is full' grep -q 'No space left' "$T/io"
run_check b datastore quota ds --json
check 'together they stay below, and use it' jq -e '.[0].used <= 67108864 and .[0].used > 62000000' "$T/out"
run_check b down
run_check granary datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
