#!/bin/bash
# Snapshots exposed to one initiator: over iSCSI and the mover; they end with the id, with the connection, and with the daemon.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io qemu-img nbdinfo
rpc=$BUILD/tests/tools/rpc_call
[ -x "$rpc" ] || skip 'tests/tools/rpc_call is not built: make tools'
ask() { "$rpc" "$GRANARY_HOME/run/storaged.sock" "$@" > "$T/answer" 2> "$T/err"; }
get() { jq -er "$1" "$T/answer"; }
exposures() { granary status --json | jq '.storaged.exposures | length'; }
me=iqn.2008-11.org.linux-kvm

run_check granary datastore create ds "$T/ds.img" --size 256M
run_check granary disk create ds/a --size 8M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
url=$(granary lun list --json | jq -r '.[0]."iscsi-url"')
run_check qemu-io -f raw -c 'write -P 0x11 0 1M' "$url"
run_check granary snapshot create ds/a --name s
run_check qemu-io -f raw -c 'write -P 0x22 0 1M' "$url"
if qemu-img info "${url%:a/0}:a-40s/0" > "$T/out" 2>&1; then fail 'a snapshot is there without being exposed'; fi

# to this initiator
ask snapshot.expose "{\"disk\": \"ds/a\", \"snapshot\": \"s\", \"initiator\": \"$me\"}" || fail "$(cat "$T/err")"
id=$(get .id) iscsi=$(get '."iscsi-url"') nbd=$(get '."nbd-url"')
check 'the size is told' [ "$(get .size)" = 8388608 ]
run_check qemu-io -r -f raw -c 'read -P 0x11 0 1M' "$iscsi"
if grep -q 'verification failed' "$T/out"; then fail 'the snapshot has another content'; fi
if qemu-io -f raw -c 'write -P 0x33 0 64k' "$iscsi" > "$T/out" 2>&1; then fail 'a snapshot was written to'; fi
run_check nbdinfo --json "$nbd"
check 'the mover shows it read-only' jq -e '.exports[0]."is_read_only"' "$T/out"
run_mustfail 4 'exposed' granary snapshot delete ds/a@s
run_mustfail 4 'exposed' granary disk delete ds/a
ask snapshot.unexpose "{\"id\": \"$id\"}" || fail "$(cat "$T/err")"
check 'none is listed' [ "$(exposures)" = 0 ]
if qemu-img info "$iscsi" > "$T/out" 2>&1; then fail 'the snapshot is still there'; fi
if ask snapshot.unexpose "{\"id\": \"$id\"}"; then fail 'an id can be used twice'; fi

# the disk's own access list does not stand in the way, and others stay out
run_check granary lun acl ds/a --allow iqn.2026-01.com.example:vm
ask snapshot.expose "{\"disk\": \"ds/a\", \"snapshot\": \"s\", \"initiator\": \"$me\"}" || fail "$(cat "$T/err")"
if qemu-img info "$url" > "$T/out" 2>&1; then fail 'the disk is open to an initiator that is not listed'; fi
run_check qemu-io -r -f raw -c 'read -P 0x11 0 1M' "$iscsi"
ask snapshot.unexpose "{\"id\": \"$(get .id)\"}"
run_check granary lun acl ds/a --deny iqn.2026-01.com.example:vm

# to another initiator
ask snapshot.expose '{"disk": "ds/a", "snapshot": "s", "initiator": "iqn.2026-01.com.example:other"}' || fail "$(cat "$T/err")"
if qemu-img info "$iscsi" > "$T/out" 2>&1; then fail 'an initiator that was not named got in'; fi
ask snapshot.unexpose "{\"id\": \"$(get .id)\"}"

# what is not there
if ask snapshot.expose '{"disk": "ds/a", "snapshot": "none"}'; then fail 'a snapshot that does not exist was exposed'; fi
if ask snapshot.expose '{"disk": "ds/none", "snapshot": "s"}'; then fail 'a disk that does not exist was exposed'; fi

# tied to the connection
mkfifo "$T/hold"
"$rpc" --hold "$GRANARY_HOME/run/storaged.sock" snapshot.expose '{"disk": "ds/a", "snapshot": "s", "tie": true}' < "$T/hold" > "$T/tied" &
pid=$!
track "$pid"
exec 9> "$T/hold"
wait_for 10 test -s "$T/tied"
run_check qemu-io -r -f raw -c 'read -P 0x11 0 1M' "$(jq -r '."iscsi-url"' "$T/tied")"
check 'it is listed' [ "$(exposures)" = 1 ]
kill -9 "$pid"
exec 9>&-
none() { [ "$(exposures)" = 0 ]; }
wait_for 10 none
run_check granary snapshot delete ds/a@s --settle

run_check granary down
run_check granary datastore check ds
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log "$T"/*/lab/host*/log/*.log; then fail 'a sanitizer complains'; fi
