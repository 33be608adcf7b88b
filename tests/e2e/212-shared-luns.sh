#!/bin/bash
# Two hosts share a datastore that lies on a LUN of our own target: who dies or stops is shut out and taken over from, in seconds, and
# whatever was acknowledged is there. Who was shut out does no harm when it goes on, and comes back by itself. The array itself may die.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array
portal() { "$1" status --json | jq -r .portal; }
ms() { echo $(($(date +%s%N) / 1000000)); }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }

echo a-secret-of-the-array > "$T/secret"; chmod 600 "$T/secret"
array_port=$(free_port)
run_check array lun add store "$T/store.img" --size 2G
run_check array lun chap store --user hosts --secret-file "$T/secret"
run_check array up --portal "127.0.0.1:$array_port"
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')

# --- bad input
run_mustfail 1 'CHAP|uthent|refuse' a datastore create ds "$lun"
run_mustfail 2 'go together' a datastore create ds "$lun" --user hosts
run_mustfail 1 'no such target|does not|not found|unknown|Target error' a datastore create ds "${lun/store/other}" --user hosts --secret-file "$T/secret"
run_mustfail 1 'refused|connect' a datastore create ds "iscsi://127.0.0.1:$(free_port)/iqn.x:y/0" --user hosts --secret-file "$T/secret"
run_mustfail 2 'timing' a datastore create ds "$lun" --timing slow --user hosts --secret-file "$T/secret"
run_mustfail 1 'not an iSCSI URL' b datastore join ds iscsi://nonsense

run_check a datastore create ds "$lun" --timing fast --user hosts --secret-file "$T/secret"
run_check b datastore join ds "$lun" --user hosts --secret-file "$T/secret"
run_check a datastore info ds --json
check 'it is on shared LUNs' jq -e '."shared-luns" and .timing == "fast" and .login.user == "hosts"' "$T/out"
check 'no secret in what is kept' sh -c "! grep -rq a-secret-of-the-array '$A/conf' '$B/conf' '$A/log' '$B/log'"
run_mustfail 1 'holds' array datastore create other "$lun" --user hosts --secret-file "$T/secret"
for d in d e f; do run_check a disk create ds/$d --size 64M; done
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_mustfail 4 'not given back' array datastore create other "$lun" --force --user hosts --secret-file "$T/secret"
pa=$(portal a) pb=$(portal b)
target() { a lun list "$1" --json | jq -r '.[0].target'; }
td=$(target ds/d) te=$(target ds/e) tf=$(target ds/f)
load() { start "$1" "$BUILD/tests/tools/live_load" "$2" "$3" "$4" "iqn.2026-11.local.granary:$1" "${5:-0}"; }

# --- a disk moves while it is in use, as on files
load moved "$pb" "$tf" 60
sleep 1
run_check a disk move ds/f "$(a datastore info ds --json | jq -r --arg p "$pb" '.hosts[] | select(.portal == $p) | .host')"
sleep 0.5
enough moved
said moved '.errors == 0 and .reconnects == 1'

# --- the owner is killed under load, the initiator knows the survivor's portal
load killed "$pb" "$td" 60
sleep 2
kill -KILL "$(cat "$A/run/storaged.pid")"
begin=$(ms)
run_check qemu-io -f raw -c 'write -P 0x5a 3M 4k' "iscsi://$pb/$te/0"
took=$(($(ms) - begin))
echo "# first write at the survivor after $took ms"
check 'taken over in time' [ $took -lt 4000 ]
sleep 0.5
enough killed
said killed '.errors == 0 and .reconnects == 1 and .ios > 100'
run_check a up --portal "$pa"

# --- the owner (b by now) is stopped with writes under way for far longer than anybody's patience, and goes on
load stopped "$pa" "$td" 60 16384
sleep 1
run_check a lun list ds/d --json
check 'b owns it' jq -e --arg p "$pb" '.[0]."iscsi-url" | contains($p)' "$T/out"
pid=$(cat "$B/run/storaged.pid")
kill -STOP "$pid"
begin=$(ms)
sleep 1.2 # within a second of its last sign of life logins are led to it
# who looks meanwhile sees a login that waits, and for whom
start login sh -c "qemu-io -f raw -c 'write -P 0x5b 4M 4k' 'iscsi://$pa/$td/0' && date +%s%N > '$T/ended'"
until [ -s "$T/ended" ]; do
    a datastore info ds --json >> "$T/infos"
    [ $(($(ms) - begin)) -lt 20000 ] || fail "no login at the other: $(cat "$T/login.log")"
done
took=$(($(cat "$T/ended") / 1000000 - begin))
echo "# first write at the other after $took ms"
check 'taken over in time' [ $took -lt 4000 ]
jq -c '.waits[]' "$T/infos" | sed 's/^/# /'
check 'a login waits for the silent host' jq -se '[.[].waits[] | select(.what | startswith("login of iqn"))] | any(.disk == "ds/d" and (.host | length > 0) and
    (.reason | test("silent|ejected")) and .seconds > 0)' "$T/infos"
check 'and this host asks it' jq -se '[.[].waits[] | select(.what == "recovery")] | any(.asked > 0 and .patience == 1.5 and .silent > 0 and .silent <= .patience
    and .ejected == null and .seconds == .asked)' "$T/infos"
check 'the log says how it went' grep -q 'recovered slot .* was gone: it was asked [0-9.]* s ago, and ejected [0-9.]* s ago' "$A/log/storaged.log"
sleep 3
kill -CONT "$pid"
wait_for 10 sh -c "GRANARY_HOME='$B' granary datastore info ds --json | jq -e '.state == \"joined\" and (.hosts | map(select(.self)) | length == 1)'"
sleep 0.5
enough stopped
said stopped '.errors == 0 and .reconnects >= 1'
check 'it says so' grep -q 'has taken its place' "$B/log/storaged.log"
run_check qemu-io -r -f raw -c 'read -P 0x5b 4M 4k' "iscsi://$pb/$td/0"

# --- the array is killed under load: everybody waits, nobody is shut out
load array "$pa" "$td" 60 32768
sleep 1
kill -KILL "$(cat "$ARRAY/run/storaged.pid")"
sleep 3
run_check array up --portal "127.0.0.1:$array_port"
sleep 1
enough array # which it says when the command under way then is answered
said array '.errors == 0 and .ios > 100'
check 'nobody was shut out' [ "$(cat "$A/log/storaged.log" "$B/log/storaged.log" | grep -c 'has taken its place')" = 1 ]
run_check a datastore info ds --json
check 'both are there' jq -e '[.hosts[] | select(.alive)] | length == 2' "$T/out"

run_check b down
run_check a datastore check ds --json
check "sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
run_check a down
run_check a datastore destroy ds --yes
run_mustfail 1 'not a Granary datastore' a datastore join ds "$lun" --user hosts --secret-file "$T/secret"
