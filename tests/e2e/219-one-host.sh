#!/bin/bash
# A LUN of an array (tgt) that keeps no lost host out: one host at a time uses it, nobody takes over by himself, and whoever does by hand
# must name the dead host. The same home comes back by itself; a host that lives is never taken over from.
. "$(dirname "$0")/lib.sh"
command -v tgtd > /dev/null && command -v tgtadm > /dev/null || skip 'tgt is not there'
requires_root
requires jq qemu-io
hosts a b
truncate -s 600M "$T/disk"
truncate -s 100M "$T/more"
port=$(free_port)
control=$port # tgtd's control sockets share one directory: a number of our own
on_exit 'rm -f /var/run/tgtd/socket.$control /var/run/tgtd/socket.$control.lock'
adm() { tgtadm -C "$control" --lld iscsi "$@"; }
start tgt tgtd -f -C "$control" --iscsi portal=127.0.0.1:"$port"
wait_for 10 adm --op show --mode target
adm --op new --mode target --tid 1 -T iqn.2026-01.test:one
adm --op new --mode logicalunit --tid 1 --lun 1 -b "$T/disk"
adm --op new --mode logicalunit --tid 1 --lun 2 -b "$T/more"
adm --op bind --mode target --tid 1 -I ALL
lun=iscsi://127.0.0.1:$port/iqn.2026-01.test:one/1
more=${lun%1}2
url() { "$1" lun list --json | jq -r --arg d "$2" '.[] | select(.disk == $d) | ."iscsi-url"'; }

# --- what is refused
run_mustfail 1 'cannot be shared by hosts .with --one-host' a datastore create ds "$lun"
run_mustfail 2 'is for LUNs' a datastore create ds "$T/file" --size 64M --one-host
run_check a datastore create ds "$lun" --one-host --timing fast
run_check a datastore info ds --json
check 'it is for one host' jq -e '."one-host" and (."shared-luns" | not)' "$T/out"
run_check a disk create ds/d --size 64M
run_check a datastore add-device ds "$more"

# --- given back: another host may have it
run_check b datastore join ds "$lun" "$more"
run_check b disk create ds/e --size 16M
run_check a disk list ds

# --- in use: nobody else, whoever asks
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check qemu-io -f raw -c 'write -P 0x41 1M 64k' -c flush -c 'write -P 0x42 2M 64k' "$(url a ds/d)"
ha=$(a datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')
run_mustfail 4 "one host at a time, and host '$ha' is at work" b disk list ds
run_mustfail 2 'add --yes' b datastore recover ds --host "$ha"
run_mustfail 4 'has just answered' b datastore recover ds --host "$ha" --yes
run_check qemu-io -r -f raw -c 'read -P 0x42 2M 64k' "$(url a ds/d)"
run_mustfail 4 'has not given back' env GRANARY_HOME="$T/c" granary datastore create other "$lun" --one-host --force

# --- stopped: silent, but it may go on
pid=$(cat "$A/run/storaged.pid")
kill -STOP "$pid"
run_mustfail 4 "host '$ha' has not given its place back .* nothing can prove .* granary datastore recover ds --host $ha" b disk list ds
kill -CONT "$pid"
run_check qemu-io -f raw -c 'write -P 0x43 3M 64k' "$(url a ds/d)"

# --- killed: the same home comes back by itself, with what was acknowledged
kill -KILL "$pid"
wait_for 20 sh -c "! kill -0 $pid"
run_mustfail 4 'nothing can prove' b disk list ds
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check qemu-io -r -f raw -c 'read -P 0x41 1M 64k' -c 'read -P 0x43 3M 64k' "$(url a ds/d)"

# --- killed for good: by hand, with its exact name
run_check qemu-io -f raw -c 'write -P 0x44 4M 64k' "$(url a ds/d)"
kill -KILL "$(cat "$A/run/storaged.pid")"
run_mustfail 1 "no host '${ha%?}' has a place" b datastore recover ds --host "${ha%?}" --yes
run_mustfail 1 'registered here with its devices' b datastore recover ds "$lun" --host "$ha" --yes
run_check b datastore leave ds
run_mustfail 1 'name its devices' b datastore recover ds --host "$ha" --yes
run_check b datastore recover ds "$lun" "$more" --host "$ha" --yes
run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check qemu-io -r -f raw -c 'read -P 0x41 1M 64k' -c 'read -P 0x44 4M 64k' "$(url b ds/d)"
run_check b datastore check ds
run_mustfail 1 'no other host' b datastore recover ds --host "$ha" --yes
hb=$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')
run_mustfail 4 "host '$hb' is at work" a disk list ds

# --- declared gone while it only slept: it finds out, and gives up
pid=$(cat "$B/run/storaged.pid")
kill -STOP "$pid"
run_check a datastore recover ds --host "$hb" --yes
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
kill -CONT "$pid"
wait_for 10 grep -q 'given up on this host: an administrator has declared it gone' "$B/log/storaged.log"
run_check a disk list ds
run_check b down
check 'the audit log tells who did it' sh -c "GRANARY_HOME='$A' granary audit --json | jq -e --arg h '$hb' 'any(.method == \"datastore.recover\" and .named.host == \$h and .result == \"ok\")'"
run_check a datastore check ds
run_check a down
run_check a datastore destroy ds --yes
run_mustfail 1 'PERSISTENT RESERVE' a datastore join ds "$lun" # nothing is on it that would tell that it is for one host
run_check a datastore create again "$lun" --one-host
run_check a datastore destroy again --yes
stop tgt KILL # it takes no TERM while sessions are there
