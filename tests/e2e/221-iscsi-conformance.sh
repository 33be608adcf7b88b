#!/bin/bash
# timeout: 600
# Every test of iscsi-test-cu against two thin disks of a datastore, one that reports 512-byte physical blocks (no test may fail) and
# one that reports 4096 (512e), at the same time; results as in the tables; nothing left behind by them.
. "$(dirname "$0")/lib.sh"
requires jq iscsi-test-cu
run_check granary datastore create ds "$T/ds.img" --size 3G
run_check granary disk create ds/512n --size 1G --physical-block 512
run_check granary disk create ds/512e --size 1G
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
url() { granary lun list --json | jq -er ".[] | select(.disk == \"$1\") | .\"iscsi-url\""; }
conform() { B=$BUILD "$TOP/tests/conformance/run" --table "$TOP/tests/conformance/$2" "$(url "$1")"; }
conform ds/512e expected-512e.tsv > "$T/512e" 2>&1 &
other=$!
conform ds/512n expected-512n.tsv > "$T/512n" 2>&1
first=$?
wait $other
second=$?
cat "$T/512n" "$T/512e"
run_check test $first = 0
run_check test $second = 0
run_check grep -q ' 0 failed,' "$T/512n"
wait_for 10 sh -c 'granary session list --json | jq -e "length == 0"'
run_check granary down
run_check granary datastore check ds
