#!/bin/bash
# A host joins a datastore that another has filled: it gets room for its metadata of what the other keeps back, so it makes disks, takes one over,
# unmaps and deletes; the other goes on, too; and what was freed can be written by both.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
run_check a datastore create ds "$T/ds.img" --size 512M
run_check a up --portal 127.0.0.1:0
run_check a disk create ds/big --size 1G
run_check a disk create ds/own --size 64M
run_check qemu-io -f raw -c 'write -q -P 3 0 32M' "$(lun_url a ds/own)"
all=$(filled a ds/big 1 0 8)
echo "# full with $all MiB"

# the trial
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0
long=$(printf '%0120d' 0)
for n in $(seq 36); do run_check b disk create "ds/$n-$long" --size 8M; done # more names than fit the block of the folder
run_check a disk move ds/big "$(a datastore info ds --json | jq -r '.hosts[] | select(.self | not) | .host')"
run_check qemu-io -f raw -c 'write -q -P 7 0 1M' "$(lun_url b ds/big)"
run_check qemu-io -f raw -c 'discard 1M 8M' "$(lun_url b ds/big)"
run_check qemu-io -f raw -c 'write -q -P 4 0 1M' "$(lun_url a ds/own)"
run_check qemu-io -f raw -c 'read -q -P 7 0 1M' "$(lun_url b ds/big)"
run_check b disk delete ds/big
wait_for 30 sh -c "GRANARY_HOME=$B granary datastore info ds --json | jq -e '.free > 300000000'"
run_check qemu-io -f raw -c 'write -q -P 5 32M 32M' "$(lun_url a ds/own)"
run_check b datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check b down
run_check a datastore check ds --json
check 'sound, all regions compared' jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check a down
