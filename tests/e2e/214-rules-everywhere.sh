#!/bin/bash
# Access rules of disks are in their datastore: the same at every host, from the next login on wherever they were changed, and none is lost.
# timeout: 400
. "$(dirname "$0")/lib.sh"
requires jq iscsi-inq iscsi-ls qemu-io
hosts a b
mkdir -p "$A/conf"
me=iqn.2026-11.org.example:me other=iqn.2026-11.org.example:other
# who is let in where the disk stands by hears so
let_in() { iscsi-inq -i "$1" "$2" > "$T/out" 2>&1 || grep -q 'NOT READY.*0x040b' "$T/out"; }
in_ok() { let_in "$@" || { cat "$T/out"; fail "$1 was not let in to $2"; }; }
in_refused() { if let_in "$@"; then fail "$1 was let in to $2"; fi; }
up() { "$1" up --portal 127.0.0.1:0 --multipath-portal 127.0.0.1:0 --mover 127.0.0.1:0 > "$T/out" 2>&1 || { cat "$T/out"; fail "up $1"; }; }
list_of() { "$1" lun list "$2" --json | jq -c '.[0].initiators'; }
run_check a datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
for d in a b c old; do run_check a disk create ds/$d --size 16M; done
printf 'a-long-enough-secret\n' > "$T/secret"; chmod 600 "$T/secret"

# --- rules of a home from before
cat > "$A/conf/access.json" << END
{"version": 1, "disks": {"ds/old": {"initiators": ["$me"]}, "ds/never": {"masked": true}, "discovery": {"chap": {"user": "d", "secret": "0123456789abcd"}}}}
END
up a
up b
check "b has a's old rules" [ "$(list_of b ds/old)" = "[\"$me\"]" ]
check 'they are not in the home any more' jq -e '(.disks | keys == ["discovery"]) and ."set-aside" == {"ds/never": {"masked": true}}' "$A/conf/access.json"
check 'and the log says so' grep -q "rules of 1 disks were brought over into datastore 'ds'" "$A/log/storaged.log"
run_check a lun chap discovery --off
pa=$(a status --json | jq -r .portal) pb=$(b status --json | jq -r .portal)
ma=$(a status --json | jq -r '."multipath-portal"') mb=$(b status --json | jq -r '."multipath-portal"')
name() { a datastore info ds --json | jq -r --arg p "$1" '.hosts[] | select(.portal == $p) | .host'; }
na=$(name "$pa") nb=$(name "$pb")
at() { echo "iscsi://${3:+$3@}$1/iqn.2026-11.local.granary:ds:$2/0"; } # PORTAL DISK [USER%SECRET]
good=joe%a-long-enough-secret bad=joe%a-wrong-secret-here

# --- CHAP, set at a, asked for at every portal, whoever owns the disk
asked() {
    local p
    for p in "$@"; do
        in_refused $me "$(at "$p" a)"
        in_refused $me "$(at "$p" a $bad)"
        in_ok $me "$(at "$p" a $good)"
    done
}
in_ok $me "$(at "$pb" a)"
run_check a lun chap ds/a --user joe --secret-file "$T/secret"
asked "$pa" "$pb" "$ma" "$mb"
run_check a disk move ds/a "$nb"
asked "$pa" "$pb" "$ma" "$mb"
check 'b tells the user' jq -e '.[0]."chap-user" == "joe"' <(b lun list ds/a --json)
if { a lun list --json; b lun list --json; } | grep -q 'long-enough'; then fail 'a secret is listed'; fi
if grep -rq 'long-enough' "$A" "$B" 2> /dev/null; then fail 'a secret is in a home'; fi
run_check b lun chap ds/a --off
in_ok $me "$(at "$pa" a)"
run_check b disk move ds/a "$na"

# --- denied at b: the session at a ends at once; listings follow
run_check b lun acl ds/a --allow $me --allow $other
start mine "$BUILD/tests/tools/live_load" "$pa" iqn.2026-11.local.granary:ds:a 40 $me
wait_for 10 eval "a session list --json | jq -e --arg i $me 'any(.[]; .initiator == \$i)'"
run_check b lun acl ds/a --deny $me
check "nothing to warn of: $(cat "$T/err")" [ ! -s "$T/err" ]
check 'the session is over' jq -e 'length == 0' <(a session list --json)
stop mine
in_refused $me "$(at "$pa" a)"
in_refused $me "$(at "$pb" a)"
in_ok $other "$(at "$pa" a)"
run_check iscsi-ls -i $me "iscsi://$pa"
if grep -q 'ds:a ' "$T/out"; then fail 'a still lists what b took away'; fi

# --- a host that cannot be told is named: its sessions go on, and nobody new is let in there all the same
start other "$BUILD/tests/tools/live_load" "$pa" iqn.2026-11.local.granary:ds:a 60 $other 8192 # behind what the other one wrote
there() { a session list --json | jq -e --arg i $other 'any(.[]; .initiator == $i)'; }
wait_for 10 there
mv "$A/run/storaged.sock" "$A/run/away"
run_check b lun acl ds/a --deny $other --json
check 'a is named' grep -q "^warning: not every host could be told, and sessions there go on until their next login: host '$na'" "$T/err"
check 'also in the answer' jq -e --arg h "$na" '.initiators == [] and (.warning | contains($h))' "$T/out"
in_refused $other "$(at "$pa" a)"
run_check b lun mask ds/c
run_check iscsi-ls -i $me "iscsi://$pa"
if grep -q 'ds:c ' "$T/out"; then fail 'a lists what b masked'; fi
run_check b lun chap ds/old --user joe --secret-file "$T/secret"
in_refused $me "$(at "$pa" old)"
in_ok $me "$(at "$pa" old $good)"
mv "$A/run/away" "$A/run/storaged.sock"
check 'who was there is there' there
run_check b lun chap ds/old --off
run_check a lun unmask ds/c
check 'and goes when a hears of any change' [ "$(a session list --json | jq length)" = 0 ]
stop other

# --- renamed, moved, deleted: the rules are the disk's
run_check b lun acl ds/b --allow $other
run_mustfail 1 'not served' a lun acl ds/nobody --allow $me
run_check "$BUILD/tests/tools/rpc_call" "$A/run/storaged.sock" dir.rename '{"from":"ds/b","to":"ds/d/renamed"}'
check 'with the new name' [ "$(list_of b ds/d/renamed)" = "[\"$other\"]" ]
run_check b disk create ds/b --size 16M
check 'a new one of the old name has none' [ "$(list_of a ds/b)" = null ]
in_ok $me "$(at "$pa" b)"
run_check a disk delete ds/d/renamed
run_check a disk create ds/d/renamed --size 16M
check 'nor does one in the place of what was deleted' [ "$(list_of b ds/d/renamed)" = null ]

# --- nobody gets at them by other ways
for p in ds/granary.access ds/granary.access/rules; do
    run_mustfail 2 "Granary's own" "$BUILD/tests/tools/rpc_call" "$A/run/storaged.sock" file.read "{\"path\":\"$p\"}"
done

pid=$(cat "$A/run/storaged.pid")
# --- both at once, on different disks: nothing is lost
many() { local i; for i in $(seq "$3"); do "$1" lun acl "$2" --allow "iqn.2026-11.org.example:$i" > "$T/many.$1" 2>&1 || { cat "$T/many.$1"; return 1; }; done; }
run_check a lun acl ds/old --deny $me
many a ds/old 100 &
one=$!
many b ds/b 100 || fail 'changes at b'
wait $one || fail 'changes at a'
want=$(seq -f 'iqn.2026-11.org.example:%.0f' 100 | jq -Rsc 'split("\n")[:-1]')
for h in a b; do
    check "all of a's, seen at $h" [ "$(list_of $h ds/old)" = "$want" ]
    check "all of b's, seen at $h" [ "$(list_of $h ds/b)" = "$want" ]
done

# --- a is killed in the middle: what was acknowledged is there, b goes on at once
for round in 1 2 3; do
    said=$T/said.$round
    : > "$said"
    (i=0; while i=$((i + 1)) && GRANARY_HOME=$A timeout 20 granary lun acl ds/c --allow "iqn.2026-11.org.example:$round.$i" > /dev/null 2>&1; do
        echo "iqn.2026-11.org.example:$round.$i" >> "$said"
        [ ! -e "$said.over" ] || break
    done) &
    loop=$!
    wait_for 20 eval "[ \$(wc -l < $said) -ge 2 ]"
    sleep 0.0$((RANDOM % 90 + 10))
    kill -KILL "$pid"
    touch "$said.over"
    run_check b lun acl ds/b --allow "iqn.2026-11.org.example:after.$round" # what a held is taken from it
    wait $loop || true
    list_of b ds/c > "$T/there"
    check "what was acknowledged before the kill $round" jq -e --rawfile s "$said" '. as $l | [$s | split("\n")[:-1][] | select(. as $n | $l | index($n) | not)] == []' "$T/there"
    up a
    pid=$(cat "$A/run/storaged.pid")
    check 'a sees the same' [ "$(list_of a ds/c)" = "$(list_of b ds/c)" ]
done
check "b's are there" jq -e 'index("iqn.2026-11.org.example:after.3")' <(list_of a ds/b)
run_check a datastore check ds

# --- without daemons it is the same
run_check a down
run_check b lun acl ds/a --allow $me
run_check a lun acl ds/a --json
check 'a reads what b wrote' jq -e --arg m "$me" '.initiators == [$m]' "$T/out"
run_check a lun mask ds/a
check "nothing to warn of: $(cat "$T/err")" [ ! -s "$T/err" ]
in_refused $me "$(at "$pb" a)"
run_check b down
run_check a lun unmask ds/a
run_mustfail 1 'does not exist|no such disk|not a disk' b lun mask ds/nobody
run_check b lun acl ds/a --json
check 'b reads' jq -e --arg m "$me" '.initiators == [$m]' "$T/out"
run_check b datastore check ds
