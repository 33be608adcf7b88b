#!/bin/bash
# A disk is cloned by QEMU's copy offload (EXTENDED COPY): no byte of data moves, both disks are each their own from then on, and space
# comes back with the last owner. Thick disks are copied by value.
. "$(dirname "$0")/lib.sh"
requires jq qemu-img qemu-io
send=$BUILD/tests/tools/scsi_send
[ -x "$send" ] || skip "needs $send (make tools)"
url() { granary lun list --json | jq -er ".[] | select(.disk == \"$1\") | .\"iscsi-url\""; }
up() { run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0; }
offload() { run_check qemu-img convert -n -C -W -f raw -O raw "$(url "$1")" "$(url "$2")"; }
same() { run_check qemu-img compare -f raw -F raw "$(url "$1")" "${3:-}$(url "$2")"; }
used() { granary datastore info ds --json | jq -er .used; }
run_check granary datastore create ds "$T/ds.img" --size 3G
run_check granary disk create ds/a --size 1G
run_check granary disk create ds/b --size 1G
run_check granary disk create ds/thick --size 256M --provision thick
up
head -c 128M /dev/urandom > "$T/noise"
{ head -c 64M "$T/noise"; head -c 200M /dev/zero; tail -c 64M "$T/noise"; } > "$T/content"
run_check qemu-io -f raw -c "write -s $T/content 0 328M" -c "write -s $T/noise 640M 100M" -c flush "$(url ds/a)"
run_check qemu-io -f raw -c 'write -P 9 500M 8M' "$(url ds/b)" # in the way: a hole comes over it

# --- the clone: the metadata reserve and the journal move a little, data does not
before=$(used); written=$(granary lun stat ds/b --json | jq '.[0]."write-bytes"')
offload ds/a ds/b
same ds/a ds/b
check 'no data was written to it' test "$(granary lun stat ds/b --json | jq '.[0]."write-bytes"')" = "$written"
check 'nor does it take space' test $(($(used) - before)) -lt $((16 << 20))
offload ds/a ds/b # again: there is nothing to do
same ds/a ds/b

# --- each is its own: overwrites of either do not show in the other, also in snapshots, and over a crash
run_check granary snapshot create ds/b --name s
run_check qemu-io -f raw -c 'write -P 1 0 4M' -c 'write -P 1 650M 64k' -c flush "$(url ds/a)"
run_check qemu-io -f raw -c 'write -P 2 2M 4M' -c 'discard 660M 1M' -c flush "$(url ds/b)"
run_check qemu-io -f raw -c 'read -P 1 0 4M' -c 'read -P 1 650M 64k' "$(url ds/a)"
run_check qemu-io -f raw -c 'read -P 2 2M 4M' -c 'read -P 0 660M 1M' "$(url ds/b)"
run_check granary disk export ds/b@s "$T/s.raw"
check 'the snapshot has what was copied' equal "$T/content" "$T/s.raw" $((328 << 20))
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
up
run_check qemu-io -f raw -c 'read -P 1 0 4M' "$(url ds/a)"
run_check qemu-io -f raw -c 'read -P 2 2M 4M' "$(url ds/b)"
run_check granary datastore check ds

# --- a disk that shares is not sanitized; when nobody shares any more, it is
got=$("$send" "$(url ds/a)" 48020000000000000000) || fail 'no answer'
[ "$got" = 'sense 5/2c/00' ] || fail "SANITIZE of a disk that shares: $got"
run_check granary disk export ds/a "$T/a.raw"
run_check granary disk delete ds/b
all_back() { [ "$(used)" -lt $((before + (16 << 20))) ]; }
wait_for 30 all_back
run_check granary disk export ds/a "$T/a2.raw"
check 'the other disk lost nothing with it' equal "$T/a.raw" "$T/a2.raw"
got=$("$send" "$(url ds/a)" 48020000000000000000) || fail 'no answer'
[ "$got" = good ] || fail "SANITIZE of a disk that no longer shares: $got"

# --- thick: its space is its own
run_check qemu-io -f raw -c 'write -P 5 0 64M' "$(url ds/a)"
run_check granary disk resize ds/a 256M --shrink
offload ds/a ds/thick
same ds/a ds/thick
run_check granary down
run_check granary datastore check ds
