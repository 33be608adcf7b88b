#!/bin/bash
# Deleting any of many snapshots while a guest works, and reverting.
#   counts   1,000 snapshots deleted in a random order under 4 KiB writes, counted below the datastore: data copied or read for it (goal: none)
#   free     a snapshot with 100 GiB of its own: seconds until they are free (10), with nobody at the disk and with a guest that writes; MiB written for
#            it (64)
#   guest    p99 of 4 KiB writes over iSCSI while 20 of 1,000 snapshots are deleted in half a second, and for as long behind it, over that in as long a
#            time before, when what was deleted before has long been given back; the median of 20 pairs (at most 1.05): with 32 writes always under way,
#            and with 10,000 writes a second
#   revert   to any of 500 snapshots, with nobody at the disk (50 ms)
#   peers    qcow2: deleting internal snapshots, and block-commit of a file in the middle of a chain, under the same writes over NBD; qemu-img commit
# Usage: tests/bench/snapshot_delete.sh [counts] [free] [guest] [revert] [peers]      all by default
# DIR: where datastores and images go (/dev/shm; needs 8 GiB). WRAP: put in front of servers, loads and callers ("chrt -f 10").
NAME=snapshot_delete
# shellcheck source=tests/lib/bench.sh
. "$(dirname "$0")/../lib/bench.sh"
what=("$@"); [ ${#what[@]} -gt 0 ] || what=(counts free guest revert peers)
echo "snapshot_delete: $(nproc) CPUs, Linux $(uname -r)${WRAP:+, under $WRAP}"

counts() {
    $WRAP "$B/tests/bench/snapshot_many" "$dir" delete 1000 > "$dir/json" || exit 1
    jq -r '"  \(.snapshots) deleted in \(.seconds) s: \(."guest-bytes") bytes written by the guest, \(."journal-bytes") of journal, \(."map-bytes") of map; the longest delete \(."longest-delete-ms") ms, the longest write \(."longest-write-ms") ms, without \(."longest-write-ms-without") ms"' "$dir/json"
    goal "1,000 deletes: bytes of data copied" "$(jq '."data-copied"' "$dir/json")" max 0
    goal "1,000 deletes: bytes of data read" "$(jq '."data-read"' "$dir/json")" max 0
}
free() {
    $WRAP "$B/tests/bench/snapshot_cost" "$dir" free 100 > "$dir/json" || exit 1
    jq -r '"  \(."freed-gib") GiB freed: answered after \(."answered-ms") ms, free after \(.seconds) s (\(."cpu-seconds") s of CPU), \(."written-mib") MiB written"' "$dir/json"
    goal "100 GiB freed: seconds" "$(jq .seconds "$dir/json")" max 10
    goal "100 GiB freed: MiB written" "$(jq '."written-mib"' "$dir/json")" max 64
    $WRAP "$B/tests/bench/snapshot_cost" "$dir" free 100 busy > "$dir/json" || exit 1
    goal "100 GiB freed beside a guest's writes: seconds" "$(jq .seconds "$dir/json")" max 10
}

disk() { # NAME: 1 GiB with 1,000 snapshots, about 100 changed pieces between two
    on 1 disk create "s/$1" --size 1G
    load trace iscsi_load "${at[1]}" "$iqn:s:$1" --bs 4K --depth 32 --rw randwrite --rate 20000 --size 1G
    asked 1 snapshot.create "{\"disks\":[\"s/$1\"],\"name\":\"s#\"}" --count 1000 --every 4
    loads_end
}
served() {
    [ -d "$dir/home1" ] && return
    mkdir "$dir/home1"
    on 1 datastore create s "$dir/ds" --size 12G
    up 1
}
guest() {
    local d text
    served
    for d in d1 d2; do
        disk $d
        text="32 under way"
        [ $d = d1 ] || text="10,000 a second"
        if [ $d = d1 ]; then
            load trace iscsi_load "${at[1]}" "$iqn:s:$d" --bs 4K --depth 32 --rw randwrite --size 1G
        else
            load trace iscsi_load "${at[1]}" "$iqn:s:$d" --bs 4K --depth 32 --rw randwrite --size 1G --rate 10000
        fi
        sleep 1
        asked 1 snapshot.delete "{\"disk\":\"s/$d\",\"snapshot\":\"s#\"}" --count 400 --shuffle --every 25 --burst 20 --pause 3000
        loads_end
        "$B/tests/bench/calls" bursts "$dir/log" "$dir/trace" > "$dir/json" || exit 1
        "$B/tests/bench/calls" report "$dir/log" > "$dir/calls" || exit 1
        jq -rn --slurpfile j "$dir/json" --slurpfile c "$dir/calls" --arg t "$text" \
            '"  4 KiB writes, \($t): p99 \($j[0].p99) ms, without deletes \($j[0]."p99-without") ms; a delete is answered in \($c[0].call.p50) ms, p99 \($c[0].call.p99) ms"'
        goal "4 KiB writes, $text: p99 over that without" "$(jq .ratio "$dir/json")" max 1.05
        on 1 disk delete "s/$d"
    done
}
revert() {
    served
    disk r
    asked 1 snapshot.revert '{"disk":"s/r","snapshot":"s#"}' --count 500 --shuffle
    "$B/tests/bench/calls" report "$dir/log" > "$dir/json" || exit 1
    jq -r '"  500 reverts: \(.call.p50) ms, p99 \(.call.p99) ms"' "$dir/json"
    goal "a revert: ms, the longest of 500" "$(jq .call.max "$dir/json")" max 50
}

peer_row() { # WHAT: what the log and the trace say
    "$B/tests/bench/calls" report "$dir/log" "$dir/trace" > "$dir/json" || exit 1
    jq -r --arg w "$1" '"  \($w): \(.call.p50) ms each, the longest \(.call.max) ms; the longest write met by one \(.longest.p50) ms, at most \(.longest.max) ms, without \(."longest-without".p50) ms"' "$dir/json"
}
writes() { load trace nbd_load "$nbd" --bs 4K --depth 32 --rw randwrite --size 256M; }
peers() {
    local t
    command -v qemu-storage-daemon > /dev/null || { echo "  qcow2 is left out (scripts/setup --bench)"; return; }
    qemu ""
    writes
    calls qmp "$dir/qmp" "$dir/log" blockdev-snapshot-internal-sync '{"device":"n0","name":"s#"}' --count 20 --every 100
    calls qmp "$dir/qmp" "$dir/log" blockdev-snapshot-delete-internal-sync '{"device":"n0","name":"s#"}' --count 20 --shuffle --every 100
    loads_end
    peer_row "qcow2, internal snapshots deleted, 20"
    qemu_end
    qemu ""
    writes
    calls qmp "$dir/qmp" "$dir/log" blockdev-snapshot-sync "{\"node-name\":\"n%\",\"snapshot-file\":\"$dir/n#.qcow2\",\"snapshot-node-name\":\"n#\",\"format\":\"qcow2\"}" --count 12 --every 200
    calls qmp "$dir/qmp" "$dir/log" block-commit '{"job-id":"c#","device":"n12","top-node":"n#","base-node":"n0"}' --first 1 --count 11 --until BLOCK_JOB_COMPLETED --every 100
    loads_end
    peer_row "qcow2, files of a chain committed (block-commit), 11"
    qemu_end
    qemu-img create -q -f qcow2 "$dir/n0.qcow2" 1G
    qemu-img create -q -f qcow2 -b n0.qcow2 -F qcow2 "$dir/n1.qcow2"
    qemu-img bench -w -c 256 -d 4 -s 1M --pattern=90 -f qcow2 "$dir/n1.qcow2" > /dev/null
    t=$(date +%s%N)
    qemu-img commit -q "$dir/n1.qcow2"
    echo "  qemu-img commit of 256 MiB, with nobody at the disk: $((($(date +%s%N) - t) / 1000000)) ms, all of it copied"
}
for w in "${what[@]}"; do
    case $w in counts | free | guest | revert | peers) $w ;; *) die "'$w': counts, free, guest, revert or peers" ;; esac
done
