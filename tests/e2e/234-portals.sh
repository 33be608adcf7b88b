#!/bin/bash
# Portals change while initiators work: those that are there notice nothing, nobody new comes in by one that was closed, and whoever is told
# an address (discovery, URLs, the other host, the next daemon) is told one that answers.
. "$(dirname "$0")/lib.sh"
requires jq iscsi-ls iscsi-inq
hosts a b
run_check granary datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
run_check granary disk create ds/a --size 64M
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
name=iqn.2026-11.local.granary:ds:a
first=$(granary status --json | jq -r .portal)
theirs=$(b status --json | jq -r .portal)
load() { start "$1" "$BUILD/tests/tools/live_load" "$2" $name "$3" "iqn.2026-11.local.granary:$1" "$4"; }
said() { check "$1: $2" jq -e "$2" "$T/$1.log"; }
row() { granary portal list --json | jq -e --arg p "$1" ".[] | select(.portal == \$p) | $2" > /dev/null; }
refused() { run_mustfail 10 'Connection refused' iscsi-ls "iscsi://$1"; }

# --- one more, and the first one goes
load one "$first" 60 0
wait_for 20 row "$first" '.sessions == 1'
run_check granary portal add 127.0.0.1:0 --json
second=$(jq -er .portal "$T/out")
check 'it is another' [ "$second" != "$first" ]
load two "$second" 60 8192
wait_for 20 row "$second" '.sessions == 1'
run_check iscsi-inq "iscsi://$first/$name/0"
check 'both are shown' jq -e --arg a "$first" --arg b "$second" '.portals == [$a, $b] and .portal == $a' <(granary status --json)
run_check granary portal remove "$first"
check 'who came in there goes on' grep -qx "portal $first is closed; sessions that came through it and go on: 1" "$T/out"
refused "$first"
check 'a session is there still' sh -c 'granary session list --json | jq -e "length == 2"'
run_check iscsi-ls "iscsi://$second"
check 'discovery names the second' grep -q "Portal:$second," "$T/out"
check 'and no other' [ "$(grep -c Portal: "$T/out")" = 1 ]
check 'so do URLs' jq -e --arg u "iscsi://$second/$name/0" '.[0]."iscsi-url" == $u' <(granary lun list ds/a --json)
check 'and the status' jq -e --arg b "$second" '.portal == $b and .portals == [$b]' <(granary status --json)
check 'the other host is told' jq -e --arg b "$second" 'any(.hosts[]; .portal == $b)' <(b datastore info ds --json)
run_check iscsi-inq "iscsi://$theirs/$name/0" # redirected
check "the other host's list" jq -e --arg u "iscsi://$second/$name/0" '.[0]."iscsi-url" == $u' <(b lun list ds/a --json)

# --- what a new process knows of them: the login process, the heir of an upgrade
run_check granary portal add 127.0.0.1:0 --multipath --json
third=$(jq -er .portal "$T/out")
check 'of the other kind' row "$third" .multipath
kill -KILL "$(pgrep -P "$(cat "$GRANARY_HOME/run/storaged.pid")" -x granary-login)"
wait_for 10 iscsi-inq "iscsi://$second/$name/0"
run_check iscsi-inq "iscsi://$third/$name/0"
refused "$first"
run_check granary upgrade
check 'the portals are those' jq -e --arg b "$second" --arg c "$third" 'map(.portal) == [$b, $c]' <(granary portal list --json)
run_check iscsi-inq "iscsi://$second/$name/0"
run_check iscsi-inq "iscsi://$third/$name/0"
refused "$first"
run_check granary portal add "$first" # the port is free again, while a session of then goes on
run_check granary portal remove "$first"
enough one two
for l in one two; do
    said $l '.errors == 0 and .reconnects == 0 and .ios > 100 and (.attentions | length == 0)'
done

# --- what cannot be
taken=$(free_port)
start taken python3 -c "import socket,time; s=socket.socket(); s.bind(('127.0.0.1',$taken)); s.listen(); open('$T/listens','w'); time.sleep(600)"
wait_for 10 test -e "$T/listens"
one_sentence() { check 'one line' [ "$(wc -l < "$T/err")" = 1 ]; }
no() { run_mustfail 1 "$@"; one_sentence; }
no "127.0.0.1:$taken.*in use" granary portal add "127.0.0.1:$taken"
no "$second' is open already" granary portal add "$second"
no "'x' is not a port" granary portal add 127.0.0.1:x
no 'nowhere.invalid' granary portal add nowhere.invalid:3260
no "0.0.0.0:0' is not a loopback address.*access list or CHAP" granary portal add 0.0.0.0:0
no "$first' is not open" granary portal remove "$first"
no "$second' is the last by which" granary portal remove "$second"
no "without --portal 127.0.0.1:$taken.*granary portal add" granary up --portal "127.0.0.1:$taken"
run_mustfail 2 'too few' granary portal add
check 'nothing changed' jq -e --arg b "$second" --arg c "$third" 'map(.portal) == [$b, $c]' <(granary portal list --json)

# --- beyond the loopback: as soon as there is access control, and nobody reads a snapshot that is for all of this machine
run_check granary snapshot create ds/a --name s
run_check granary lun acl ds/a --allow 'iqn.2026-11.*'
run_check "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" snapshot.expose '{"disk":"ds/a","snapshot":"s"}'
id=$(jq -er .id "$T/out")
no 'ds/a@s is exposed to every initiator' granary portal add 0.0.0.0:0
check 'it is not open' sh -c '! granary portal list --json | jq -e "any(.[].portal; startswith(\"0.0.0.0\"))"'
run_check "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" snapshot.unexpose "{\"id\":\"$id\"}"
run_check granary portal add 0.0.0.0:0 --json
wide=$(jq -er .portal "$T/out")
run_mustfail 2 'name the initiator' "$BUILD/tests/tools/rpc_call" "$GRANARY_HOME/run/storaged.sock" snapshot.expose '{"disk":"ds/a","snapshot":"s"}'
run_check granary portal remove "$wide"

# --- the next daemon opens what was open last, unless it is asked for something else
run_check granary down
run_check granary up
check 'the same again' jq -e --arg b "$second" --arg c "$third" 'map(.portal) == [$b, $c]' <(granary portal list --json)
kill -KILL "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary up
check 'also after a kill' jq -e --arg b "$second" --arg c "$third" 'map(.portal) == [$b, $c]' <(granary portal list --json)
run_check granary portal remove "$third"
run_check granary down
run_check granary up --portal "$first" --portal 127.0.0.1:0
check 'what was asked for, a port of 0 as it was' jq -e --arg a "$first" --arg b "$second" 'map(.portal) == [$a, $b]' <(granary portal list --json)
run_check granary up --portal "$second"
run_check granary down
check 'nothing without a daemon' jq -e 'length == 0' <(granary portal list --json 2> /dev/null)
run_mustfail 1 "granary up" granary portal add 127.0.0.1:0
run_check b down
