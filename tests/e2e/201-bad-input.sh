#!/bin/bash
# Bad input: refused with its exit status and one sentence that names the thing, and nothing is changed; without and with daemon.
. "$(dirname "$0")/lib.sh"
requires jq sfdisk mke2fs

lines_of() { grep -vc -e '^usage' -e '^ ' -e '^$' -e '^try ' "$1" || true; }
state() { # what could have changed
    granary disk list --json | jq -c 'map(del(.used, .shared, .unique, .held, .mtime))'
    granary datastore list --json | jq -c 'map({name, devices, state})'
    granary snapshot list ds/a --json | jq -c 'map(.name)'
    (cd "$T" && find . -maxdepth 1 -type f ! -name state ! -name after ! -name out ! -name err ! -name check ! -name '*.log' | sort)
}
refuse() { # STATUS TEXT COMMAND...
    run_mustfail "$@"
    [ "$(lines_of "$T/err")" -eq 1 ] || { cat "$T/err"; fail "not one sentence: ${*:3}"; }
    [ ! -s "$T/out" ] || { cat "$T/out"; fail "says something on standard output: ${*:3}"; }
    count=$((count + 1))
}
count=0

run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary disk create ds/a --size 4M
run_check granary disk create ds/b --size 4M
run_check granary snapshot create ds/a --name s1
truncate -s 300M "$T/gpt.img"
printf 'label: gpt\n,\n' | sfdisk -q "$T/gpt.img"
truncate -s 300M "$T/ext4.img"
mke2fs -q -t ext4 "$T/ext4.img"
head -c 4M /dev/zero | tr '\0' 'x' > "$T/junk.img"
head -c 1000 /dev/zero | tr '\0' 'x' > "$T/tiny.img" # no room for a superblock
mkfifo "$T/fifo"
: > "$T/empty"
head -c 1000 /dev/urandom > "$T/some.raw"
printf 'KDMV\001\000\000\000 cut off' > "$T/cut.vmdk"
long=$(printf 'x%.0s' $(seq 300))

table() {
    # names
    for name in 'ds/../x' 'ds/x/..' ds/. 'ds/a//b' 'ds/a/' ds "ds/$long" $'ds/\xff\xfe' $'ds/new\nline' ds/a:b 'ds/a@s1' /a 'ds/granary.tmp/x'; do
        refuse 2 '.' granary disk create "$name" --size 1M
    done
    refuse 2 '300 bytes' granary disk create "ds/$long" --size 1M
    refuse 2 "'\\.\\.'" granary disk create ds/../x --size 1M
    refuse 2 'UTF-8' granary disk create $'ds/\xff' --size 1M
    refuse 1 "'nods'" granary disk create nods/x --size 1M
    refuse 1 'ds/a' granary disk create ds/a --size 1M
    refuse 1 '.' granary disk create ds/a/below --size 1M
    # sizes
    for size in 0 9223372036854775808 18446744073709551616 -1 1X 1.5G '' 8192P; do refuse 2 '.' granary disk create ds/x --size "$size"; done
    refuse 2 '2\^63' granary disk create ds/x --size 9223372036854775808
    refuse 2 'multiple of 512' granary disk create ds/x --size 1000
    refuse 2 'size' granary disk create ds/x
    refuse 2 "'fat'" granary disk create ds/x --size 1M --provision fat
    refuse 2 '--frobnicate' granary disk create ds/x --size 1M --frobnicate
    refuse 2 'PiB' granary disk resize ds/a 2P
    refuse 1 'nodisk' granary disk resize ds/nodisk 8M
    refuse 1 'nodisk' granary disk delete ds/nodisk
    refuse 1 'nodisk' granary disk info ds/nodisk
    # datastores
    refuse 1 'GPT' granary datastore create g "$T/gpt.img"
    refuse 1 'ext4' granary datastore create g "$T/ext4.img"
    refuse 4 "'ds'" granary datastore create g "$T/ds.img"
    refuse 1 "'ds'" granary datastore create g "$T/copy-of-ds.img"
    refuse 4 '.' granary datastore create g "$T/ds.img" --force
    refuse 1 '.' granary datastore create g "$T/junk.img"
    refuse 1 '--size' granary datastore create g "$T/missing.img"
    refuse 2 '.' granary datastore create g "$T/missing.img" --size 0
    refuse 2 '2\^63' granary datastore create g "$T/missing.img" --size 9223372036854775808
    refuse 1 '.' granary datastore create g "$T/missing.img" --size 8K
    refuse 1 'fifo' granary datastore create g "$T/fifo"
    refuse 1 'regular file nor' granary datastore create g "$T" --size 256M
    refuse 1 'already' granary datastore create ds "$T/missing.img" --size 256M
    for name in '' .x -- 'a b' a/b "$long"; do refuse 2 '.' granary datastore create "$name" "$T/missing.img" --size 256M; done
    refuse 1 'junk.img' granary datastore join g "$T/junk.img"
    refuse 1 'is not a Granary datastore' granary datastore join g "$T/tiny.img"
    refuse 1 'empty' granary datastore join g "$T/empty"
    refuse 1 'missing.img' granary datastore join g "$T/missing.img"
    refuse 1 "'ds'" granary datastore join other "$T/copy-of-ds.img"
    refuse 1 "'g'" granary datastore leave g
    refuse 1 "'g'" granary datastore info g
    refuse 2 '--yes' granary datastore destroy ds
    refuse 2 '.' granary datastore grow ds 1M
    # snapshots
    refuse 1 's1' granary snapshot create ds/a --name s1
    refuse 1 's1' granary snapshot create ds/b ds/a --name s1
    refuse 2 '--name' granary snapshot create ds/a
    refuse 2 'twice' granary snapshot create ds/a ds/a --name s2
    for name in 'a@b' 'a/b' '' .. "$long" granary.export.1; do refuse 2 '.' granary snapshot create ds/a --name "$name"; done
    refuse 1 'nosnap' granary snapshot delete ds/a@nosnap
    refuse 1 'nosnap' granary snapshot revert ds/a@nosnap
    refuse 1 'nosnap' granary snapshot clone ds/a@nosnap ds/c
    refuse 1 'nosnap' granary snapshot diff ds/a@nosnap
    refuse 1 'nosnap' granary snapshot diff ds/a@s1 ds/a@nosnap
    refuse 2 'different disks' granary snapshot diff ds/a@s1 ds/b
    refuse 1 'ds/b|b' granary snapshot clone ds/a@s1 ds/b
    refuse 2 'snapshot' granary snapshot delete ds/a
    # images
    refuse 1 'nofile' granary disk import "$T/nofile" ds/x
    refuse 1 'cut.vmdk' granary disk import "$T/cut.vmdk" ds/x --format vmdk
    refuse 1 'some.raw' granary disk import "$T/some.raw" ds/x --format vmdk
    refuse 1 'empty' granary disk import "$T/empty" ds/x
    refuse 1 'fifo' granary disk import "$T/fifo" ds/x
    refuse 1 "$T" granary disk import "$T" ds/x
    refuse 1 'ds/a' granary disk import "$T/some.raw" ds/a
    refuse 2 'qcow2' granary disk import "$T/some.raw" ds/x --format qcow2
    refuse 1 'some.raw' granary disk export ds/a "$T/some.raw"
    refuse 1 'no/such/folder' granary disk export ds/a "$T/no/such/folder/x"
    refuse 1 'nosnap' granary disk export ds/a@nosnap "$T/x"
    # commands
    refuse 2 'frob' granary frob
    refuse 2 'frob' granary disk frob
    refuse 2 '.' granary disk
}

cp --sparse=always "$T/ds.img" "$T/copy-of-ds.img"
state > "$T/state"
table
state > "$T/after"
cmp "$T/state" "$T/after" || { diff "$T/state" "$T/after"; fail 'something was changed'; }
run_check granary datastore check ds

run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
state > "$T/state"
table
refuse 4 'in use' granary-storaged --portal 127.0.0.1:0 # one daemon serves a home
state > "$T/after"
cmp "$T/state" "$T/after" || { diff "$T/state" "$T/after"; fail 'something was changed'; }
run_check granary datastore check ds
run_check granary down
refuse 1 '99999' granary up --portal 127.0.0.1:99999
refuse 1 'loopback|access' granary up --portal 0.0.0.0:0
check 'nothing runs' [ ! -e "$GRANARY_HOME/run/storaged.pid" ]
echo "# $count refusals"
