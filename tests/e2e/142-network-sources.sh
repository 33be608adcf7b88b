#!/bin/bash
# The backup proxy's network sources against servers that others wrote (nbdkit, tgt) and the mover: every byte, maps, TLS, CHAP,
# a target that restarts in the middle.
# shellcheck source=tests/e2e/lib.sh
. "$(dirname "$0")/lib.sh"
requires nbdkit jq
demo=$BUILD/tests/tools/mover_demo
cat=$BUILD/tests/tools/source_cat
truncate -s 64M "$T/disk"
dd if=/dev/urandom of="$T/disk" bs=64K count=300 seek=100 conv=notrunc status=none

run_check "$demo" --make-pki "$T/pki"
start demo "$demo" --pki "$T/pki" "ds/d@s=file:$T/disk"
wait_for 10 grep -q '^port' "$T/demo.log"
mover="nbds://127.0.0.1:$(sed -n 's/^port //p' "$T/demo.log")/ds/d%40s"
run_check "$cat" copy "$mover" "$T/copy" --certs "$T/pki" --tls --connections 4
check 'every byte from the mover' equal "$T/disk" "$T/copy"
run_check "$cat" map "$mover" --certs "$T/pki"
check 'holes are told' grep -q '^0 6553600 zero$' "$T/out"
check 'data is told' grep -q '^6553600 19660800 data$' "$T/out"
run_check "$cat" map "$mover" --certs "$T/pki" --base 00000000-0000-0000-0000-000000000000:0:4
check 'changes are told' test "$(grep -c changed "$T/out")" = 256
run_mustfail 1 'cannot tell what changed since' "$cat" map "$mover" --certs "$T/pki" --base 00000000-0000-0000-0000-000000000000:0:0
run_mustfail 1 'nbds://127.0.0.1:.*no export named' "$cat" map "${mover}x" --certs "$T/pki"
run_mustfail 1 'begin with nbds' "$cat" map "nbd${mover#nbds}" --tls
mkdir "$T/empty"
run_mustfail 1 'nbds://127.0.0.1' "$cat" map "$mover" --certs "$T/empty"
stop demo

port=$(free_port)
start nbdkit nbdkit -f -p "$port" -i 127.0.0.1 file "$T/disk"
wait_for 10 bash -c "exec 3<> /dev/tcp/127.0.0.1/$port"
run_check "$cat" copy "nbd://127.0.0.1:$port/" "$T/copy" --connections 2
check 'every byte from nbdkit' equal "$T/disk" "$T/copy"
run_check "$cat" map "nbd://127.0.0.1:$port/"
check 'its holes too' grep -q ' zero$' "$T/out"
stop nbdkit
start nbdkit nbdkit -f -p "$port" -i 127.0.0.1 --filter=error file "$T/disk" error=EIO error-pread-rate=1
wait_for 10 bash -c "exec 3<> /dev/tcp/127.0.0.1/$port"
run_mustfail 1 'reading failed' "$cat" copy "nbd://127.0.0.1:$port/" "$T/copy"
stop nbdkit

command -v tgtd > /dev/null && command -v tgtadm > /dev/null || skip 'tgt is not there: the iSCSI half is left out'
requires_root
port=$(free_port)
control=$port # tgtd's control sockets share one directory: a number of our own
on_exit 'rm -f /var/run/tgtd/socket.$control /var/run/tgtd/socket.$control.lock'
start tgt tgtd -f -C "$control" --iscsi portal=127.0.0.1:"$port"
adm() { tgtadm -C "$control" --lld iscsi "$@"; }
set_up_tgt() {
    wait_for 10 adm --op show --mode target
    adm --op new --mode target --tid 1 -T iqn.2026-01.test:one
    adm --op new --mode logicalunit --tid 1 --lun 1 -b "$T/disk"
    adm --op bind --mode target --tid 1 -I ALL
}
set_up_tgt
adm --op new --mode target --tid 2 -T iqn.2026-01.test:chap
adm --op new --mode logicalunit --tid 2 --lun 1 -b "$T/disk"
adm --op bind --mode target --tid 2 -I ALL
adm --mode account --op new --user joe --password secretsecret12
adm --mode account --op bind --tid 2 --user joe
at=iscsi://127.0.0.1:$port/iqn.2026-01.test
run_check "$cat" copy "$at:one/1" "$T/copy"
check 'every byte from tgt' equal "$T/disk" "$T/copy"
run_mustfail 1 'Target not found' "$cat" copy "$at:none/1" "$T/copy"
run_mustfail 1 'LOGICAL_UNIT_NOT_SUPPORTED' "$cat" copy "$at:one/9" "$T/copy"
run_mustfail 1 'Connection refused' "$cat" copy iscsi://127.0.0.1:1/iqn.2026-01.test:one/1 "$T/copy"
printf 'secretsecret12\n' > "$T/secret"; chmod 600 "$T/secret"
run_check "$cat" copy "$at:chap/1" "$T/copy" --user joe --secret "$T/secret"
check 'every byte with CHAP' equal "$T/disk" "$T/copy"
printf 'wrongsecret123\n' > "$T/wrong"; chmod 600 "$T/wrong"
run_mustfail 1 'Authentication failure' "$cat" copy "$at:chap/1" "$T/copy" --user joe --secret "$T/wrong"
run_mustfail 1 'Authentication failure' "$cat" copy "$at:chap/1" "$T/copy"
chmod 644 "$T/secret"
run_mustfail 1 'readable by others' "$cat" copy "$at:chap/1" "$T/copy" --user joe --secret "$T/secret"

# the target dies while it is read, and comes back: the reader waits and goes on
truncate -s 1G "$T/big"
adm --op new --mode logicalunit --tid 1 --lun 2 -b "$T/big"
"$cat" copy "$at:one/2" /dev/null > "$T/reader" 2>&1 & reader=$!
track $reader
sleep 0.3
stop tgt KILL
check 'the reader is not done yet' kill -0 $reader
start tgt tgtd -f -C "$control" --iscsi portal=127.0.0.1:"$port"
set_up_tgt
adm --op new --mode logicalunit --tid 1 --lun 2 -b "$T/big"
wait $reader || { cat "$T/reader"; fail 'the reader did not survive the restart of the target'; }
stop tgt KILL # it takes no TERM while sessions are there
