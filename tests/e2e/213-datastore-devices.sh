#!/bin/bash
# Devices of a datastore in use: added under load, on files and on LUNs, seen by every host; what is refused, and what a killed host leaves.
# timeout: 400
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b c array
portal() { "$1" status --json | jq -r .portal; }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }
target() { a lun list "$1" --json | jq -r '.[0].target'; }
url() { "$1" lun list "$2" --json | jq -r '.[0]."iscsi-url"'; }
load() { start "$1" "$BUILD/tests/tools/live_load" "$2" "$3" "$4" "iqn.2026-11.local.granary:$1" "${5:-0}"; }
devices() { "$1" datastore devices ds --json; }

# --- files: without a daemon
run_check a datastore create ds "$T/one.img" --size 128M
run_check b datastore join ds "$T/one.img"
run_check c datastore join ds "$T/one.img"
run_mustfail 1 'give --size' a datastore add-device ds "$T/two.img"
run_mustfail 1 'is a device of datastore|registered' a datastore add-device ds "$T/one.img"
run_mustfail 1 'too small|at least' a datastore add-device ds "$T/tiny.img" --size 1M
check 'no file is left behind' [ ! -e "$T/tiny.img" ]
mkfs.ext4 -q -F "$T/fs.img" 64M 2> /dev/null || truncate -s 64M "$T/fs.img"
printf 'x' | dd of="$T/fs.img" conv=notrunc bs=1 seek=5000 2> /dev/null
run_mustfail 1 'holds|nothing was changed' a datastore add-device ds "$T/fs.img"

# --- under load, two hosts serve
for d in d e; do run_check a disk create ds/$d --size 1G; done
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check a disk create ds/big --size 1G
load busy "$(portal a)" "$(target ds/d)" 60
sleep 1
run_check a datastore add-device ds "$T/two.img" --size 512M
run_check a datastore add-device ds "$T/three.img" --size 256M
for h in a b; do
    devices $h > "$T/out"
    check "$h has three devices" jq -e 'length == 3 and (map(.number) == [0,1,2]) and (map(.added) == [false,true,true]) and .[1].size == 536870912' "$T/out"
done
run_check qemu-io -f raw -c 'write -P 0x61 0 300M' -c flush "$(url a ds/big)"
devices a > "$T/out"
check 'the new devices carry data' jq -e '.[1].used + .[2].used > 200000000' "$T/out"
enough busy
said busy '.errors == 0 and .ios > 100'
run_mustfail 1 'is a device of' b datastore add-device ds "$T/two.img"
run_mustfail 4 'registered here' a datastore create other "$T/three.img"
run_check a datastore check ds

# --- who had no daemon learns of it by the same command
run_mustfail 1 'add-device' c datastore info ds
run_mustfail 1 'number 2 of 3 is missing' c datastore add-device ds "$T/two.img"
run_check c datastore add-device ds "$T/three.img"
run_check c datastore info ds --json
check 'c has all three' jq -e '.devices | length == 3' "$T/out"

# --- the adding host is killed while it adds: the device is a member or can be added again
for delay in 0.02 0.05 0.1 0.2; do
    a datastore add-device ds "$T/late-$delay.img" --size 64M > "$T/late.out" 2>&1 & adding=$!
    sleep $delay
    kill -KILL "$(cat "$A/run/storaged.pid")"
    wait $adding || true
    wait_for 20 b datastore check ds
    run_check a up --portal 127.0.0.1:0
    size=(); [ -e "$T/late-$delay.img" ] || size=(--size 64M) # it was killed before it did anything
    a datastore add-device ds "$T/late-$delay.img" "${size[@]}" > "$T/late.out" 2>&1 || run_check grep -q 'is a device of' "$T/late.out"
    check "a has late-$delay" sh -c "GRANARY_HOME='$A' granary datastore devices ds --json | jq -e 'map(.device) | index(\"$T/late-$delay.img\")'"
done
run_check a datastore check ds
devices a | jq 'map(.uuid)' > "$T/of-a"
devices b | jq 'map(.uuid)' > "$T/of-b"
check 'both have the same' cmp "$T/of-a" "$T/of-b"
run_check qemu-io -r -f raw -c 'read -P 0x61 0 300M' "$(url b ds/big)"
check 'what was written is there' grep -q 'read 314572800/314572800' "$T/out"

# --- a device leaves: alone, refused with numbers, under load with a snapshot and a clone, and when the host is killed meanwhile
run_mustfail 4 'has joined' a datastore remove-device ds "$T/two.img"
devices a > "$T/out"
check 'it is in use as before' jq -e 'all(.leaving | not)' "$T/out"
run_check b down
run_mustfail 1 'tables' a datastore remove-device ds "$T/one.img"
run_mustfail 1 'is no device of' a datastore remove-device ds "$T/fs.img"
run_check qemu-io -f raw -c 'write -P 0x63 300M 400M' -c flush "$(url a ds/big)"
run_check a snapshot create ds/big --name s
run_check a snapshot clone ds/big@s ds/clone
run_mustfail 1 'MiB lie on .*two.img.*MiB free' a datastore remove-device ds "$T/two.img"
run_check a datastore add-device ds "$T/four.img" --size 1G
load beside "$(portal a)" "$(target ds/d)" 60 65536
sleep 1
run_check a datastore remove-device ds "$T/two.img"
enough beside
said beside '.errors == 0 and .ios > 100'
devices a > "$T/out"
check 'it has left' jq -e --arg d "$T/two.img" 'map(.device) | index($d) == null' "$T/out"
mv "$T/two.img" "$T/elsewhere"
check 'it does not say that it belongs here' sh -c "! head -c 20M '$T/elsewhere' | tail -c +4097 | head -c 4 | grep -q GNVB"
for d in big clone; do
    run_check qemu-io -r -f raw -c 'read -P 0x61 0 300M' "$(url a ds/$d)"
    check "$d is whole" grep -q 'read 314572800/314572800' "$T/out"
done
run_check a datastore check ds
a datastore remove-device ds "$T/four.img" > "$T/late.out" 2>&1 & removing=$!
sleep 0.3
kill -KILL "$(cat "$A/run/storaged.pid")"
wait $removing || true
run_mustfail 1 'no such device.*add-device' b datastore check ds # it does not know of the fourth, and the second is not there any more
run_check b datastore add-device ds "$T/four.img"
run_check b datastore check ds
run_check a up --portal 127.0.0.1:0
run_check a datastore check ds
run_check qemu-io -r -f raw -c 'read -P 0x61 0 300M' "$(url a ds/clone)"
check 'the clone is whole' grep -q 'read 314572800/314572800' "$T/out"
run_check a disk create ds/small --size 1M
run_check a down

# --- a device is lost: never silently; the rest goes on, and nothing is lost when it is back
all=$(a datastore devices ds --json | jq -r '.[].device')
run_check a datastore leave ds
run_check b datastore leave ds
mv "$T/three.img" "$T/lost"
# shellcheck disable=SC2086 # one word each
run_mustfail 1 'three.img: no such' a datastore join ds $all
# shellcheck disable=SC2086
run_check a datastore join ds $all --degraded
run_check a up --portal 127.0.0.1:0
run_check a datastore info ds --json
check 'it says so' jq -e '.state == "degraded" and ([.members[] | select(.missing)] | length == 1)' "$T/out"
run_check qemu-io -f raw -c 'write -P 0x64 0 1M' -c flush "$(url a ds/small)"
run_mustfail 3 'as far as it could be looked at' a datastore check ds
run_mustfail 1 'without its device' a datastore add-device ds "$T/fs2.img" --size 64M
long=$(stat -c %s "$T/four.img")
run_mustfail 1 'without its device.*cannot grow' a datastore grow ds 4G
check 'no device has become longer' [ "$(stat -c %s "$T/four.img")" = "$long" ]
run_check a datastore info ds
run_check a down
run_check a datastore leave ds
mv "$T/lost" "$T/three.img"
# shellcheck disable=SC2086
run_check a datastore join ds $all
run_check a datastore check ds
run_check a up --portal 127.0.0.1:0
run_check qemu-io -r -f raw -c 'read -P 0x64 0 1M' "$(url a ds/small)"
check 'what was written meanwhile is there' grep -q 'read 1048576/1048576' "$T/out"
run_check qemu-io -r -f raw -c 'read -P 0x61 0 300M' "$(url a ds/clone)"
check 'and what was there before' grep -q 'read 314572800/314572800' "$T/out"
run_check a down

# --- LUNs, two hosts, one of which is killed afterwards
lun_port=$(free_port)
run_check array lun add one "$T/store1.img" --size 512M
run_check array lun add two "$T/store2.img" --size 512M
run_check array up --portal "127.0.0.1:$lun_port"
lun1=$(array lun list --json | jq -r '.[] | select(.disk | test("one")) | ."iscsi-url"')
lun2=$(array lun list --json | jq -r '.[] | select(.disk | test("two")) | ."iscsi-url"')
run_check a datastore create lds "$lun1" --timing fast
run_check b datastore join lds "$lun1"
run_check a disk create lds/d --size 1G
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_mustfail 1 'do not go together|cannot be shared' a datastore add-device lds "$T/file.img" --size 64M
load onlun "$(portal b)" "$(target lds/d)" 60
sleep 1
run_check a datastore add-device lds "$lun2"
run_check qemu-io -f raw -c 'write -P 0x62 64M 500M' -c flush "$(url a lds/d)"
b datastore devices lds --json > "$T/out"
check 'b sees the second LUN' jq -e 'length == 2' "$T/out"
a datastore devices lds --json > "$T/out"
run_check a datastore info lds --json
check 'what was seen when they were tried is kept' jq -e '.members | length == 2 and all((.tested | index("drains") and index("outlasts-power")) and ."tested-at" > 1000000000)' "$T/out"
a datastore devices lds --json > "$T/out"
check 'there is data on it' jq -e 'length == 2 and .[1].used > 30000000' "$T/out"
kill -KILL "$(cat "$A/run/storaged.pid")"
enough onlun
said onlun '.errors == 0 and .ios > 100'
run_check qemu-io -r -f raw -c 'read -P 0x62 64M 500M' "$(url b lds/d)"
check 'it was taken over' grep -q 'read 524288000/524288000' "$T/out"
run_check b datastore check lds
