#!/bin/bash
# What takes something away that does not come back is in the audit log before it begins: a daemon that is killed in the middle leaves who was at
# what, in its own home and in that of the host that does the work.
. "$(dirname "$0")/lib.sh"
requires jq
hosts a b
open_lines() { "$1" audit --unfinished --json | jq -c '[.[] | {method, result, seconds, disk: .named.disk}]'; }

run_check a datastore create ds "$T/ds.img" --size 256M --timing fast
run_check a up --portal 127.0.0.1:0
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0
run_check b disk create ds/d --size 16M
run_check b disk move ds/d "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"
check 'nothing is at work' [ "$(open_lines a)" = '[]' ]

# --- one that ends
run_check b snapshot create ds/d --name s
run_check b snapshot delete ds/d@s
check 'a beginning and an end' [ "$(b audit --json | jq -c '[.[] | select(.method == "snapshot.delete") | .result]')" = '["begun","ok"]' ]
check 'of one call' [ "$(b audit --json | jq '[.[] | select(.method == "snapshot.delete") | .call] | unique | length')" = 1 ]
check 'what can be changed back has one' [ "$(b audit --json | jq '[.[] | select(.method == "snapshot.create")] | length')" = 1 ]
run_check b audit
check 'in the table' grep -Eq 'snapshot.delete +begun' "$T/out"

# --- one that is cut off: who owns the disk does not answer
pa=$(cat "$A/run/storaged.pid") pb=$(cat "$B/run/storaged.pid")
kill -STOP "$pb"
a disk delete ds/d > "$T/delete.out" 2>&1 &
client=$!
at_work() { [ "$(open_lines a)" != '[]' ]; }
wait_for 20 at_work
check 'it is at work' [ "$(open_lines a)" = '[{"method":"disk.delete","result":"begun","seconds":null,"disk":"ds/d"}]' ]
kill -KILL "$pa"
wait "$client" && fail 'a killed daemon answered'
kill -CONT "$pb"
check 'it was cut off' [ "$(open_lines a)" = '[{"method":"disk.delete","result":"begun","seconds":null,"disk":"ds/d"}]' ]
check 'by whom' [ "$(a audit --unfinished --json | jq ".[0].pid == $client or .[0].uid == $(id -u)")" = true ]
run_check a audit --unfinished --since 1h
check 'in the table, too' grep -Eq 'disk.delete +begun .*disk=ds/d' "$T/out"

# --- a command without a daemon says so, too
run_check b down
run_check b disk create ds/e --size 16M
run_check b disk delete ds/e
check 'without a daemon' [ "$(b audit --json | jq -c '[.[] | select(.method == "disk.delete" and .named.disk == "ds/e") | .result]')" = '["begun","ok"]' ]
