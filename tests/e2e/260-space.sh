#!/bin/bash
# How much space each disk and snapshot has, and what of it is its own: alike with and without a daemon, and after a restart.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
unit=$((1024 * 1024))
is() { check "$1" jq -e "$2" "$T/out"; } # SENTENCE FILTER
written() { # DISK OFFSET-MIB MIB
    run_check qemu-io -f raw -c "write -q -P 7 ${2}M ${3}M" "$(granary lun list "$1" --json | jq -r '.[0]."iscsi-url"')"
}

run_check granary datastore create ds "$T/volume" --size 256M
run_check granary disk create ds/a --size 64M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
written ds/a 0 8
run_check granary snapshot create ds/a --name one
written ds/a 0 2
run_check granary snapshot create ds/a --name two
written ds/a 1 3

space() { # what is said of all of them
    run_check granary disk list ds --snapshots --json
    jq -c 'map({disk, snapshot, used, shared, unique})' "$T/out"
}
mib() { echo "($1 * $unit)"; }
space > "$T/first"
cat "$T/first"
is 'the disk: 8 MiB, 3 of them its own' ".[0] | .size == $(mib 64) and .used == $(mib 8) and .unique == $(mib 3) and .shared == $(mib 5) and .held == $(mib 13)"
is 'what one lost to two is its own' ".[1] | .snapshot == \"one\" and .used == $(mib 8) and .unique == $(mib 2)"
is 'what two lost to the disk is its own' ".[2] | .snapshot == \"two\" and .used == $(mib 8) and .unique == $(mib 1) and .shared == $(mib 7)"
run_check granary disk info ds/a --json
is 'info says the same' ".used == $(mib 8) and .unique == $(mib 3)"
run_check granary disk list
check 'and the table' grep -q 'SHARED  *UNIQUE' "$T/out"

# a clone shares; where it starts, nothing is given back
run_check granary snapshot clone ds/a@two ds/b
run_check granary disk info ds/b --json
is 'a clone has nothing of its own' ".used == $(mib 8) and .unique == 0 and .held == 0"
run_check granary snapshot list ds/a --json
is 'deleting what clones grow from gives nothing back' '.[1].unique == 0 and .[0].unique > 0'
run_check granary disk delete ds/b

# killed: as it was
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary down
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
wait_for 20 sh -c "granary snapshot list ds/a --json | jq -e '.[1].unique == $(mib 1)'"
space > "$T/second"
check 'after a restart all is as it was' cmp "$T/first" "$T/second"

# deleting gives back what was said
run_check granary snapshot delete ds/a@two --settle
run_check granary disk list ds --snapshots --json
is 'what two had alone is free; what it shared with one is shared by the disk still, or one has lost it' \
    ".[0].held == $(mib 12) and .[0].unique == $(mib 4) and .[1].unique == $(mib 4)"
run_check granary down
run_check granary disk list ds --snapshots --json
is 'the same without a daemon' ".[0].held == $(mib 12) and .[0].unique == $(mib 4) and .[1].unique == $(mib 4)"
run_check granary datastore check ds
