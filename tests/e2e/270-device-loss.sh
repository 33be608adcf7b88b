#!/bin/bash
# A device dies while disks are in use: disks that have nothing there see no error, those that have keep what was flushed and are told what is lost;
# the host is killed afterwards, the device comes back and is used again.
# timeout: 240
. "$(dirname "$0")/lib.sh"
requires jq qemu-io nbdkit nbdfuse
hosts a
portal() { a status --json | jq -r .portal; }
target() { a lun list "$1" --json | jq -r '.[0].target'; }
url() { a lun list "$1" --json | jq -r '.[0]."iscsi-url"'; }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }
told() { grep -q "$1" "$A/log/storaged.log"; }
devices() { a datastore devices "$1" --json; }
degraded() { a datastore info "$1" --json | jq -e '.state == "degraded" and (.warning | test("missing")) and ([.members[] | select(.missing and .stale)] | map(.number) == [2])' > "$T/out"; }

truncate -s 256M "$T/back.img"
touch "$T/three.img"
unplug() { umount -l "$T/three.img" 2> /dev/null || fusermount3 -uz "$T/three.img" 2> /dev/null || fusermount -uz "$T/three.img" || true; }
on_exit unplug
plug() {
    start fuse nbdfuse "$T/three.img" --command nbdkit -s file "$T/back.img"
    wait_for 10 [ -s "$T/three.img" ]
}
plug
run_check a datastore create ds "$T/one.img" "$T/two.img" --size 128M
run_check a datastore add-device ds "$T/three.img"
for d in here filler there busy; do run_check a disk create ds/$d --size 512M; done
run_check a up --portal 127.0.0.1:0
run_check qemu-io -f raw -c 'write -P 0 0 4M' -c flush "$(url ds/here)"
run_check qemu-io -f raw -c 'write -P 2 0 140M' -c flush "$(url ds/filler)"
run_check qemu-io -f raw -c 'write -P 3 0 150M' -c flush "$(url ds/there)"
run_check qemu-io -f raw -c 'write -P 4 0 4M' -c flush "$(url ds/busy)"
run_check a disk delete ds/filler
devices ds > "$T/out"
check 'the third device carries data' jq -e '.[2].used > 40000000' "$T/out"
start here "$BUILD/tests/tools/live_load" "$(portal)" "$(target ds/here)" 60 iqn.2026-11.local.granary:here
sleep 1
kill -STOP "$(cat "$T/here.pid")" # its flushes are everybody's
start busy stdbuf -oL qemu-io -f raw -t writeback -c 'write -P 5 0 4M' -c 'sleep 2000' -c flush "$(url ds/busy)"
wait_for 10 grep -q wrote "$T/busy.log"
kill -KILL "$(cat "$T/fuse.pid")" "$(pgrep -P "$(cat "$T/fuse.pid")" nbdkit)" # whatever is asked of the file ends with an error now
kill -CONT "$(cat "$T/here.pid")"
wait_for 20 degraded ds
check 'the log names it and says why' told "goes on without it: device 2 ('$T/three.img') is lost: "
check 'so does the status' sh -c "GRANARY_HOME='$A' granary status | grep -q 'device 2 (.*three.img.) is missing.*add-device ds '"
wait_for 30 sh -c "! ps -p $(cat "$T/busy.pid") -o stat= | grep -qv Z"
check 'a flush of what was lost there is no flush' grep -q 'SYNCHRONIZECACHE10 failed.*HARDWARE' "$T/busy.log"
sleep 1
enough here
said here '.errors == 0 and .ios > 100 and .reconnects > 0'
run_check a disk info ds/busy --json
check 'it says that it has lost writes' jq -e '."lost-writes"' "$T/out"
run_check a disk info ds/here --json
check 'others have not' jq -e '."lost-writes" | not' "$T/out"
pieces() { local m; for ((m = 0; m < 150; m += 10)); do printf '%s\0' -c "read -P 3 ${m}M 10M"; done; }
pieces | xargs -0 qemu-io -r -f raw "$(url ds/there)" > "$T/pieces" 2>&1 || true
good=$(grep -c '^read [0-9]' "$T/pieces" || true) bad=$(grep -c '^read failed: ' "$T/pieces" || true)
check "what lies elsewhere can be read, and only that ($good of 15, $bad not)" [ $((good + bad)) = 15 -a "$good" -gt 0 -a "$bad" -gt 0 ]
run_check qemu-io -f raw -c 'write -P 6 140M 10M' -c flush "$(url ds/there)"
run_mustfail 3 'as far as it could be looked at' a datastore check ds

# --- killed, and started again without it
kill -KILL "$(cat "$A/run/storaged.pid")"
run_check a up --portal 127.0.0.1:0
check 'it is known that it is lost' degraded ds
run_check qemu-io -r -f raw -c 'read -P 6 140M 10M' "$(url ds/there)"
check 'what was written meanwhile is there' grep -q 'read 10485760/10485760' "$T/out"
run_mustfail 1 'three.img.*not connected' a datastore add-device ds "$T/three.img"

# --- it is back
unplug
plug
run_check a datastore add-device ds "$T/three.img"
run_check qemu-io -r -f raw -c 'read -P 3 0 140M' -c 'read -P 6 140M 10M' "$(url ds/there)"
check 'all of it is there' [ "$(grep -c '^read' "$T/out")" = 2 ]
if grep -q 'Pattern verification failed' "$T/out"; then fail 'other bytes'; fi
run_mustfail 3 'counted anew|as far as' a datastore check ds
run_check a datastore info ds --json
check 'what is to be done is said' jq -e '.warning | test("device 2 .*three.img.* was lost and is back.*datastore check ds --repair")' "$T/out"
run_check a datastore check ds --repair
run_check a datastore check ds
check 'the check tells who has lost writes, and what to do' grep -q "'ds/busy' has lost writes.*datastore accept-loss ds/busy" "$T/out" "$T/err"
run_check a datastore info ds --json
check 'as if nothing had been' jq -e '.state == "joined" and (.warning == null) and all(.members[]; .stale | not)' "$T/out"
run_mustfail 1 'error|failed' qemu-io -f raw -c 'write -P 7 8M 1M' -c flush "$(url ds/busy)"
run_check a datastore accept-loss ds/busy
run_mustfail 1 'lost no writes' a datastore accept-loss ds/busy
run_check qemu-io -f raw -c 'write -P 7 0 8M' -c flush -c 'read -P 7 0 8M' "$(url ds/busy)"
check 'it is used again' grep -q 'read 8388608/8388608' "$T/out"
run_check qemu-io -f raw -c 'write -P 8 200M 100M' -c flush "$(url ds/there)"
run_check a datastore check ds
run_check a down
