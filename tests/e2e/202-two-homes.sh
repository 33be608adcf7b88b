#!/bin/bash
# Two hosts (two homes) share a datastore: what belongs to a disk of the other is asked of it, whoever runs and whoever does not.
. "$(dirname "$0")/lib.sh"
requires jq qemu-img qemu-io
hosts a b
url() { "$1" lun list --json | jq -r --arg d "$2" '.[] | select(.disk == $d) | ."iscsi-url"'; }
portal_of() { "$1" status --json | jq -r .portal; }

run_check a datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
run_check b disk create ds/from-b --size 8M
run_check a disk list ds --json
check 'a sees the disk that b made' jq -e 'length == 1' "$T/out"

# a serves, b is a command line only
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check b snapshot create ds/from-b --name s1
run_check a snapshot list ds/from-b --json
check "b's snapshot was taken by a" jq -e 'map(.name) == ["s1"]' "$T/out"
run_check b disk create ds/second --size 8M
run_check a disk info ds/second
run_check b disk resize ds/from-b 16M
run_check qemu-img info --output=json "$(url a ds/from-b)"
check 'the target shows the new size' jq -e '."virtual-size" == 16777216' "$T/out"
run_mustfail 1 's1' b snapshot create ds/from-b --name s1

# both serve: b's portal redirects to a for what a owns
run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check b disk create ds/of-b --size 8M
run_check qemu-io -f raw -c 'write -P 0x41 0 64k' "$(url a ds/from-b)"
here=$(url a ds/from-b)
there=${here/$(portal_of a)/$(portal_of b)}
check 'the two portals differ' [ "$here" != "$there" ]
run_check qemu-io -r -f raw -c 'read -P 0x41 0 64k' "$there"
check 'read through the redirect' grep -q 'read 65536/65536' "$T/out"
check "b's list names a's portal for a's disk" [ "$(url b ds/from-b)" = "$here" ]
# one instant over disks of two hosts
run_check a snapshot create ds/from-b ds/of-b --name both
run_check b snapshot list ds/of-b --json
check 'the other disk has it, too' jq -e 'map(.name) == ["both"]' "$T/out"
run_check b snapshot diff ds/from-b@s1 --json
check 'the difference that b asked of a' jq -e '. == [{"offset": 0, "length": 65536, "state": "data"}]' "$T/out"
run_mustfail 4 'in use' a datastore destroy ds --yes
run_check b datastore check ds

# the datastore grows under both
run_check a datastore grow ds 768M
for h in a b; do
    $h datastore info ds --json > "$T/out"
    check "$h sees the new space" jq -e '.size == 805306368 and .free > 629145600' "$T/out"
done

# a is killed: b takes its disks over, with what was flushed
pid=$(cat "$A/run/storaged.pid")
kill -9 "$pid"
run_check qemu-io -r -f raw -c 'read -P 0x41 0 64k' "$there"
run_check b snapshot delete ds/from-b@s1
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check qemu-io -r -f raw -c 'read -P 0x41 0 64k' "$here" # a has its port again, and sends on to b
run_check b down
run_check qemu-io -r -f raw -c 'read -P 0x41 0 64k' "$here"
run_check a down
run_check a datastore check ds
run_check b datastore check ds
# a command at work holds a disk: it is waited for, and then named
head -c 250M /dev/urandom > "$T/img"
run_check a disk import "$T/img" ds/img --format raw
held=no
for delay in 0.1 0.15 0.2 0.08 0.25 0.12 0.3 0.5 0.8 1.3 2; do
    rm -f "$T/copy"
    GRANARY_HOME=$B granary disk export ds/img "$T/copy" > "$T/export.out" 2>&1 &
    holder=$!
    track $holder
    sleep $delay
    kill -STOP $holder
    timeout 5 env GRANARY_HOME="$A" granary disk info ds/img --json > "$T/out" 2> "$T/err" || true
    if [ -s "$T/out" ] && jq -e '.owner != "" and (."owner-self" | not)' "$T/out" > /dev/null; then held=yes; break; fi
    kill -CONT $holder
    wait $holder || true
done
[ $held = yes ] || fail 'never stopped while it held the disk'
run_mustfail 4 'owned by host' a snapshot create ds/img --name late
kill -CONT $holder
wait $holder || fail "the export failed: $(cat "$T/export.out")"
equal "$T/img" "$T/copy" || fail 'the exported bytes differ'
run_check a snapshot create ds/img --name late

# who waits for whom, and who owns how many, is shown
run_check b disk create ds/held --size 8M
mkfifo "$T/pokes"
GRANARY_HOME=$B "$BUILD/tests/tools/disk_poke" ds/held < "$T/pokes" > "$T/poke.log" 2>&1 &
holder=$!
track $holder
start feeder sh -c "exec sleep 250 > '$T/pokes'"
wait_for 10 sh -c "GRANARY_HOME='$A' granary disk list ds --json | jq -e '.[] | select(.disk == \"ds/held\") | .owner != \"\"'"
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check a datastore info ds --json
check 'nobody waits' jq -e '.waits == [] and ([.hosts[] | has("disks")] | any | not)' "$T/out"
run_check a datastore info ds --owners --json
n=$(a disk list ds --json | jq length)
check 'b owns one disk, a the others' jq -e "(.hosts[] | select(.self) | .disks == $n - 1) and (.hosts[] | select(.self | not) | .disks == 1)" "$T/out"
hb=$(jq -r '.hosts[] | select(.self | not) | .host' "$T/out")
start waiter granary snapshot create ds/held --name waited
wait_for 8 sh -c "granary datastore info ds --json > '$T/info' && jq -e '.waits | any(.reason | test(\"at work\"))' '$T/info'"
run_check a datastore info ds
stop feeder # it waits for ten seconds, whatever else this machine does
check 'the command that waits' jq -e --arg h "$hb" '.waits == [.waits[0]] and (.waits[0] | .what == "snapshot.create" and .disk == "ds/held" and .host == $h and
    .reason == "a command is at work on the disk there" and .seconds > 0 and .seconds < 10)' "$T/info"
check 'and as a row' grep -q "^snapshot.create *ds/held *$hb .*a command is at work" "$T/out"
wait $holder || fail "$(cat "$T/poke.log")"
wait_for 20 sh -c "granary snapshot list ds/held --json | jq -e 'map(.name) == [\"waited\"]'"
run_check a datastore info ds --json
check 'nobody waits any more' jq -e '.waits == []' "$T/out"
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log "$T"/*/lab/host*/log/*.log; then fail 'a sanitizer complains'; fi
