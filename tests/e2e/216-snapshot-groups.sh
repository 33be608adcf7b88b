#!/bin/bash
# One instant of disks that several hosts own and initiators write: of writes that depend on each other over the disks, no snapshot has an
# effect without its cause. Hosts are killed at any moment of it: then all disks have the snapshot, or none;
# and whoever stands still holds up nobody else.
# timeout: 400
# GRANARY_ROUNDS: how often somebody is killed
# shellcheck disable=SC2154 # numbers and have are groups.sh's
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/groups.sh"
requires jq
hosts a b
owner_of() { "$1" datastore info ds --json | jq -r '.hosts[] | select(.self) | .host'; }

run_check a datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
for d in x y z; do run_check a disk create ds/$d --size 1M; done
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
. "$TOP/tests/matrix/pause.sh"
pause_plan "$T/pause"
b_up() { LD_PRELOAD=$PAUSE_LIBRARY GRANARY_PAUSE_FILE=$T/pause run_check b up "$@"; }
b_up --portal 127.0.0.1:0 --mover 127.0.0.1:0
pa=$(a status --json | jq -r .portal) pb=$(b status --json | jq -r .portal)
url() { a lun list "ds/$1" --json | jq -r '"iscsi://" + "'"$pa"'" + "/" + .[0].target + "/0"'; }
ux=$(url x) uy=$(url y) uz=$(url z)
run_check a disk move ds/y "$(owner_of b)"
owner() { a disk info "ds/$1" --json | jq -r 'if ."owner-self" then "a" else "b" end'; }

# --- while all is well; b leads, too
start chain "$BUILD/tests/tools/lun_chain" 120 "$ux" "$uy" "$uz"
sleep 0.5
for i in $(seq 12); do
    run_check a snapshot create ds/x ds/y ds/z --name "s$i" --json
    check 'a row for each disk, of one group' jq -e '[.[].disk] == ["ds/x","ds/y","ds/z"] and ([.[].group] | unique | length == 1)' "$T/out"
done
for i in 1 2 3 4; do
    run_check b snapshot create ds/y ds/x --name "t$i" --json
    check 'in the order named' jq -e '[.[].disk] == ["ds/y","ds/x"]' "$T/out"
done
run_mustfail 1 "exists already" a snapshot create ds/z ds/y --name s3
run_mustfail 1 "ds/y@t3' exists already" a snapshot create ds/z ds/y --name t3
check 'and z has none of it' sh -c "! GRANARY_HOME='$A' granary snapshot list ds/z --json | grep -q t3"
enough chain
check 'writes went on' jq -e '.last > 100' "$T/chain.log"
for i in $(seq 12); do consistent "s$i"; done
echo "# numbers:$numbers"

# --- whoever is killed, whenever
for round in $(seq "${GRANARY_ROUNDS:-5}"); do
    start chain "$BUILD/tests/tools/lun_chain" 120 "$ux" "$uy" "$uz"
    sleep 0.4
    who=$((round % 2 ? 1 : 0))
    start make env GRANARY_HOME="$A" granary snapshot create ds/x ds/y ds/z --name "k$round"
    sleep "0.0$(printf %02d $((RANDOM % 12 * 8)))"
    if [ $who = 1 ]; then pid=$(cat "$B/run/storaged.pid"); else pid=$(cat "$A/run/storaged.pid"); fi
    kill -KILL "$pid"
    wait "$(cat "$T/make.pid")" || true
    if [ $who = 1 ]; then b_up --portal "$pb"; else run_check a up --portal "$pa"; fi
    enough chain # as the writer can go on
    check 'the writer went on' jq -e '.last > 3' "$T/chain.log"
    whole "k$round" "round $round"
    outcome+=" ${have:-none}"
    # y is b's again
    [ "$(owner y)" = b ] || run_check a disk move ds/y "$(owner_of b)"
    [ "$(owner x)" = a ] || run_check b disk move ds/x "$(owner_of a)"
    [ "$(owner z)" = a ] || run_check b disk move ds/z "$(owner_of a)"
done
echo "# outcomes:$outcome"

# --- one that stands still in the middle of it: the others' disks are not held for it; then all have it, or none
outcome='' round=0
for place in 'asked snapshot.hold' 'asked snapshot.take' 'answers snapshot.take' 'asked snapshot.settle' 'answers snapshot.settle'; do
    round=$((round + 1))
    [ "$(owner y)" = b ] || run_check a disk move ds/y "$(owner_of b)"
    start other "$BUILD/tests/tools/lun_chain" 120 "$uy"
    start chain "$BUILD/tests/tools/lun_chain" 120 "$ux" "$uz"
    sleep 0.3
    pid=$(cat "$B/run/storaged.pid")
    on_exit "kill -CONT $pid"
    pause_at "$T/pause" "$place"
    start make env GRANARY_HOME="$A" granary snapshot create ds/x ds/y ds/z --name "h$round"
    pause_landed "$T/pause" "$pid" # zero would be a failure
    sleep 2.6
    kill -CONT "$pid"
    wait "$(cat "$T/make.pid")" || true
    enough chain other
    check 'no write waited for it' jq -e '."longest-ms" < 2000' "$T/chain.log"
    have=
    for d in x y z; do
        wait_for 20 eval "[ \"\$($(owner $d) disk info ds/$d --json | jq .snapshots)\" = \"\$($(owner $d) snapshot list ds/$d --json | jq length)\" ]"
        run_check "$(owner $d)" snapshot list "ds/$d" --json
        jq -e --arg n "h$round" 'any(.name == $n)' "$T/out" > /dev/null && have+=$d
    done
    [ "$have" = xyz ] || [ -z "$have" ] || fail "round $round: only '$have' have the snapshot; $(cat "$T/make.log")"
    outcome+=" $place: ${have:-none} ($(jq '."longest-ms"' "$T/chain.log") ms);"
done
echo "# outcomes:$outcome"
[ "$(owner y)" = b ] || run_check a disk move ds/y "$(owner_of b)"

# --- a host that stands still is named; the writers of other disks do not notice
start chain "$BUILD/tests/tools/lun_chain" 120 "$ux" "$uz"
sleep 0.3
pid=$(cat "$B/run/storaged.pid")
kill -STOP "$pid"
on_exit "kill -CONT $pid"
run_mustfail 4 'does not answer' a snapshot create ds/x ds/y --name still
kill -CONT "$pid"
enough chain
run_check a snapshot list ds/x --json
check 'x has none' jq -e 'any(.name == "still") | not' "$T/out"
wait_for 10 sh -c "GRANARY_HOME='$B' granary snapshot list ds/y --json | jq -e 'any(.name == \"still\") | not'"

run_check b down
run_check a down
run_check a datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
