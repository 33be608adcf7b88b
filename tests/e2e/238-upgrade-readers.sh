#!/bin/bash
# The daemon is replaced while backups read: exposed snapshots stay exposed, requests wait, and nobody sees an error.
# timeout: 600
# alone
. "$(dirname "$0")/lib.sh"
requires jq qemu-img qemu-io nbdcopy nbdinfo cmp
rpc=$BUILD/tests/tools/rpc_call
[ -x "$rpc" ] || skip 'tests/tools/rpc_call is not built: make tools'
ask() { "$rpc" "$GRANARY_HOME/run/storaged.sock" "$@" > "$T/answer" 2> "$T/err"; }
pid() { cat "$GRANARY_HOME/run/storaged.pid"; }
alive() { ps -p "$1" -o stat= | grep -qv Z; }
exposures() { granary status --json | jq '.storaged.exposures'; }
head -c 96M /dev/urandom > "$T/data"
run_check granary datastore create ds "$T/ds.img" --size 2G
run_check granary disk import "$T/data" ds/a --format raw
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary snapshot create ds/a --name s
live=$(granary lun list ds/a --json | jq -r '.[0]."iscsi-url"')
run_check qemu-io -f raw -c 'write -P 0x22 0 1M' "$live"

# --- who does not understand what we hand over is told so, and everything goes on
before=$(pid)
for versions in '' ', "versions": [3, 9]' ', "versions": [1, 1]'; do
    if ask daemon.hand-over "{\"socket\": \"$T/none\"$versions}"; then fail "it went to one that reads [$versions]"; fi
    check "told why" grep -q 'hands over version .*granary down' "$T/err"
done
check "the same process" test "$(pid)" = "$before"
run_check qemu-io -f raw -c 'read -P 0x22 0 1M' "$live"

# --- exposed snapshots, one tied to a connection, with a session that reads it
mkfifo "$T/hold"
start holder bash -c 'exec "$0" --hold "$1" snapshot.expose "{\"disk\": \"ds/a\", \"snapshot\": \"s\", \"tie\": true}" < "$2"' "$rpc" "$GRANARY_HOME/run/storaged.sock" "$T/hold"
exec 7> "$T/hold"
wait_for 10 test -s "$T/holder.log"
ask snapshot.expose '{"disk": "ds/a", "snapshot": "s", "initiator": "iqn.2026-01.com.example:other"}' || fail "$(cat "$T/err")"
exposures > "$T/exposed"
san=$(jq -r '."iscsi-url"' "$T/holder.log")
mkfifo "$T/commands"
start reader bash -c 'exec qemu-io -r -f raw "$0" < "$1"' "$san" "$T/commands"
exec 8> "$T/commands"
echo 'read 0 64M' >&8
wait_for 10 grep -q 'read 67108864' "$T/reader.log"
for round in 1 2; do
    before=$(pid)
    run_check granary upgrade 7>&- 8>&- # what it starts would keep them open
    check "another process" test "$(pid)" != "$before"
    check "exposed as before" sh -c 'granary status --json | jq .storaged.exposures | cmp - "$0"' "$T/exposed"
    echo 'read 0 64M' >&8
    wait_for 10 eval "[ \$(grep -c 'read 67108864' '$T/reader.log') = $((round + 1)) ]"
done
echo quit >&8
exec 8>&-
wait_for 10 eval "! alive $(cat "$T/reader.pid")"
run_check qemu-img convert -f raw -O raw "$san" "$T/copy"
check "it holds what it held" cmp "$T/data" "$T/copy"
run_mustfail 4 'exposed' granary snapshot delete ds/a@s
stop holder
exec 7>&-
wait_for 10 eval '[ "$(exposures | jq length)" = 1 ]'
ask snapshot.unexpose "{\"id\": \"$(exposures | jq -r '.[0].id')\"}" || fail "$(cat "$T/err")"
run_check granary snapshot delete ds/a@s --settle

# --- a backup, and the daemon is replaced again and again meanwhile
run_check qemu-img convert -n -f raw -O raw "$T/data" "$live"
backup() { # TRANSPORT
    local n=0
    start "backup-$1" granary backup run --disk ds/a --disk ds/a2 --disk ds/a3 --name "$1" --repo "$T/repo" --transport "$1" --json
    while alive "$(cat "$T/backup-$1.pid")"; do sleep 0.3
        run_check granary upgrade
        n=$((n + 1))
    done
    check "it was a whole one" jq -e 'length == 1 and .[0].kind == "full"' "$T/backup-$1.log"
    check "replaced meanwhile, $n times" test "$n" -ge 3
    run_check granary backup export "$1:a" "$T/back-$1" --format raw --repo "$T/repo"
    check "$1: every byte" cmp "$T/data" "$T/back-$1"
    check "no snapshot stays" test "$(granary snapshot list ds/a --json | jq length)" = 0
}
for d in a2 a3; do
    head -c 96M /dev/urandom > "$T/more"
    run_check granary disk import "$T/more" "ds/$d" --format raw
done
backup san

grep -h 'taken over' "$GRANARY_HOME/log/storaged.log" | sed 's/^/# /'
run_check granary datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check granary down
if grep -sq Sanitizer "$T"/home/log/*.log; then fail 'a sanitizer complains'; fi
