#!/bin/bash
# The daemon is replaced by a new process while initiators work: sockets and sessions are handed over, nobody reconnects, nothing is lost.
# alone
. "$(dirname "$0")/lib.sh"
requires jq
run_mustfail 2 "granary up" granary upgrade
run_check granary datastore create ds "$T/ds.img" --size 1G
for d in a b; do run_check granary disk create ds/$d --size 64M; done
run_check granary up --portal 127.0.0.1:0 --multipath-portal 127.0.0.1:0 --mover 127.0.0.1:0 --loops 2
at=$(granary status --json | jq -r .portal)
granary status --json | jq '[.portal, ."multipath-portal", .mover]' > "$T/addresses"
pid() { cat "$GRANARY_HOME/run/storaged.pid"; }
load() { start "$1" "$BUILD/tests/tools/live_load" "$at" "iqn.2026-11.local.granary:ds:$2" "$3" "iqn.2026-11.local.granary:$1" "${4:-0}"; }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }
load one a 60
load two a 60 8192
load three b 60 98304
start many "$BUILD/tests/bench/iscsi_load" "$at" iqn.2026-11.local.granary:ds:b --rw randwrite --bs 16K --depth 32 --conns 2 --time 60 --size 32M
wait_for 20 sh -c 'granary session list --json | jq -e "length == 5"'
sleep 1
# somebody knocks at the mover all the while: who comes in the middle waits for the next process, and is not turned away
port=$(granary status --json | jq -r .mover) port=${port##*:}
start knocks bash -c 'while [ ! -e "$1/enough" ]; do (exec 3<> "/dev/tcp/127.0.0.1/$0") 2> /dev/null && echo in || echo refused; sleep 0.002; done' "$port" "$T"
counts() { granary lun stat --json > "$T/stat-$1"; }
for round in 1 2 3 4; do
    before=$(pid)
    counts before
    run_check granary upgrade --json
    check "another process" test "$(jq '."storaged-pid"' "$T/out")" != "$before"
    check "that one" test "$(jq '."storaged-pid"' "$T/out")" = "$(pid)"
    wait_for 10 eval "! ps -p $before -o stat= | grep -qv Z" # its end is not waited for
    check "the sessions are there" sh -c 'granary session list --json | jq -e "length == 5"'
    counts after
    check "no counter went back" jq -e -n --slurpfile a "$T/stat-before" --slurpfile b "$T/stat-after" '
        [$a[0], $b[0] | [.[] | [.disk, .reads, .writes, ."read-bytes", ."write-bytes", .others, ."read-latency".count, ."write-latency".count,
                                ."write-latency"."sum-us", ."write-latency"."max-us"]] | sort] |
        transpose | all(.[0][0] == .[1][0] and ([.[0][1:], .[1][1:]] | transpose | all(.[0] <= .[1]))) and any(.[0][2] > 0)'
    [ $round = 2 ] && run_check granary snapshot create ds/a ds/b --name between
    sleep 0.5
done
touch "$T/enough"
wait_for 20 ended knocks
check "the mover was there all the while" sh -c '[ "$(grep -c in "$0")" -gt 100 ] && ! grep -q refused "$0"' "$T/knocks.log"
granary status --json | jq '[.portal, ."multipath-portal", .mover]' | cmp - "$T/addresses" || fail "the addresses changed"
enough one two three many
for l in one two three; do
    said $l '.errors == 0 and .reconnects == 0 and .ios > 100 and ."longest-ms" < 1000 and (.attentions | length == 0)'
done
said many '.errors == 0 and .iops > 0'
grep -h 'taken over' "$GRANARY_HOME/log/storaged.log" | sed 's/^/# /'
run_check qemu-img info "iscsi://$at/iqn.2026-11.local.granary:ds:a/0"

run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
