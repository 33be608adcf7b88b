#!/bin/bash
# Ten thousand connections that never log in: who is logged in works on without an error, new ones come in, memory stays where it was.
. "$(dirname "$0")/lib.sh"
requires qemu-img jq pgrep
count=10000 rate=2000
run_check granary datastore create ds "$T/ds.img" --size 512M
run_check granary disk create ds/a --size 64M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
url=$(granary lun list --json | jq -r '.[0]."iscsi-url"')
at=${url#iscsi://} at=${at%%/*} target=${url%/0} target=${target##*/}
login=$(pgrep -P "$(cat "$GRANARY_HOME/run/storaged.pid")" -x granary-login)
start load "$BUILD/tests/bench/iscsi_load" "$at" "$target" --rw randwrite --bs 4K --depth 4 --conns 2 --time 60 --size 64M
start flood "$BUILD/tests/tools/half_open" "${at##*:}" $count $rate 10
sleep 2
for _ in 1 2 3; do
    run_check qemu-img info "$url" # a login in the middle of it
    sleep 1
done
over flood
check "as many were made" jq -e ".opened >= $count" "$T/flood.log"
enough load
check "the session saw no error" jq -e '.errors == 0 and .iops > 0' "$T/load.log"
check "the login process is the same" test "$(pgrep -P "$(cat "$GRANARY_HOME/run/storaged.pid")" -x granary-login)" = "$login"
held=$(awk '/^VmHWM/ { print $2 }' "/proc/$login/status")
echo "# the login process held $held KiB at most"
case $BUILD in *asan | *tsan) ;; *) check "64 KiB for each of 512, and the program" test "$held" -lt $((512 * 64 + 8192)) ;; esac
run_check granary down
