#!/bin/bash
# A virtual machine on a disk that wants CHAP: without the secret, or with a wrong one, it does not start and says why; with it
# the engine logs in, and the secret shows in no command line, environment, log or record.
# idle
. "$(dirname "$0")/lib.sh"
requires qemu-system-x86_64 jq
[ -x "$BUILD/bin/granary" ] || skip "granary is not built"
secret=correct-horse-battery-42

run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary vm create ds/safe --disk 64M --memory 64M
(umask 077; echo $secret > "$T/secret"; echo wrong-secret-wrong > "$T/wrong")
run_check granary lun chap ds/safe/disk0 --user joe --secret-file "$T/secret"

run_mustfail 1 "conf/chap/joe" granary vm start safe
mkdir -p "$GRANARY_HOME/conf/chap"
install -m 644 "$T/secret" "$GRANARY_HOME/conf/chap/joe"
run_mustfail 1 "conf/chap/joe" granary vm start safe # others can read it
install -m 600 "$T/wrong" "$GRANARY_HOME/conf/chap/joe"
run_mustfail 1 'QEMU did not start' granary vm start safe
check "off" test "$(granary vm info safe --json | jq -r .state)" = off
install -m 600 "$T/secret" "$GRANARY_HOME/conf/chap/joe"
run_check granary vm start safe
pid=$(granary vm info safe --json | jq .pid)
check "logged in" sh -c "granary session list --json | jq -e 'any(.[]; .disk == \"ds/safe/disk0\")'"
check "no secret in arguments and environment" sh -c "! cat /proc/$pid/cmdline /proc/$pid/environ | grep -aq $secret"
check "no secret in logs and records" sh -c "! grep -raq $secret '$GRANARY_HOME/log' '$GRANARY_HOME/run/vm' --exclude=*.sock"
run_check granary vm stop safe --force
run_check granary vm delete safe --yes
check "its disk is gone" test "$(granary disk list --json | jq length)" = 0
run_check granary down
