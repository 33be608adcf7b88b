#!/bin/bash
# Device 0 is lost for good, and an empty one takes its place: what lay elsewhere is read and written as before, over restarts; what lay on it ends with
# errors; the lost one is refused when it comes back. When nothing names what was lost any more the new device is used.
# timeout: 240
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a
DISKS="one two three four"
bytes() { case $1 in one) echo 4M ;; two) echo 90M ;; three) echo 60M ;; four) echo 8M ;; esac; }
mismatch() { if grep -q 'Pattern verification failed' "$1"; then fail "$2: other bytes"; fi; }

run_check a datastore create ds "$T/one.img" "$T/two.img" --size 128M
for d in $DISKS; do run_check a disk create ds/$d --size 512M; done
run_check a up --portal 127.0.0.1:0
# shellcheck disable=SC2046 # one word each
patterns a $(for d in $DISKS; do echo "ds/$d=$(bytes $d)"; done)
run_mustfail 1 'is joined, so no device is missing' a datastore replace-device ds --lost 0 --with "$T/new.img" --size 128M --yes
run_check a down
mv "$T/one.img" "$T/away.img"
run_mustfail 3 'one.img.*replace-device' a up --portal 127.0.0.1:0

# --- what is refused
run_mustfail 2 'lost for good.*--yes' a datastore replace-device ds --lost 0 --with "$T/new.img" --size 128M
run_mustfail 2 'say --lost NUMBER' a datastore replace-device ds --with "$T/new.img" --yes
run_mustfail 1 'too small' a datastore replace-device ds --lost 0 --with "$T/new.img" --size 64M --yes
run_mustfail 1 'device 1 is not missing' a datastore replace-device ds --lost 1 --with "$T/new.img" --size 128M --yes
run_mustfail 1 'no such device or file' a datastore replace-device ds --lost 0 --with "$T/new.img" --yes
check 'nothing was left' [ ! -e "$T/new.img" ]
run_check a datastore create other "$T/other.img" --size 128M
run_mustfail 4 "holds datastore 'other'" a datastore replace-device ds --lost 0 --with "$T/other.img" --yes
run_check a datastore leave other
run_mustfail 1 'already holds a Granary datastore' a datastore replace-device ds --lost 0 --with "$T/other.img" --yes

# --- and what is done, while the daemon runs
run_check a datastore replace-device ds --lost 0 --with "$T/new.img" --size 128M --yes
check 'what is next is said' grep -q 'granary datastore check ds' "$T/out"
look() { # after a restart, too
    local n=10
    whole=() lost=()
    for d in $DISKS; do
        qemu-io -f raw -c "read -P $n 0 $(bytes $d)" "$(lun_url a ds/$d)" > "$T/$d.read" 2>&1 || true
        mismatch "$T/$d.read" "$d"
        if grep -q '^read [0-9]' "$T/$d.read"; then whole+=("$d"); else lost+=("$d"); fi
        n=$((n + 1))
    done
}
look
check "some are whole (${whole[*]}), some are not (${lost[*]})" [ ${#whole[@]} -ge 1 -a ${#lost[@]} -ge 1 ]
run_check a datastore info ds --json
check 'it is joined, and says what is missing' jq -e '.state == "degraded"' "$T/out"
for d in "${whole[@]}"; do
    run_check qemu-io -f raw -c 'write -P 77 128M 1M' -c flush "$(lun_url a ds/$d)"
    run_check a snapshot create ds/$d --name after
done
was="${whole[*]}"
kill -KILL "$(cat "$A/run/storaged.pid")"
run_check a up --portal 127.0.0.1:0
look
check 'the same are whole' [ "${whole[*]}" = "$was" ]
for d in "${whole[@]}"; do
    run_check qemu-io -r -f raw -c 'read -P 77 128M 1M' "$(lun_url a ds/$d)"
    mismatch "$T/out" "$d"
done
run_mustfail 3 . a datastore check ds
check 'nothing is broken' grep -q 'sound as far as' "$T/err"

# --- the lost one is back
run_check a datastore leave ds
run_mustfail 1 'device is missing' a datastore join ds "$T/away.img" "$T/two.img"
run_mustfail 1 'has taken the place' a datastore join ds "$T/away.img" "$T/two.img" --rescue --yes
run_check a datastore join ds "$T/new.img" "$T/two.img"

# --- when nothing names what was lost, the new one is used
for d in "${lost[@]}"; do run_check a disk delete ds/$d; done
run_check a down
run_check a datastore check ds --repair
run_check a datastore check ds --repair
run_check a datastore check ds
run_check a datastore info ds --json
check 'all of it is in use' jq -e '.state == "joined"' "$T/out"
