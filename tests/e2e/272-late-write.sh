#!/bin/bash
# A write that a host had under way to a LUN when it lost that arrives when the path is well again: another host, which saw the LUN all the time and
# has overwritten the same place since, must not find it there.
# timeout: 300
# idle
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array
url_of() { "$1" lun list "$2" --json | jq -r '.[0]."iscsi-url"'; }
degraded() { a datastore info lds --json | jq -e '.state == "degraded" and ([.members[] | select(.missing and .stale)] | map(.number) == [2])' > "$T/out"; }

for n in 1 2 3; do run_check array lun add "lun$n" "$T/store$n.img" --size 128M; done
run_check array up --portal 127.0.0.1:0
mapfile -t luns < <(array lun list --json | jq -r '.[] | [.disk, ."iscsi-url"] | @tsv' | sort | cut -f2)
port=${luns[2]%%/iqn*}
port=${port##*:}
path=$(free_port)
start path "$BUILD/tests/tools/iscsi_proxy" "127.0.0.1:$path" "127.0.0.1:$port"
through=${luns[2]/:$port/:$path}
check 'the third LUN is reached through a path of its own' [ "$through" != "${luns[2]}" ]
run_check a datastore create lds "${luns[0]}" "${luns[1]}" "$through" --timing fast
for d in filler there; do run_check a disk create lds/$d --size 512M; done
run_check a up --portal 127.0.0.1:0
run_check qemu-io -f raw -c 'write -P 1 0 60M' -c flush "$(url_of a lds/filler)"
run_check qemu-io -f raw -c 'write -P 2 0 180M' -c flush "$(url_of a lds/there)"
a datastore devices lds --json > "$T/out"
check 'the third LUN carries data' jq -e '.[2].used > 40000000' "$T/out"
run_check b datastore join lds "${luns[@]}"
run_check b up --portal 127.0.0.1:0

# --- the path is cut, with writes under way
kill -STOP "$(cat "$T/path.pid")"
places=()
for ((m = 0; m < 180; m += 4)); do places+=(-c "aio_write -P 9 ${m}M 16k"); done
start late qemu-io -f raw -t writeback "${places[@]}" -c 'sleep 60000' "$(url_of a lds/there)"
wait_for 60 degraded
kill -KILL "$(cat "$T/late.pid")"
run_check a down

# --- the other host goes on, where the LUN is
run_check qemu-io -f raw -c 'write -P 5 0 180M' -c flush "$(url_of b lds/there)"
check 'it has shut out who lost the LUN' grep -q 'was lost to a host, and what that may have had under way to it was shut out' "$B/log/storaged.log"
kill -CONT "$(cat "$T/path.pid")"
sleep 3
run_check qemu-io -r -f raw -c 'read -P 5 0 180M' "$(url_of b lds/there)"
if grep -q 'Pattern verification failed' "$T/out"; then fail 'a late write has landed'; fi
run_check b datastore check lds --repair
run_check b datastore check lds
