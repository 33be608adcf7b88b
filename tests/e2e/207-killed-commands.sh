#!/bin/bash
# Commands that are killed, and many at once: nothing is left behind, nothing is lost.
. "$(dirname "$0")/lib.sh"
requires jq
used() { granary datastore info ds --json | jq .used; }
run_check granary datastore create ds "$T/ds.img" --size 1G
head -c 150M /dev/urandom > "$T/big.raw"
run_check granary disk create ds/seed --size 1M # the first folder and disk take their metadata
objects() { granary datastore check ds --json 2> /dev/null | jq .objects; }
before=$(used) objects_before=$(objects)

# A command that ended by its signal may have done its work before: then the disk is whole.
only_whole() { # NAME CONTENT, among the disks in $T/out
    if jq -e --arg d "ds/$1" 'map(.disk) | index($d)' "$T/out" > /dev/null; then
        rm -f "$T/whole"
        run_check granary disk export "ds/$1" "$T/whole" --format raw
        check "disk $1 of a killed import is whole" equal "$2" "$T/whole"
        run_check granary disk delete "ds/$1"
        run_check granary disk list ds --json
    fi
}

# an import without a daemon, killed at different moments
killed=0
for delay in 0.01 0.03 0.06 0.1 0.15 0.2; do
    granary disk import "$T/big.raw" ds/big > "$T/out" 2>&1 & pid=$!
    sleep $delay
    kill -9 $pid 2> /dev/null || true
    if wait $pid 2> /dev/null; then # it was quicker
        run_check granary disk delete ds/big
    else
        killed=$((killed + 1))
    fi
    run_check granary disk list ds --json
    only_whole big "$T/big.raw"
    check 'no half disk is shown' jq -e 'map(.disk) == ["ds/seed"]' "$T/out"
done
[ $killed -gt 0 ] || fail 'no import was killed: the test proves nothing'
run_check granary datastore check ds
settled() { [ $(($(used) - before)) -lt $((200 << 20)) ]; } # regions that a host held count as used as a whole; six imports are 900 MiB
wait_for 20 settled
left=$(($(objects) - objects_before - 1)) # the folder in which disks are filled stays
[ $left -le 0 ] || fail "$left objects are left by killed imports"

# an export: no file, or a whole one
run_check granary disk import "$T/big.raw" ds/big --format raw
mkdir "$T/exports"
for delay in 0.01 0.05 0.1; do
    granary disk export ds/big "$T/exports/x" > "$T/out" 2>&1 & pid=$!
    sleep $delay
    kill -9 $pid 2> /dev/null || true
    wait $pid 2> /dev/null || true
    [ ! -e "$T/exports/x" ] || equal "$T/big.raw" "$T/exports/x" || fail 'a killed export left a file with another content'
    rm -f "$T/exports/x"
    check 'nothing else is there' [ -z "$(ls -A "$T/exports")" ]
done

# the daemon killed while it imports; the command is told
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
granary disk import "$T/big.raw" ds/second > "$T/import.out" 2>&1 & pid=$!
sleep 0.05
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
if wait $pid; then
    run_check granary disk delete ds/second
else
    check 'the command tells what happened' grep -q 'granary: ' "$T/import.out"
fi
run_check granary disk list ds --json
only_whole second "$T/big.raw"
check 'no half disk is shown' jq -e 'map(.disk) == ["ds/big", "ds/seed"]' "$T/out"
run_check granary datastore check ds

# the daemon works on, but not for a command that is gone
cat "$T/big.raw" "$T/big.raw" "$T/big.raw" "$T/big.raw" > "$T/long.raw" # takes much longer than we wait
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
for delay in 0.05 0.08 0.12; do
    granary disk import "$T/long.raw" ds/third > "$T/out" 2>&1 & pid=$!
    sleep $delay
    kill -9 $pid 2> /dev/null || true
    ! wait $pid 2> /dev/null || fail 'the import was quicker than its killer'
    granary disk export ds/big "$T/exports/x" > "$T/out" 2>&1 & pid=$!
    sleep $delay
    kill -INT $pid 2> /dev/null || true
    ! wait $pid 2> /dev/null || rm "$T/exports/x"
done
sleep 2
run_check granary disk list ds --json
only_whole third "$T/long.raw"
check 'what nobody waits for is given up' jq -e 'map(.disk) == ["ds/big", "ds/seed"]' "$T/out"
wait_for 20 sh -c "[ -z \"\$(ls -A '$T/exports')\" ]" # and so are its files
run_check granary down

# many at once, each in its own process, then through the daemon
many() {
    local i pids=()
    for i in $(seq 8); do
        granary disk create "ds/$1$i" --size 1M > "$T/many.$i" 2>&1 & pids+=($!)
    done
    for i in "${pids[@]}"; do wait "$i" || fail "one of eight commands failed: $(cat "$T"/many.*)"; done
}
many offline
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
many online
run_check granary disk list ds --json
check 'all of them are there' jq -e 'length == 18' "$T/out"
run_check granary down
run_check granary datastore check ds
echo "# $killed imports killed"
