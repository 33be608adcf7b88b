#!/bin/bash
# timeout: 600
# Every test of iscsi-test-cu against a thin disk of a datastore, results as in the table; nothing left behind by them.
. "$(dirname "$0")/lib.sh"
requires jq iscsi-test-cu
run_check granary datastore create ds "$T/ds.img" --size 1536M
run_check granary disk create ds/conf --size 1G
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
url=$(granary lun list --json | jq -er '.[0]."iscsi-url"')
B=$BUILD run_check "$TOP/tests/conformance/run" --table "$TOP/tests/conformance/expected-datastore.tsv" "$url"
cat "$T/out"
wait_for 10 sh -c 'granary session list --json | jq -e "length == 0"'
run_check granary down
run_check granary datastore check ds
