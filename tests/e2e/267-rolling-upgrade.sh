#!/bin/bash
# Two releases on one datastore: a host of an older build, which does not know quotas, beside one of this build. Both serve, a feature that the older one
# does not know is refused and names it, it is upgraded while initiators work, then the feature can be switched on, and the older build is kept out.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
OLD=$BUILD/older/bin
[ -x "$OLD/granary-storaged" ] || skip 'the older build is not there: make tools'
hosts a b
old() { GRANARY_HOME=$A "$OLD/granary" "$@"; }
exe() { readlink "/proc/$(cat "$1/run/storaged.pid")/exe"; }
at() { "$1" lun list "$2" --json | jq -r '.[0]."iscsi-url"'; }
target() { b lun list "$1" --json | jq -r '.[0].target'; }
load() { start "$1" "$BUILD/tests/tools/live_load" "$(GRANARY_HOME=$2 granary status --json | jq -r .portal)" "$(target "$3")" 60 "iqn.2026-11.local.granary:$1"; }

run_check old datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
for d in of-a of-b; do run_check old disk create ds/t/$d --size 32M; done
run_check old up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
check 'the one is the older build' test "$(exe "$A")" = "$(realpath "$OLD/granary-storaged")"
ha=$(a datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')
hb=$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')

# --- both serve, also what the other has written; a disk moves there and back
run_check b disk move ds/t/of-b "$hb"
load on-a "$A" ds/t/of-a
load on-b "$B" ds/t/of-b
run_check qemu-io -f raw -c 'write -P 0x31 16M 64k' "$(at a ds/t/of-a)"
run_check qemu-io -f raw -c 'write -P 0x32 16M 64k' "$(at b ds/t/of-b)"
run_check a disk move ds/t/of-b "$ha"
run_check qemu-io -r -f raw -c 'read -P 0x32 16M 64k' "$(at a ds/t/of-b)"
run_check b snapshot create ds/t/of-a ds/t/of-b --name both
run_check a disk move ds/t/of-b "$hb"
owners() { b disk list ds --json | jq -e '[.[]."owner-self"] == [false, true]'; }
check 'each has one' owners

# --- what the older one does not know is not switched on, whoever asks
run_mustfail 1 "host '$ha' runs a release of Granary that does not know quotas: upgrade it" b datastore quota ds/t 48M
run_check b datastore check ds

# --- the older one is upgraded: nobody reconnects
before=$(cat "$A/run/storaged.pid")
run_check a upgrade --json
check 'another process, of this build' test "$(cat "$A/run/storaged.pid")" != "$before" -a "$(exe "$A")" = "$(realpath "$BUILD/bin/granary-storaged")"
run_check b datastore quota ds/t 48M
run_check a datastore quota ds --json
check 'it is there on both' jq -e 'map([.folder, .limit]) == [["ds/t", 50331648]]' "$T/out"
run_mustfail 1 "folder 'ds/t': its quota is 50331648 bytes" a disk create ds/t/thick --size 47M --provision thick
sleep 0.3
enough on-a on-b
check 'on-a saw nothing but a short wait' jq -e '.errors == 0 and .reconnects == 0 and .ios > 100 and ."longest-ms" < 3000' "$T/on-a.log"
check 'on-b came after its disk' jq -e '.errors == 0 and .ios > 100' "$T/on-b.log"

# --- the older build does not come back: not in the place of the new one, not by itself
before=$(cat "$A/run/storaged.pid")
run_mustfail 1 "datastore .ds. uses features 0x80 that the other build does not know" old upgrade
check 'the new one goes on' test "$(cat "$A/run/storaged.pid")" = "$before"
run_check qemu-io -r -f raw -c 'read -P 0x31 16M 64k' "$(at a ds/t/of-a)"
run_check a down
run_mustfail 1 "datastore 'ds' uses features 0x80 that this build does not know: use a newer Granary" old disk list ds
run_mustfail 3 "datastore 'ds' uses features 0x80 that this build does not know: use a newer Granary" old up --portal 127.0.0.1:0
run_check old down
run_mustfail 1 "uses features 0x80" env GRANARY_HOME="$T/c" "$OLD/granary" datastore join ds "$T/ds.img"
run_check qemu-io -r -f raw -c 'read -P 0x31 16M 64k' "$(at b ds/t/of-a)"
run_check a disk list ds
run_check b datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check b down
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log; then fail 'a sanitizer complains'; fi
