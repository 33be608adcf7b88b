#!/bin/bash
# Every storage command of the contract, twice: in the command's own process, and through the daemon.
. "$(dirname "$0")/lib.sh"
requires jq qemu-img

j() { "$@" --json > "$T/out" 2> "$T/err" || { cat "$T/err"; fail "exit $?: $*"; }; } # output in $T/out
is() { # JQ-EXPRESSION: must be true of $T/out
    jq -e "$1" "$T/out" > /dev/null || { cat "$T/out"; fail "not true of the last result: $1"; }
}
same() { equal "$1" "$2" || fail "$1 and $2 differ"; }
pattern() { dd if=/dev/urandom of="$1" bs=1024 seek="$2" count="$3" conv=notrunc status=none; } # FILE OFFSET-KIB LENGTH-KIB

# An image with holes, whose length is no multiple of a sector
truncate -s 20M "$T/a.raw"
pattern "$T/a.raw" 64 1024
pattern "$T/a.raw" 15000 300
printf 'the last bytes' >> "$T/a.raw"
cp --sparse=always "$T/a.raw" "$T/a.padded"
truncate -s %512 "$T/a.padded"

round() { # DS
    local ds=$1
    j granary disk list "$ds"; is '. == []'
    j granary disk create "$ds/empty" --size 1M; is ".\"physical-block\" == 4096 and .disk == \"$ds/empty\" and .size == 1048576 and .provision == \"thin\""
    j granary disk create --provision thick "$ds/deep/folder/thick" --size 8M; is '.provision == "thick"'
    j granary disk create "$ds/eager" --size 4M --provision eager; is '.provision == "eager" and .used >= 4194304'
    j granary disk create "$ds/512n" --size 1M --physical-block 512; is '."physical-block" == 512'
    run_check granary snapshot create "$ds/512n" --name s
    j granary snapshot clone "$ds/512n@s" "$ds/512n-clone"
    j granary disk info "$ds/512n-clone"; is '."physical-block" == 512'
    run_check granary disk delete "$ds/512n-clone"
    run_check granary disk delete "$ds/512n"
    j granary disk list "$ds"
    is "map(.disk) == [\"$ds/deep/folder/thick\", \"$ds/eager\", \"$ds/empty\"]"
    j granary disk list "$ds/deep"; is 'length == 1'
    run_check granary disk list "$ds"
    check 'a table with headings' grep -q '^DISK ' "$T/out"
    run_check granary disk resize "$ds/empty" 2M
    j granary disk info "$ds/empty"; is '.size == 2097152'
    run_mustfail 2 'add --shrink' granary disk resize "$ds/empty" 1M
    run_check granary disk resize "$ds/empty" 1M --shrink
    j granary disk info "$ds/empty"; is '.size == 1048576'

    # raw in and out; holes stay holes
    j granary disk import "$T/a.raw" "$ds/img" --format raw
    is '.size == 20971520 + 512 and .used < 4194304'
    run_check granary disk export "$ds/img" "$T/$ds.out.raw"
    same "$T/a.padded" "$T/$ds.out.raw"
    check 'the exported file has holes' [ "$(stat -c %b "$T/$ds.out.raw")" -lt 8000 ]
    run_mustfail 1 'exists already' granary disk export "$ds/img" "$T/$ds.out.raw"
    run_mustfail 1 'exists already' granary disk import "$T/a.raw" "$ds/img"
    # vmdk out, as others read it, and in again
    run_check granary disk export "$ds/img" "$T/$ds.vmdk" --format vmdk
    run_check qemu-img convert -O raw "$T/$ds.vmdk" "$T/$ds.qemu.raw"
    equal "$T/a.padded" "$T/$ds.qemu.raw" 20971520 || fail 'qemu-img reads another content out of our VMDK'
    j granary disk import "$T/$ds.vmdk" "$ds/again"
    run_check granary disk export "$ds/again" "$T/$ds.again.raw"
    equal "$T/a.padded" "$T/$ds.again.raw" 20971520 || fail 'a VMDK of ours comes back with another content'
    check 'nothing else was left in the folder' [ -z "$(find "$T" -maxdepth 1 -name '*.part' -o -maxdepth 1 -name '*.tmp')" ]

    # snapshots
    j granary snapshot create "$ds/img" "$ds/again" --name one
    is 'length == 2 and (map(.group) | unique | length) == 1 and all(.name == "one")'
    run_mustfail 1 'one' granary snapshot create "$ds/empty" "$ds/img" --name one
    j granary snapshot list "$ds/empty"; is 'length == 0'
    j granary snapshot diff "$ds/img@one"; is '. == []'
    j granary snapshot list "$ds/img"; is 'length == 1 and .[0].kind == "snapshot" and .[0].current'
    token=$(jq -r '.[0].bookmark' "$T/out")
    j granary snapshot bookmark "$ds/img@one" mark; is '.name == "mark"'
    j granary snapshot diff "$ds/img" --since "$token"; is '. == []'
    j granary snapshot clone "$ds/img@one" "$ds/clones/c1"; is ".size == 20971520 + 512 and .parent == \"$ds/img@one\""
    j granary disk info "$ds/clones/c1"; is ".parent == \"$ds/img@one\""
    run_check granary disk export "$ds/clones/c1" "$T/$ds.clone.raw"
    same "$T/a.padded" "$T/$ds.clone.raw"
    run_check granary disk export "$ds/img@one" "$T/$ds.snap.raw"
    same "$T/a.padded" "$T/$ds.snap.raw"
    run_check granary snapshot revert "$ds/img@one"
    run_check granary snapshot tree "$ds/img"
    check 'the tree shows the snapshot' grep -q one "$T/out"
    run_check granary disk delete "$ds/clones/c1"
    run_check granary snapshot delete "$ds/img@one" --keep-bookmark --settle
    j granary snapshot list "$ds/img"; is 'map(.kind) | unique == ["bookmark"]'
    j granary snapshot diff "$ds/img@mark"; is 'type == "array"'
    run_check granary disk delete "$ds/img"
    run_mustfail 1 'img' granary disk info "$ds/img"
    for d in again eager empty deep/folder/thick; do run_check granary disk delete "$ds/$d"; done

    run_check granary datastore check "$ds"
    check 'check says that it is sound' grep -q 'is sound' "$T/out"
    j granary datastore check "$ds"; is '.sound and .errors == 0 and .broken == []'
    j granary datastore info "$ds"; is ".name == \"$ds\" and (.hosts | length) == 1 and .hosts[0].self"
    size=$(jq .size "$T/out")
    run_check granary datastore grow "$ds" 768M
    j granary datastore info "$ds"; is ".size > $size"
    j granary datastore list; is "map(select(.name == \"$ds\")) | length == 1 and .[0].state == \"joined\""
}

# ---- without a daemon ----
j granary datastore create ds1 "$T/ds1.img" --size 512M; is '.name == "ds1" and .state == "joined"'
round ds1
j granary status; is '.up == false and (.datastores | length) == 1'
run_check granary datastore leave ds1
j granary datastore list; is '. == []'
run_check granary datastore join ds1 "$T/ds1.img"
cd "$T" || exit
run_check granary datastore create relative rel.img --size 256M
j granary datastore info relative; is ".devices == [\"$T/rel.img\"]"
run_mustfail 2 '--yes' granary datastore destroy relative
check 'it is still there' [ -s "$T/rel.img" ]
run_check granary datastore destroy relative --yes
check 'its file is gone' [ ! -e "$T/rel.img" ]

# ---- through the daemon ----
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
j granary datastore create ds2 "$T/ds2.img" --size 512M
round ds2
j granary status; is '.up and .storaged.pid > 0 and (.datastores | map(.name) | sort) == ["ds1", "ds2"]'
run_check granary datastore leave ds2
run_check granary datastore join ds2 "$T/ds2.img"
run_check granary datastore destroy ds2 --yes
check 'its file is gone' [ ! -e "$T/ds2.img" ]
run_check granary down
run_check granary down
check 'nothing runs any more' [ ! -e "$GRANARY_HOME/run/storaged.pid" ]
run_check granary datastore check ds1
