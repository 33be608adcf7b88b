#!/bin/bash
# Two hosts show one datastore as a file system, and processes on both work on the same few files and folders at the same time: there is one order of all
# operations that explains every answer, each between its call and its return (docs/mount.md, "In which order"). GRANARY_SOAK: seconds.
# timeout: 200
. "$(dirname "$0")/lib.sh"
export PATH=$BUILD/tests/tools:$PATH
mount_hosts 512M
run_check a datastore mount ds "$MA"
run_check b datastore mount ds "$MB"

mkdir "$MA/work"
run_check fs_history "${GRANARY_SOAK:-12}" "$MA/work" "$MB/work"
echo "# $(tail -n 1 "$T/out")"
mkdir "$MA/names"
FS_HISTORY_NAMES=1 run_check fs_history "${GRANARY_SOAK:-8}" "$MA/names" "$MB/names"
echo "# names: $(tail -n 1 "$T/out")"
check 'what a round left can be removed there' [ -z "$(ls "$MB/work")" ]

# ---- it would be seen: with answers that are older than they may be, as of a cache, there is no order ----
for what in fstat list; do
    mkdir "$MA/$what"
    FS_HISTORY_LIE=$what run_mustfail 1 'no order of the operations' fs_history 60 "$MA/$what" "$MB/$what"
done

mounts_over
