#!/bin/bash
# granary datastore mount: folders, files and disks of a datastore as plain files, without and with the daemon.
. "$(dirname "$0")/lib.sh"
requires fusermount3
[ -c /dev/fuse ] || skip 'no /dev/fuse'
mkdir "$T/mnt"
on_exit "granary unmount '$T/mnt'"
head -c 3M /dev/urandom > "$T/a.raw"
truncate -s 20M "$T/a.raw"
run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary disk import "$T/a.raw" ds/folder/a --format raw
run_check granary datastore mount --read-only ds "$T/mnt"
check 'the disk, without a daemon' cmp "$T/a.raw" "$T/mnt/folder/a"
check 'no other entry' [ "$(find "$T/mnt" -mindepth 1 | wc -l)" = 2 ]
for name in none folder/none a:b 'x@y'; do [ ! -e "$T/mnt/$name" ] || fail "$name exists"; done
if : 2> /dev/null > "$T/mnt/new"; then fail 'a file could be made'; fi
run_check granary disk create ds/later --size 1M # the mount keeps no lock
check 'it is seen' [ "$(stat -c %s "$T/mnt/later")" = 1048576 ]
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
check 'the disk, through the daemon' cmp "$T/a.raw" "$T/mnt/folder/a"
run_mustfail 1 '.' granary datastore mount nods "$T/mnt" --read-only
run_check granary down
run_check granary unmount "$T/mnt"
check 'nothing is mounted any more' [ -z "$(ls -A "$T/mnt")" ]
mkdir "$T/other"
run_mustfail 1 "'nods'" granary datastore mount nods "$T/other" --read-only
run_mustfail 1 'nothing' granary datastore mount ds/nothing "$T/other" --read-only
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log "$T"/*/lab/host*/log/*.log; then fail 'a sanitizer complains'; fi
