#!/bin/bash
# dm-multipath of a Linux guest over two hosts that share a datastore: the owner's path is active, the other stands by. The owner is
# killed under writes and the other takes over; it comes back and stands by; an orderly end moves the disk back; paths are dropped.
# shellcheck disable=SC2154 # kernel, ram and console are guest.sh's
# timeout: 600
# guest
. "$(dirname "$0")/lib.sh"
requires qemu-system-x86_64 jq apt-get e2fsck debugfs
. "$(dirname "$0")/guest.sh"
hosts a b
pa=$(free_port) pb=$(free_port)
up_a() { run_check a up --portal 127.0.0.1:0 --multipath-portal "127.0.0.1:$pa" --mover 127.0.0.1:0; }
up_b() { run_check b up --portal 127.0.0.1:0 --multipath-portal "127.0.0.1:$pb" --mover 127.0.0.1:0; }
access() { "$1" session list --json | jq -e --arg s "$2" 'length == 1 and .[0].access == $s' > /dev/null; }

run_check a datastore create ds "$T/ds.img" --size 1G
run_check b datastore join ds "$T/ds.img"
run_check a disk create ds/a --size 160M
up_a
up_b
target=$(a lun list ds/a --json | jq -r '.[0].target')
steps=$TOP/tests/e2e/multipath-guest.sh
start_guest "$steps" "T=$target PA=$pa PB=$pb" multipath.conf="$TOP/docs/examples/multipath.conf"

asks kill-a
check "a's session is active" access a active
check "b's session stands by" access b standby
kill -KILL "$(cat "$A/run/storaged.pid")"
answer
asks start-a
check "b's session is active" access b active
up_a
answer
asks stop-b
check "a's session stands by" access a standby
run_check b down
answer
asks start-b
check "a's session is active again" access a active
up_b
answer
asks drop
for host in a b; do
    id=$($host session list --json | jq -r '.[0].id')
    run_check $host session drop "$id"
done
answer
end_guest "$steps"
run_check a disk export ds/a "$T/a.raw"
check "a sound file system" e2fsck -fn "$T/a.raw"
run_check a datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check b down
run_check a down
