#!/bin/bash
# A LUN that has device 0 of a datastore is lost for good, and an empty one takes its place, also when the replacing is killed and done again; two hosts use
# the datastore then, one is killed, and the other takes over; the lost LUN is refused when its array is back.
# timeout: 240
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array other
url() { "$1" lun list "lds/$2" --json | jq -r '.[0]."iscsi-url"'; }
lun() { "$1" lun list --json | jq -r --arg d "$2" '.[] | select(.disk == $d) | ."iscsi-url"'; }
mismatch() { if grep -q 'Pattern verification failed' "$1"; then fail "$2: other bytes"; fi; }
DISKS="one two three four"
bytes() { case $1 in one) echo 4M ;; two) echo 90M ;; three) echo 50M ;; four) echo 8M ;; esac; }
printf 'a-secret-of-the-array' > "$T/secret"
chmod 600 "$T/secret"
CHAP=(--user hosts --secret-file "$T/secret")

store() { run_check "$1" lun add "$2" "$T/$2.img" --size "$3" && run_check "$1" lun chap "$2" "${CHAP[@]}"; }
store other one 128M
for n in two new; do store array $n 128M; done
run_check array up --portal 127.0.0.1:0
run_check other up --portal 127.0.0.1:0
one=$(lun other one) two=$(lun array two) new=$(lun array new)
run_check a datastore create lds "$one" "$two" --timing fast "${CHAP[@]}"
run_check b datastore join lds "$one" "$two" "${CHAP[@]}"
for d in $DISKS; do run_check a disk create lds/$d --size 256M; done
run_check a up --portal 127.0.0.1:0
n=10
for d in $DISKS; do
    run_check qemu-io -f raw -c "write -P $n 0 $(bytes $d)" -c flush "$(url a $d)"
    n=$((n + 1))
done
run_mustfail 1 'is joined, so no device is missing' a datastore replace-device lds --lost 0 --with "$new" --yes
run_check a down
run_check other down
run_mustfail 3 "$one.*replace-device" a up --portal 127.0.0.1:0
replace() { a datastore replace-device lds --lost 0 --with "$new" --yes; }

# --- killed at any moment, and done again
joined() { a datastore info lds --json | jq -e '.state == "degraded"' > "$T/joined"; }
for ms in 100 900; do
    if joined; then break; fi
    replace > "$T/late.out" 2>&1 & replacing=$!
    sleep 0.$ms
    kill -KILL "$(cat "$A/run/storaged.pid")"
    wait $replacing || true
    a up --portal 127.0.0.1:0 > "$T/late.out" 2>&1 || true
done
joined || run_check replace
look() { # FROM HOST...: which are whole
    local d n=10
    whole=() lost=()
    for d in $DISKS; do
        qemu-io -f raw -c "read -P $n 0 $(bytes $d)" "$(url "$1" $d)" > "$T/$d.read" 2>&1 || true
        mismatch "$T/$d.read" "$d"
        if grep -q '^read [0-9]' "$T/$d.read"; then whole+=("$d"); else lost+=("$d"); fi
        n=$((n + 1))
    done
}
look a
check "some are whole (${whole[*]}), some are not (${lost[*]})" [ ${#whole[@]} -ge 1 -a ${#lost[@]} -ge 1 ]

# --- the lost LUN is back: whoever knew it is told, and takes the new one
run_check other up --portal "$(sed 's,.*//,,; s,/.*,,' <<< "$one")"
run_check b datastore leave lds
run_mustfail 1 'has taken the place' b datastore join lds "$one" "$two" --rescue --yes "${CHAP[@]}"
run_check b datastore join lds "$new" "$two" "${CHAP[@]}"
run_check b up --portal 127.0.0.1:0
for d in "${whole[@]}"; do run_check qemu-io -f raw -c 'write -P 77 128M 1M' -c flush "$(url a $d)"; done
kill -KILL "$(cat "$A/run/storaged.pid")" # b shuts it out of the new one, too
serves() { qemu-io -r -f raw -c 'read 128M 1M' "$(url b "$1")"; }
for d in "${whole[@]}"; do
    wait_for 30 serves "$d"
    run_check qemu-io -f raw -c 'read -P 77 128M 1M' -c 'write -P 78 129M 1M' -c flush "$(url b $d)"
    mismatch "$T/out" "$d"
done
check 'it was taken over from' grep -q 'recovered slot .*and ejected' "$B/log/storaged.log"
was="${whole[*]}"
look b
check 'the same are whole' [ "${whole[*]}" = "$was" ]
for d in "${lost[@]}"; do run_check b disk delete lds/$d; done
run_check b down
for _ in 1 2; do run_check b datastore check lds --repair; done
run_check b datastore check lds
run_check b datastore info lds --json
check 'all of it is in use' jq -e '.state == "joined" and all(.members[]; .tested | index("fence"))' "$T/out"
