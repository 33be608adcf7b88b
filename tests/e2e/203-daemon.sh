#!/bin/bash
# The daemon: up twice, what it serves as stock clients see it, joining under way, kill -9 and restart, down.
. "$(dirname "$0")/lib.sh"
requires jq qemu-img qemu-io iscsi-ls iscsi-inq nbdinfo
get() { jq -er "$1" "$T/out"; }
lun() { granary lun list --json | jq -er --arg d "$1" --arg k "$2" '.[] | select(.disk == $d) | .[$k]'; }

run_check granary datastore create ds "$T/ds.img" --size 512M
run_check granary disk create ds/vm/root --size 32M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --json
portal=$(get .portal) pid=$(get '."storaged-pid"')
run_check granary up --json
check 'up again is harmless' [ "$(get '."storaged-pid"')" = "$pid" ]
run_mustfail 1 'granary portal add' granary up --portal 127.0.0.1:1
kill -0 "$pid" || fail 'a refused up ended the daemon'
run_check granary up --portal 127.0.0.1:0

# stock clients
url=$(lun ds/vm/root iscsi-url)
run_check iscsi-ls "iscsi://$portal"
check 'iscsi-ls shows the target' grep -q 'granary:ds:vm:root' "$T/out"
run_check iscsi-inq "$url"
run_check qemu-img info --output=json "$url"
check 'qemu-img sees the size' jq -e '."virtual-size" == 33554432' "$T/out"
run_check qemu-io -f raw -c 'write -P 0x5a 1M 2M' -c 'flush' "$url"
run_check nbdinfo --json "$(lun ds/vm/root nbd-url)"
check 'nbdinfo sees the size' jq -e '.exports[0]."export-size" == 33554432' "$T/out"

# made and deleted while it runs
run_check granary disk create ds/late --size 4M
run_check iscsi-inq "$(lun ds/late iscsi-url)"
run_check granary datastore create ds2 "$T/ds2.img" --size 256M
run_check granary disk create ds2/x --size 4M
run_check iscsi-inq "$(lun ds2/x iscsi-url)"
late=$(lun ds/late iscsi-url)
run_check granary disk delete ds/late
if iscsi-inq "$late" > "$T/out" 2>&1; then fail 'a deleted disk still answers'; fi

# in use: not deleted, not shrunk, not reverted, its datastore not left
run_check granary snapshot create ds/vm/root --name before
start user qemu-io -f raw -c 'write -P 0x11 16M 64k' -c 'sleep 20000' "$url"
wait_for 10 sh -c 'granary session list --json | jq -e "length == 1"'
run_mustfail 4 'in use' granary disk delete ds/vm/root
run_mustfail 4 'in use' granary disk resize ds/vm/root 16M --shrink
run_mustfail 4 'in use' granary snapshot revert ds/vm/root@before
run_mustfail 4 'in use|session' granary datastore leave ds
run_mustfail 4 'in use|session' granary datastore destroy ds --yes
run_check granary disk export ds/vm/root "$T/live.raw"
run_check granary snapshot list ds/vm/root --json
check 'the export left no snapshot' jq -e 'map(.name) == ["before"]' "$T/out"
stop user
check 'the exported bytes' cmp <(dd if="$T/live.raw" bs=1M skip=1 count=2 status=none) <(head -c 2M /dev/zero | tr '\0' '\132')
run_check granary snapshot diff ds/vm/root@before --json
check 'the difference' jq -e '. == [{"offset": 16777216, "length": 65536, "state": "data"}]' "$T/out"
ask() { "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" snapshot.diff "$1"; } # the forms it may have between processes
run_check ask '{"disk": "ds/vm/root", "base": "before", "form": "text"}'
check 'the difference as text' test "$(head -n 1 "$T/out")" = '"16777216+65536 "'
run_check ask '{"disk": "ds/vm/root", "base": "before"}'
check 'and as objects' test "$(head -n 1 "$T/out")" = '[{"offset":16777216,"length":65536,"state":"data"}]'
run_mustfail 1 "'verse' is not text" ask '{"disk": "ds/vm/root", "base": "before", "form": "verse"}'
wait_for 10 sh -c 'granary session list --json | jq -e "length == 0"'
run_check granary snapshot revert ds/vm/root@before
run_check qemu-io -r -f raw -c 'read -P 0 16M 64k' -c 'read -P 0x5a 1M 2M' "$url"
check 'reverted' [ "$(grep -c 'read [0-9]*/' "$T/out")" = 2 ]
if grep -q 'Pattern verification failed' "$T/out"; then fail 'the reverted disk has another content'; fi

# kill -9: what was flushed is there, the port is the same
run_check qemu-io -f raw -c 'write -P 0x77 4M 1M' -c 'flush' "$url"
kill -9 "$pid"
run_check granary snapshot list ds/vm/root # a command in its own process recovers
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --json
check 'the port is the same' [ "$(get .portal)" = "$portal" ]
pid=$(get '."storaged-pid"')
run_check qemu-io -r -f raw -c 'read -P 0x77 4M 1M' -c 'read -P 0x5a 1M 2M' "$url"
if grep -q 'Pattern verification failed' "$T/out"; then fail 'flushed data is lost'; fi
run_check granary datastore check ds

# starting at the same time: one daemon
run_check granary down
if kill -0 "$pid" 2> /dev/null && [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ]; then fail 'down returned before the daemon was gone'; fi
granary up --portal 127.0.0.1:0 > "$T/up1" 2>&1 & one=$!
granary up --portal 127.0.0.1:0 > "$T/up2" 2>&1 & two=$!
wait $one || fail "the first of two: $(cat "$T/up1")"
wait $two || fail "the second of two: $(cat "$T/up2")"
check 'one socket, one daemon' granary status
run_check granary down
# a second portal; a datastore that is not there any more
run_check granary up --portal 127.0.0.1:0 --multipath-portal 127.0.0.1:0 --json
second=$(get '."multipath-portal"')
check 'two portals' [ "$(get .portal)" != "$second" ]
run_check iscsi-ls "iscsi://$second"
run_check granary down
mv "$T/ds2.img" "$T/away.img"
run_mustfail 3 'ds2' granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check iscsi-inq "$(lun ds/vm/root iscsi-url)"
run_check granary datastore list --json
check 'it is shown as failed' jq -e 'map(select(.name == "ds2"))[0].state == "failed"' "$T/out"
run_check granary datastore leave ds2
run_check granary up --portal 127.0.0.1:0
run_check granary down
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log "$T"/*/lab/host*/log/*.log; then fail 'a sanitizer complains'; fi
