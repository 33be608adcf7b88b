#!/bin/bash
# Clones of one image on two hosts that share a LUN: made by commands at both, written at both, also while the host that has the image stands still for
# far longer than anybody waits for a lock: nobody asks for it, so that host is not shut out, and the image never changes hands.
# timeout: 150
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array
is() { check "$1" jq -e "$1" "$T/out"; }
array_port=$(free_port)
run_check array lun add store "$T/store.img" --size 2G
run_check array up --portal "127.0.0.1:$array_port"
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
head -c 16M /dev/urandom > "$T/image.raw"
run_check a datastore create ds "$lun" --timing fast
run_check b datastore join ds "$lun"
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check a disk import "$T/image.raw" ds/gold
url=$(a lun list ds/gold --json | jq -r '.[0]."iscsi-url"')
run_check qemu-io -f raw -c 'write -P 0 10M 2M' "$url" # written zeros: what a load that verifies expects to find
run_check a snapshot create ds/gold --name one
run_check b datastore info ds --json
is '."shared-luns" and .timing == "fast" and ([.hosts[] | select(.alive)] | length) == 2'
host_b=$(jq -r '.hosts[] | select(.self) | .host' "$T/out")
pa=$(a status --json | jq -r .portal) pb=$(b status --json | jq -r .portal)
owned() { run_check a disk info ds/gold --json; is '."owner-self"'; run_check b disk info ds/gold --json; is '."owner-self" | not'; }
same() { # HOST DISK: the first 8 MiB are the image's
    rm -f "$T/got.raw"
    run_check "$1" disk export "$2" "$T/got.raw"
    equal "$T/image.raw" "$T/got.raw" $((8 << 20))
}

# --- made at both hosts at once, where the count of clones is: at the image's owner
GRANARY_HOME=$A start at_a granary snapshot clone ds/gold@one 'ds/a/c##' --count 20
GRANARY_HOME=$B start at_b granary snapshot clone ds/gold@one 'ds/b/c##' --count 20
over at_a
over at_b
owned
run_check b snapshot list ds/gold --json; is '.[0].clones == 40'
for i in 01 02 03; do run_check a disk move ds/b/c$i "$host_b"; done
run_check b disk info ds/b/c01 --json; is '."owner-self" and .parent == "ds/gold@one"'
run_check b snapshot create ds/b/c03 --name mine # of a clone of one's own
owned

# --- written at both hosts at once, in blocks that they share with the image and each other
target() { b lun list "$1" --json | jq -r '.[0].target'; }
load() { start "$1" "$BUILD/tests/tools/live_load" "$2" "$3" 60 "iqn.2026-11.local.granary:$1" 20480; } # at 10 MiB
load load_a "$pa" "$(target ds/a/c01)"
load load_b "$pb" "$(target ds/b/c01)"
sleep 2
enough load_a load_b
for l in a b; do check "load $l went on, and read what it wrote" jq -e '.errors == 0 and .reconnects == 0 and .ios > 100' "$T/load_$l.log"; done

# --- and while the image's host stands still
load still "$pb" "$(target ds/b/c02)"
sleep 0.5
pid=$(cat "$A/run/storaged.pid")
kill -STOP "$pid"
on_exit "kill -CONT $pid"
sleep 4 # patience is 1.5 s
run_check qemu-io -f raw -c 'write -P 0x5a 3M 64k' -c 'read -P 0x5a 3M 64k' "iscsi://$pb/$(target ds/b/c03)/0"
same b ds/b/c01
enough still
kill -CONT "$pid"
check 'it went on, and read what it wrote' jq -e '.errors == 0 and .reconnects == 0 and .ios > 100' "$T/still.log"
run_check qemu-io -f raw -c 'write -P 0x5b 3M 64k' "iscsi://$pa/$(target ds/a/c02)/0" # it lives on

# --- nobody was asked for the image, and nobody taken over
owned
for h in a b; do
    run_check $h datastore info ds --json
    is '.stats.takeovers == 0 and .waits == []'
done
check 'nobody was shut out' sh -c "! grep -qE 'joined again|shut out|took our place' '$A/log/storaged.log' '$B/log/storaged.log'"
check 'nor did it change hands in order' sh -c "! grep -hE '\"(disk.release|disk.move)\"' '$A/log/audit.log' '$B/log/audit.log' | grep -q 'ds/gold'"
same a ds/gold
same a ds/a/c01
run_check b disk delete ds/b/c02
run_check a disk delete ds/a/c02
wait_for 20 eval 'a snapshot list ds/gold --json | jq -e ".[0].clones == 38" > /dev/null'
owned
run_check a datastore check ds
