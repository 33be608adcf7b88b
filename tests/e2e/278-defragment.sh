#!/bin/bash
# granary disk defragment: an aged disk lies in few runs afterwards, with the same bytes and the same changes; while initiators verify what they read; it
# stops when the disk is given to another host, and the next one, asked of whichever host, goes on; a host that is killed in the middle of it loses nothing.
# timeout: 150
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
j() { run_check a "$@" --json; }
is() { check "$1" jq -e "$1" "$T/out"; }
name() { a datastore info ds --json | jq -r --arg p "$1" '.hosts[] | select(.portal == $p) | .host'; }
same() {
    rm -f "$T/got.raw"
    run_check a disk export ds/d "$T/got.raw"
    equal "$T/want.raw" "$T/got.raw" $((32 << 20))
}
head -c 32M /dev/urandom > "$T/want.raw"
run_check a datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
run_check a disk import "$T/want.raw" ds/d --format raw
run_check a disk create ds/l --size 32M
j disk defragment ds/d; is '.bytes == 33554432 and .moved == 0 and .runs == ."runs-before" and .runs < 40'
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
pa=$(a status --json | jq -r .portal) pb=$(b status --json | jq -r .portal)
nb=$(name "$pb")

age() { # ROUNDS: scattered writes between snapshots, to the disk and to what it is held against
    url=$(a lun list ds/d --json | jq -r '.[0]."iscsi-url"')
    for ((i = 1; i <= $1; i++)); do
        run_check a snapshot create ds/d --name "s$i"
        for _ in {1..150}; do echo "write -P $((RANDOM % 255 + 1)) $((RANDOM % 8192 * 4096)) 4096"; done > "$T/writes"
        qemu-io -f raw "$url" < "$T/writes" > "$T/io" 2>&1 || fail "writes: $(tail -n 3 "$T/io")"
        qemu-io -f raw "$T/want.raw" < "$T/writes" > "$T/io" 2>&1
    done
    for ((i = 1; i <= $1; i++)); do run_check a snapshot delete ds/d@s$i; done
}
run_check a snapshot create ds/d --name begin
run_check a snapshot bookmark ds/d@begin mark
run_check a snapshot delete ds/d@begin
age 5
j snapshot diff ds/d@mark; cp "$T/out" "$T/changes"
j disk defragment ds/d --dry-run
is '."dry-run" and ."runs-before" > 500 and .runs < 40 and .moved > 20000000 and .shared == 0'
before=$(jq '."runs-before"' "$T/out")

# --- it is given to another host meanwhile
start pass a disk defragment ds/d --rate 4M
sleep 2.5 # of eight
run_check a disk move ds/d "$nb"
wait_for 10 grep -q 'changes hands: what was moved stays moved' "$T/pass.log"
j disk info ds/d; is ".owner == \"$nb\""
j disk defragment ds/d # asked here, done there
is ".\"runs-before\" < $before and .moved > 0 and .runs < 40 and .busy == 0 and .damaged == 0"
same
j snapshot diff ds/d@mark
check 'the same has changed' cmp "$T/changes" "$T/out"
run_check a disk defragment ds/d
check 'once is enough' grep -q 'lies in [0-9]* runs, before in [0-9]*: 0 B moved' "$T/out"

# --- what a snapshot has stays
age 2
run_check a snapshot create ds/d --name keep
run_check a disk defragment ds/d
check 'it says why' grep -q ': 0 B moved; 32.* stay where they are, for snapshots, clones or copies have them, too' "$T/out"
run_check a snapshot delete ds/d@keep

# --- while it is used
target=$(a lun list ds/l --json | jq -r '.[0].target')
start load "$BUILD/tests/tools/live_load" "$pa" "$target" 30 iqn.2026-11.local.granary:one
for i in 1 2 3 4; do
    run_check a snapshot create ds/l --name "x$i"
    sleep 0.5
    run_check a snapshot delete "ds/l@x$i"
    run_check a disk defragment ds/l
done
enough load
check 'no error' jq -e '.errors == 0 and .ios > 100' "$T/load.log"

# --- its host is killed
age 3
owner=$(b up --json | jq -r '."storaged-pid"')
start killed a disk defragment ds/d --rate 4M
sleep 2.5 # of eight
kill -9 "$owner"
wait_for 10 sh -c "! kill -0 $owner 2> /dev/null"
j disk defragment ds/d; is '.runs < 40 and .damaged == 0'
same
run_check a datastore check ds
run_mustfail 2 'size of 0' a disk defragment ds/d --rate 0
run_mustfail 1 'does not exist' a disk defragment ds/nothing
run_mustfail 2 'snapshot' a disk defragment ds/d@keep
if grep -sq Sanitizer "$A"/log/*.log "$B"/log/*.log; then fail 'a sanitizer complains'; fi
