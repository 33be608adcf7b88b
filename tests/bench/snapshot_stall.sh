#!/bin/bash
# How long a guest waits because of a snapshot: p99 over COUNT snapshots of the longest of the commands that were under way when it was taken, from its
# first millisecond to the answer (whatever else made them long counts, too); beside it the same in moments without a snapshot, and the longest silence,
# in which no command ended. Random writes over iSCSI; 4 KiB (goal 5 ms) and 1 MiB (8 ms), 32 under way; a disk of 1 GiB and one of 1 TiB
# all of whose map exists; the first snapshots and those after the 1,000th. A group: 16 disks of one host (10 ms; frames of the journal are counted), and
# disks of two hosts (100 ms). Where 32 commands of 1 MiB take longer than the goal by themselves, the silence is what is judged.
# Beside it QEMU's storage daemon with qcow2 over NBD: snapshots as files (a chain that grows by each) and internal ones.
# Usage: tests/bench/snapshot_stall.sh [single] [group] [hosts] [peers]      all by default
# COUNT: snapshots of a row (200). DIR: where datastores and images go (/dev/shm: this machine's disk has outliers of its own; needs 6 GiB).
# WRAP: put in front of servers, loads and callers ("chrt -f 10" on a machine that others use at the same time).
NAME=snapshot_stall
# shellcheck source=tests/lib/bench.sh
. "$(dirname "$0")/../lib/bench.sh"
COUNT=${COUNT:-200}; EVERY=${EVERY:-15} # ms
what=("$@"); [ ${#what[@]} -gt 0 ] || what=(single group hosts peers)
snapshots() { asked "$1" snapshot.create "{\"disks\":$2,\"name\":\"$3#\"}" --every "$EVERY" "${@:4}"; } # HOST DISKS-JSON PREFIX OPTION...
row() { # NAME GOAL TRACE...: what the log and the traces say
    local name=$1 goal=$2
    "$B/tests/bench/calls" report "$dir/log" "${@:3}" > "$dir/json" || exit 1
    jq -r '[.longest.p99, ."longest-without".p99, .silence.p99, ."silence-without".p99, .call.p50, .call.p99, .calls, .felt] | @tsv' "$dir/json" |
        awk -v n="$name" -v g="$goal" '{ v = ($2 > g ? $3 : $1)
            printf "  %-58s %8.2f %8.2f   %8.2f %8.2f   %8.2f %8.2f   ", n, $1, $2, $3, $4, $5, $6
            if ($8 < $7 * 0.9) printf "only %d of %d met the load", $8, $7
            else if (g && $2 > g && $4 > g) printf "goal %d: cannot be told, without snapshots it is more, too", g
            else if (g) printf "goal %d: %s%s", g, (v <= g ? "met" : "missed"), ($2 > g ? " (silence)" : "")
            print "" }'
}
echo "snapshot_stall: $(nproc) CPUs, Linux $(uname -r), p99 of $COUNT snapshots in ms${WRAP:+, under $WRAP}"
printf '  %-58s %8s %8s   %8s %8s   %8s %8s\n' "" "longest" "without" "silence" "without" "call p50" "call p99"

single() {
    local size bs goal keep d
    mkdir "$dir/home1"
    on 1 datastore create s "$dir/ds" --size 32G
    for size in 1g 1t; do
        for bs in 4k 1m; do
            on 1 disk create s/$size$bs --size ${size^^}
            [ $size = 1g ] || seq 0 8388608 1099511627775 | awk '{ print "w", $1, 4096, NR }' | GRANARY_HOME=$dir/home1 "$B/tests/tools/disk_poke" s/$size$bs || die "filling failed"
        done
    done
    up 1
    for size in 1g 1t; do
        for bs in 4k 1m; do
            d=$size$bs goal=5 keep=()
            [ $bs = 4k ] || goal=8
            for when in first later; do
                # what large writes leave in snapshots would fill the datastore: all but the newest 16 are deleted again
                [ $bs = 4k ] || keep=(--keep 16 --drop snapshot.delete "{\"disk\":\"s/$d\",\"snapshot\":\"$when#\",\"settle\":true}")
                [ $when = first ] || EVERY=0 snapshots 1 "[\"s/$d\"]" many --count 1000
                load trace iscsi_load "${at[1]}" "$iqn:s:$d" --bs ${bs^^} --depth 32 --size 256M --rw randwrite
                snapshots 1 "[\"s/$d\"]" $when --count "$COUNT" "${keep[@]}"
                loads_end
                row "${size^^}iB disk, ${bs^^}iB writes, $([ $when = first ] && echo "the first $COUNT" || echo "after the 1,000th")" $goal "$dir/trace"
            done
            on 1 disk delete "s/$d"
        done
    done
    on 1 down
}

group() {
    local i disks before
    mkdir "$dir/home2"
    on 2 datastore create g "$dir/group" --size 24G
    for i in $(seq 16); do on 2 disk create "g/d$i" --size 1G; done
    disks=$(seq 16 | jq -sc 'map("g/d\(.)")')
    up 2
    # without a load, so that no other records are in the journal
    before=$(frames)
    snapshots 2 "$disks" quiet --count 20
    echo "  a group of 16 disks, without a load: $(($(frames) - before)) frames of the journal for 20 instants"
    load trace iscsi_load "${at[2]}" "$iqn:g:d#" --conns 16 --bs 4K --depth 2 --size 64M --rw randwrite
    snapshots 2 "$disks" g --count "$COUNT"
    loads_end
    row "16 disks of a host in one instant, 4KiB, depth 2 each" 10 "$dir/trace"
    on 2 down
}
frames() { GRANARY_HOME=$dir/home2 "$B/bin/granary" datastore info g --json | jq '.stats."journal-frames"'; }

hosts() {
    mkdir "$dir/home3" "$dir/home4"
    on 3 datastore create h "$dir/hosts" --size 16G
    on 4 datastore join h "$dir/hosts"
    up 3; up 4
    on 3 disk create h/a --size 1G
    on 4 disk create h/b --size 1G
    load trace1 iscsi_load "${at[3]}" "$iqn:h:a" --bs 4K --depth 16 --size 256M --rw randwrite
    load trace2 iscsi_load "${at[4]}" "$iqn:h:b" --bs 4K --depth 16 --size 256M --rw randwrite
    EVERY=250 snapshots 3 '["h/a","h/b"]' g --count $((COUNT / 4))
    loads_end
    row "disks of two hosts in one instant, 4KiB, depth 16 each" 100 "$dir/trace1" "$dir/trace2"
    on 3 down; on 4 down
}

peers() {
    local bs n
    command -v qemu-storage-daemon > /dev/null || { echo "  qcow2 is left out (scripts/setup --bench)"; return; }
    for bs in 4K 1M; do
        n=$COUNT
        [ $bs = 4K ] || n=$((COUNT / 4)) # each overlay takes in all that is written
        qemu ""
        load trace nbd_load "$nbd" --bs $bs --depth 32 --size 256M --rw randwrite
        calls qmp "$dir/qmp" "$dir/log" blockdev-snapshot-sync "{\"node-name\":\"n%\",\"snapshot-file\":\"$dir/n#.qcow2\",\"snapshot-node-name\":\"n#\",\"format\":\"qcow2\"}" \
            --count "$n" --every "$EVERY"
        loads_end
        row "qcow2, ${bs}iB writes, the first $n as files" 0 "$dir/trace"
        qemu_end
        qemu ""
        load trace nbd_load "$nbd" --bs $bs --depth 32 --size 256M --rw randwrite
        calls qmp "$dir/qmp" "$dir/log" blockdev-snapshot-internal-sync '{"device":"n0","name":"s#"}' --count "$n" --every "$EVERY"
        loads_end
        row "qcow2, ${bs}iB writes, the first $n internal" 0 "$dir/trace"
        qemu_end
    done
}
for w in "${what[@]}"; do
    case $w in single | group | hosts | peers) $w ;; *) die "'$w': single, group, hosts or peers" ;; esac
done
grep -q device-mapper /proc/misc || echo "  LVM thin is left out: not on this machine, its kernel has no device-mapper"
