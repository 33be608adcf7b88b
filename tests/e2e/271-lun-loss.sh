#!/bin/bash
# A LUN of a datastore is gone, for its array died: who has nothing there waits until that is decided and goes on without an error; the array comes
# back, and the LUN is used again.
# timeout: 300
# idle
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a array other
portal() { a status --json | jq -r .portal; }
target() { a lun list "$1" --json | jq -r '.[0].target'; }
url() { a lun list "$1" --json | jq -r '.[0]."iscsi-url"'; }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }
devices() { a datastore devices "$1" --json; }
degraded() { a datastore info "$1" --json | jq -e '.state == "degraded" and ([.members[] | select(.missing and .stale)] | map(.number) == [2])' > "$T/out"; }

for n in 1 2; do run_check array lun add "lun$n" "$T/store$n.img" --size 128M; done
run_check other lun add lun3 "$T/store3.img" --size 256M
run_check array up --portal 127.0.0.1:0
run_check other up --portal 127.0.0.1:0
mapfile -t luns < <({ array lun list --json; other lun list --json; } | jq -r '.[] | [.disk, ."iscsi-url"] | @tsv' | sort | cut -f2)
run_check a datastore create lds "${luns[@]}" --timing fast
for d in here filler there; do run_check a disk create lds/$d --size 1G; done
run_check a up --portal 127.0.0.1:0
run_check qemu-io -f raw -c 'write -P 0 0 4M' -c flush "$(url lds/here)"
run_check qemu-io -f raw -c 'write -P 1 0 60M' -c flush "$(url lds/filler)"
run_check qemu-io -f raw -c 'write -P 2 0 240M' -c flush "$(url lds/there)"
run_check a disk delete lds/filler
devices lds > "$T/out"
check 'the third LUN carries data' jq -e '.[2].used > 40000000' "$T/out"
start onlun "$BUILD/tests/tools/live_load" "$(portal)" "$(target lds/here)" 120 iqn.2026-11.local.granary:onlun
sleep 1
kill -KILL "$(cat "$OTHER/run/storaged.pid")"
wait_for 90 degraded lds
sleep 1
enough onlun
said onlun '.errors == 0 and .ios > 100'
grep 'goes on without it' "$A/log/storaged.log" | tail -n 1
run_check qemu-io -f raw -c 'write -P 3 600M 1M' -c flush "$(url lds/there)"
run_check other up --portal "$(sed 's,.*//,,; s,/.*,,' <<< "${luns[2]}")"
run_check a datastore add-device lds "${luns[2]}"
run_check qemu-io -r -f raw -c 'read -P 2 0 240M' -c 'read -P 3 600M 1M' "$(url lds/there)"
check 'all of it is there' [ "$(grep -c '^read' "$T/out")" = 2 ]
if grep -q 'Pattern verification failed' "$T/out"; then fail 'other bytes'; fi
run_check a datastore check lds --repair
run_check a datastore check lds
