#!/bin/bash
# Jobs killed with -9 at one system call after another (the job runs the storage service in its own process, so the datastore is cut
# with it). Afterwards: every point that is visible verifies and gives its bytes back, the next job puts away all that was left.
. "$(dirname "$0")/lib.sh"
requires granary granary-proxy jq strace cmp
poke=$BUILD/tests/tools/disk_poke
[ -x "$poke" ] || skip "needs $poke (make tools)"
strace -o /dev/null -e trace=none true 2> /dev/null || skip "strace may not trace here"
cd "$T"
export GRANARY_ENGINE=sync
repo=$T/repo
calls=${GRANARY_KILL_CALLS:-fdatasync renameat2 pwrite64 unlinkat openat mkdir}
run_check granary datastore create ds1 "$T/vol.img" --size 512M
run_check granary disk create ds1/a --size 64M
run_check granary disk create ds1/b --size 32M
truncate -s 64M a.raw; truncate -s 32M b.raw
both() { "$poke" "ds1/$1" < "$2" && "$poke" --file "$1.raw" < "$2"; }
echo "w 0 2097152 1" > c; both a c; echo "w 1048576 524288 2" > c; both b c
run_check granary backup run --disk ds1/a --disk ds1/b --name pair --repo "$repo"
killed=0 finished=0 seed=100
leftovers() {
    for d in a b; do granary snapshot list "ds1/$d" --json | jq -r '.[].name'; done
    ls home/state/intents; ls repo/tmp; ls repo/leases
    granary disk list --json | jq -r '.[].disk' | grep -v '^ds1/[ab]$' || true
}
kill_at() { # CALL N CMD...
    local call=$1 n=$2 status=0; shift 2
    { strace -f -o /dev/null -e "trace=$call" -e "inject=$call:signal=KILL:when=$n" "$@" > killed.log 2>&1; } 2> /dev/null || status=$?
    [ $status -ge 128 ]
}
for call in $calls; do
    for n in 1 2 3 5 8 13 21 34; do
        seed=$((seed + 1))
        echo "w $((seed % 50 * 65536 + 4096)) 12288 $seed" > c; both a c
        echo "w $((seed % 30 * 65536)) 65536 $seed" > c; both b c
        before=$(granary backup list --repo "$repo" --json | jq length)
        if ! kill_at "$call" "$n" granary-proxy backup --repo "$repo" --disk ds1/a --disk ds1/b --name pair; then
            [ "$n" -gt 1 ] || cat killed.log
            finished=$((finished + 1))
            break
        fi
        killed=$((killed + 1))
        after=$(granary backup list --repo "$repo" --json | jq length)
        check "at most one new point ($call $n)" test "$after" -le $((before + 1))
        run_check granary backup verify --repo "$repo" pair
        if [ "$after" -gt "$before" ]; then # the cut came after the commit: then the point is whole
            rm -f x.raw; run_check granary backup export pair:a x.raw --format raw --repo "$repo"; check "bytes after $call $n" equal x.raw a.raw
        fi
    done
    run_check granary backup run --disk ds1/a --disk ds1/b --name pair --repo "$repo"
    left=$(leftovers)
    [ -z "$left" ] || fail "left after cuts at $call: $left"
    for d in a b; do
        rm -f x.raw; run_check granary backup export "pair:$d" x.raw --format raw --repo "$repo"; check "bytes of $d after cuts at $call" equal x.raw $d.raw
    done
done
# restores: the disk appears whole or not at all
for n in 1 2 3 5 8 13 21 34 55; do
    if ! kill_at fdatasync "$n" granary-proxy restore-disk --repo "$repo" pair:a "ds1/r$n"; then finished=$((finished + 1)); break; fi
    killed=$((killed + 1))
    if granary disk list --json | jq -e ".[]|select(.disk==\"ds1/r$n\")" > /dev/null; then
        rm -f x.raw; run_check granary disk export "ds1/r$n" x.raw --format raw; check "restored whole ($n)" equal x.raw a.raw
        run_check granary disk delete "ds1/r$n"
    fi
done
granary disk list --json | jq -r '.[].disk' | grep '^ds1/r[0-9]*$' | while read -r d; do granary disk delete "$d"; done
run_check granary-proxy recover --repo "$repo"
left=$(leftovers)
[ -z "$left" ] || fail "left after cut restores: $left"
run_check granary backup prune pair --keep-last 1 --repo "$repo"
run_check granary backup gc --repo "$repo"
run_check granary backup verify --repo "$repo"
run_check granary datastore check ds1
echo "jobs killed: $killed, finished: $finished"
[ $killed -ge 30 ] || fail "only $killed kills"
