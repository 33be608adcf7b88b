#!/bin/bash
# Device 0 is lost for good after its host was killed: what is left is read from the other devices, by the same home, and nothing is written to them.
# timeout: 240
. "$(dirname "$0")/lib.sh"
requires jq qemu-io qemu-img
hosts a
sums() { sha256sum "$T/two.img" "$T/three.img"; }
DISKS="one two three four"
bytes() { case $1 in one) echo 4M ;; two) echo 110M ;; three) echo 100M ;; four) echo 8M ;; esac; }

run_check a datastore create ds "$T/one.img" "$T/two.img" "$T/three.img" --size 128M
for d in $DISKS; do run_check a disk create ds/$d --size 512M; done
run_check a up --portal 127.0.0.1:0
# shellcheck disable=SC2046 # one word each
patterns a $(for d in $DISKS; do echo "ds/$d=$(bytes $d)"; done)
run_check a snapshot create ds/four --name before
run_check qemu-io -f raw -c 'write -P 99 0 1M' -c flush "$(lun_url a ds/four)"
run_check a datastore devices ds --json
check 'disks lie on all devices' jq -e '[.[] | select(.used > 8000000)] | length == 3' "$T/out"
kill -KILL "$(cat "$A/run/storaged.pid")"
mv "$T/one.img" "$T/away.img"
sums > "$T/sums"

run_mustfail 3 'one.img.*join --rescue' a up --portal 127.0.0.1:0
run_check a datastore list --json
check 'it cannot be joined' jq -e '.[0].state == "failed"' "$T/out"
run_check a datastore leave ds
run_mustfail 1 'the device is missing that has its tables' a datastore join ds "$T/two.img" "$T/three.img"
run_mustfail 2 'no other host.*--yes' a datastore join ds "$T/two.img" "$T/three.img" --rescue
run_mustfail 1 'no copy of its tables' a datastore join ds "$T/three.img" --rescue --yes
run_check a datastore join ds "$T/two.img" "$T/three.img" --rescue --yes
check 'what is next is said' grep -q 'granary datastore rescued ds' "$T/out"
run_check a datastore info ds --json
check 'it is said to be read only' jq -e '.state == "rescue" and (.warning | test("lost for good.*rescued ds"))' "$T/out"
run_check a datastore rescued ds
check 'a person is told, too' grep -Eq '^ds/.* (whole|damaged) ' "$T/out"
run_check a datastore rescued ds --json
cp "$T/out" "$T/left"
check 'device 0 is missing, no journal' jq -e '.missing == [0] and .hosts == []' "$T/left"
check 'some of it is whole, some is not' jq -e '.whole > 0 and .damaged > 0 and (.objects | length) == 5' "$T/left"

# --- what is whole reads as it was written; of what is not the rest does
state() { jq -r --arg p "ds/$1" '.objects[] | select(.path == $p) | .state' "$T/left"; }
n=10 seen=0
for d in $DISKS; do
    size=$(bytes $d) first=0
    [ $d != four ] || first=1M
    if [ "$(state $d)" = whole ]; then
        seen=$((seen + 1))
        run_check qemu-io -r -f raw -c "read -P $n $first $((${size%M} - ${first%M}))M" "$(lun_url a ds/$d)"
        check "$d is whole" grep -q '^read [0-9]' "$T/out"
        if grep -q 'Pattern verification failed' "$T/out"; then fail "$d: other bytes"; fi
        run_check qemu-img convert -f raw -O raw "$(lun_url a ds/$d)" "$T/$d.raw"
        check "$d can be copied" [ "$(stat -c %s "$T/$d.raw")" = $((512 << 20)) ]
        rm "$T/$d.raw"
    elif jq -e --arg p "ds/$d" '.objects[] | select(.path == $p) | .refused' "$T/left" > "$T/refused"; then # records of it were left out
        run_mustfail 1 . qemu-io -r -f raw -c 'read 0 4k' "$(lun_url a ds/$d)"
        run_mustfail 5 'could not be followed.*accept-loss' a disk export ds/$d "$T/$d.raw"
    else
        for ((m = ${first%M}; m < ${size%M}; m++)); do printf '%s\0' -c "read -P $n ${m}M 1M"; done | xargs -0 qemu-io -r -f raw "$(lun_url a ds/$d)" > "$T/pieces" 2>&1 || true
        check "$d is not whole" grep -q 'read failed' "$T/pieces"
        if grep -q 'Pattern verification failed' "$T/pieces"; then fail "$d: other bytes"; fi
    fi
    n=$((n + 1))
done
check "more than one disk was whole ($seen)" [ $seen -ge 1 ]
if [ "$(state four)" = whole ]; then
    run_check qemu-io -r -f raw -c 'read -P 99 0 1M' "$(lun_url a ds/four)"
    check 'what was flushed before the end is there' grep -q '^read 1048576/1048576' "$T/out"
fi

# --- nothing is changed
run_mustfail 1 'read.only|Read-only|denied|protected' qemu-io -f raw -c 'write -P 1 0 1M' "$(lun_url a ds/four)"
run_mustfail 1 'can only be read' a disk create ds/new --size 1M
run_mustfail 1 'can only be read' a disk delete ds/one
run_mustfail 1 'can only be read' a snapshot create ds/three --name after
run_mustfail 1 'can only be read' a datastore grow ds 512M
run_mustfail 1 'can only be read|being rescued' a datastore check ds

# --- the daemon starts again, and goes on with it; the device comes back after all
kill -KILL "$(cat "$A/run/storaged.pid")"
run_check a up --portal 127.0.0.1:0
run_check a datastore info ds --json
check 'it is still being rescued' jq -e '.state == "rescue"' "$T/out"
run_check a datastore leave ds
check 'no byte of the devices has changed' sh -c "sha256sum -c --quiet '$T/sums'"
mv "$T/away.img" "$T/one.img"
run_mustfail 1 'nothing to be rescued.*without --rescue' a datastore join ds "$T/one.img" "$T/two.img" "$T/three.img" --rescue --yes
run_check a datastore join ds "$T/one.img" "$T/two.img" "$T/three.img"
run_check qemu-io -r -f raw -c 'read -P 99 0 1M' -c 'read -P 13 1M 7M' "$(lun_url a ds/four)"
check 'all of it is there' [ "$(grep -c '^read' "$T/out")" = 2 ]
run_check a datastore check ds
run_check a down
