#!/bin/bash
# What an initiator unmaps, 4 KiB at a time, and what is deleted, makes the datastore's file smaller; over a LUN the array's file; not
# where its space was taken at once.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
kib() { echo $(($(stat -c %b "$1") / 2)); } # FILE: what it takes
io() { # DISK QEMU-IO-COMMAND...
    local disk=$1 c=(); shift
    for x; do c+=(-c "$x"); done
    run_check qemu-io -f raw -d unmap "${c[@]}" "$(granary lun list "$disk" --json | jq -r '.[0]."iscsi-url"')"
}
smaller() { # FILE KIB-BEFORE AT-LEAST
    local now
    now=$(kib "$1")
    [ $(($2 - now)) -ge "$3" ]
}
run_check granary datastore create ds "$T/ds.img" --size 512M
run_check granary datastore create full "$T/full.img" --size 128M --preallocate
run_check granary disk create ds/a --size 128M
run_check granary disk create ds/b --size 128M
run_check granary disk create full/c --size 64M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
io ds/a 'write -P 1 0 64M' flush
io ds/b 'write -P 2 0 64M' flush
io full/c 'write -P 3 0 16M' flush
was=$(kib "$T/ds.img")
io ds/a 'discard 0 32M' flush
wait_for 10 smaller "$T/ds.img" "$was" 31000
was=$(kib "$T/ds.img")
many=()
for ((i = 0; i < 512; i++)); do many+=("discard $((33554432 + i * 8192)) 4096"); done
io ds/a "${many[@]}" flush # every other 4 KiB of 4 MiB
wait_for 10 smaller "$T/ds.img" "$was" 1500
io ds/a 'read -P 0 0 32M' "read -P 0 32M 4k" "read -P 1 $((33554432 + 4096)) 4k" 'read -P 1 36M 28M'
was=$(kib "$T/ds.img")
run_check granary disk delete ds/b
wait_for 20 smaller "$T/ds.img" "$was" 64000
was=$(kib "$T/full.img")
io full/c 'discard 0 16M' flush
sleep 0.5
check 'what was taken at once stays taken' [ "$(kib "$T/full.img")" -ge "$was" ]
run_check granary datastore check ds
run_check granary down

# the device is a LUN of an array, which has its file
hosts array
run_check array lun add store "$T/array.img" --size 512M
run_check array up --portal 127.0.0.1:0
run_check granary datastore create lun "$(array lun list --json | jq -r '.[0]."iscsi-url"')"
run_check granary disk create lun/d --size 128M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
io lun/d 'write -P 4 0 32M' flush
was=$(kib "$T/array.img")
io lun/d 'discard 0 16M' flush
wait_for 10 smaller "$T/array.img" "$was" 15000
io lun/d 'read -P 0 0 16M' 'read -P 4 16M 16M'
run_check granary down
