#!/bin/bash
# Everything that can be changed while initiators work is changed: none sees an error, each is told what it must know. Then the daemon is
# killed: they go on within a second of its return.
# alone
. "$(dirname "$0")/lib.sh"
requires jq
run_check granary datastore create ds "$T/ds.img" --size 1G
for d in a b c; do run_check granary disk create ds/$d --size 64M; done
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0 --loops 2
at=$(granary status --json | jq -r .portal)
target() { granary lun list "$1" --json | jq -r '.[0].target'; }
load() { start "$1" "$BUILD/tests/tools/live_load" "$at" "$(target "ds/$2")" "$3" "iqn.2026-11.local.granary:$1" "${4:-0}"; }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }

# --- changes
load one a 60
load two a 60 8192
load other b 60
sleep 1
run_check granary lun acl ds/a --allow iqn.2026-11.local.granary:one --allow iqn.2026-11.local.granary:two
run_check granary lun acl ds/a --allow iqn.2026-11.local.granary:three
for s in s1 s2 s3; do run_check granary snapshot create ds/a ds/b --name $s; done
run_check granary disk resize ds/a 96M
run_check granary snapshot delete ds/a@s2
run_check granary disk set ds/a --iops 100000
run_check granary disk set ds/a --iops off
run_check granary disk create ds/new --size 32M
run_check granary lun mask ds/c
run_check granary lun unmask ds/c
echo a-secret-for-later > "$T/secret"; chmod 600 "$T/secret"
run_check granary lun chap ds/c --user joe --secret-file "$T/secret"
run_check granary snapshot clone ds/a@s1 ds/clone
run_check granary disk import "$T/secret" ds/imported --format raw
run_check granary disk delete ds/imported
run_check granary datastore grow ds 1200M
run_check granary disk delete ds/new
enough one two other
for l in one two other; do said $l '.errors == 0 and .reconnects == 0 and .ios > 100'; done
said one '.attentions["2a09"] == 1' # its capacity changed
said two '.attentions["2a09"] == 1'
said other '.attentions["2a09"] == null'

# --- a snapshot is gone back to: initiators are told that the medium changed, and find the bytes of then
load back b 60 8192
sleep 1
run_check granary snapshot create ds/b --name before
sleep 1
run_check granary snapshot revert ds/b@before --force
sleep 1
enough back
said back '.errors == 0 and .reconnects == 0 and .attentions["2800"] == 1'

# --- killed under load: within a second of its return they go on, and what they wrote is there
load k1 clone 60 16384
load k2 b 60 16384
wait_for 20 sh -c 'granary session list --json | jq -e "length == 2"'
sleep 0.2 # most of their blocks are new, and nothing but a flush in eight writes asks to keep them
kill -KILL "$(cat "$GRANARY_HOME/run/storaged.pid")"
begin=$(date +%s%N)
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
echo "# up again after $((($(date +%s%N) - begin) / 1000000)) ms"
wait_for 20 sh -c 'granary session list --json | jq -e "length == 2"'
sleep 1.5 # they read again what they had written
enough k1 k2
for l in k1 k2; do
    said $l '.errors == 0 and .reconnects == 1'
    said $l '."longest-ms" < 1000'
done
run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
