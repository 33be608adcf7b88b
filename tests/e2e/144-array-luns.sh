#!/bin/bash
# Logical units of another's array (tgt) as devices: verified reads and writes, CHAP from a file, an array that is restarted under load, and
# that a unit which cannot be shared is refused with the reason.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
command -v tgtd > /dev/null && command -v tgtadm > /dev/null || skip 'tgt is not there'
requires_root
work=$BUILD/tests/tools/lun_work
truncate -s 64M "$T/disk"
port=$(free_port)
control=$port # tgtd's control sockets share one directory: a number of our own
on_exit 'rm -f /var/run/tgtd/socket.$control /var/run/tgtd/socket.$control.lock'
adm() { tgtadm -C "$control" --lld iscsi "$@"; }
tgt_up() {
    start tgt tgtd -f -C "$control" --iscsi portal=127.0.0.1:"$port"
    wait_for 10 adm --op show --mode target
    adm --op new --mode target --tid 1 -T iqn.2026-01.test:one
    adm --op new --mode logicalunit --tid 1 --lun 1 -b "$T/disk"
    adm --op bind --mode target --tid 1 -I ALL
}
tgt_up
adm --op new --mode target --tid 2 -T iqn.2026-01.test:chap
adm --op new --mode logicalunit --tid 2 --lun 1 -b "$T/disk"
adm --op bind --mode target --tid 2 -I ALL
adm --mode account --op new --user joe --password secretsecret12
adm --mode account --op bind --tid 2 --user joe
at=iscsi://127.0.0.1:$port/iqn.2026-01.test
run_check "$work" "$at:one/1" write 2
printf 'secretsecret12\n' > "$T/secret"; chmod 600 "$T/secret"
run_check "$work" "$at:chap/1" write 1 joe "$T/secret"
printf 'wrongwrongwrong\n' > "$T/secret"
run_mustfail 1 "127.0.0.1:$port/iqn.2026-01.test:chap" "$work" "$at:chap/1" write 1 joe "$T/secret"
chmod 644 "$T/secret"
run_mustfail 1 'secret' "$work" "$at:chap/1" write 1 joe "$T/secret"

dd if="$T/disk" of="$T/before" bs=4K skip=9000 count=1 status=none
run_mustfail 1 'PERSISTENT RESERVE OUT|cannot be shared' "$work" "$at:one/1" probe 36864000
run_mustfail 1 'cannot be shared by hosts.*PERSISTENT RESERVE OUT' granary datastore create ds "$at:one/1" --force
check 'the unit is as it was' cmp -n 4096 "$T/before" <(dd if="$T/disk" bs=4K skip=9000 count=1 status=none)

"$work" "$at:one/1" write 4 > "$T/work.out" 2>&1 & pid=$!
track $pid
sleep 1 # of its four seconds
stop tgt KILL
check 'it waits for the array' kill -0 $pid
tgt_up
wait $pid || { cat "$T/work.out"; fail 'an array that is restarted under load: something is lost'; }
stop tgt KILL # it takes no TERM while sessions are there
