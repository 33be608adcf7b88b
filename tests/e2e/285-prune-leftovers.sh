#!/bin/bash
# Prune, and what happens meanwhile: a snapshot made anew under the same name stays, so does one that expires later now; a host that cannot be asked
# does not stop the rest, and keeps what was taken together with its disks; what is named first is shown even if what is named last fails.
# timeout: 120
. "$(dirname "$0")/lib.sh"
requires jq
hosts a b
is() { check "$1" jq -e "$1" "$T/out"; }
names() { a snapshot list "$1" --json | jq -r '[.[].name] | join(" ")'; }
why() { jq -r --arg d "$1" --arg n "$2" '.[] | select(.disk == $d and .name == $n) | .why' "$T/out"; }
rpc() { "$BUILD/tests/tools/rpc_call" "$A/run/storaged.sock" "$@"; }
run_check a datastore create ds "$T/ds.img" --size 256M
run_check a up --portal 127.0.0.1:0
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0
for d in a1 a2 b1; do run_check a disk create ds/$d --size 8M; done
for s in one two three; do run_check a snapshot create ds/a1 --name $s --expire 1h; done
for s in one two three; do rpc snapshot.expire '{"disk":"ds/a1","snapshot":"'$s'","expires":1}' > "$T/rpc"; done
run_check a snapshot create ds/a2 ds/b1 --name both --expire 1h # an instant of two disks
for d in a2 b1; do rpc snapshot.expire '{"disk":"ds/'$d'","snapshot":"both","expires":1}' > "$T/rpc"; done
run_check a snapshot create ds/b1 --name alone --expire 1h
rpc snapshot.expire '{"disk":"ds/b1","snapshot":"alone","expires":1}' > "$T/rpc"
run_check a disk move ds/b1 "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"

# --- what is said of an expiry
run_check a snapshot expire ds/a2@both 1h
check 'when' grep -qE 'ds/a2@both expires on 20[0-9]{2}-' "$T/out"
run_check a snapshot expire ds/a2@both off
check 'never' grep -q 'does not expire any more' "$T/out"
run_mustfail 2 "neither 'off' nor a time" a snapshot expire ds/a2@both never
run_mustfail 2 'at most 75y' a snapshot create ds/a2 --name x --expire 76y
run_check a snapshot create ds/a2 --name x --expire 75y
run_check a snapshot delete ds/a2@x
rpc snapshot.expire '{"disk":"ds/a2","snapshot":"both","expires":1}' > "$T/rpc"

# --- while one host takes its time, names change hands
b up --json | jq -r '."storaged-pid"' > "$T/pid.b"
kill -STOP "$(cat "$T/pid.b")"
on_exit 'kill -CONT $(cat $T/pid.b)'
GRANARY_HOME=$A start prune granary snapshot prune ds/a1 --json
sleep 2 # a1 has been looked at, and b1's host is asked
run_check a snapshot delete ds/a1@one
run_check a snapshot create ds/a1 --name one --expire 1h
rpc snapshot.expire '{"disk":"ds/a1","snapshot":"one","expires":1}' > "$T/rpc" # expired as well, but nobody has judged it
run_check a snapshot expire ds/a1@two 1h
run_check a snapshot delete ds/a1@three
kill -CONT "$(cat "$T/pid.b")"
over prune
cp "$T/prune.log" "$T/out"
check 'another one of that name' [ "$(why ds/a1 one)" = 'it is not what it was when it was judged' ]
check 'one that expires later' [ "$(why ds/a1 two)" = 'it is not what it was when it was judged' ]
check 'one that is gone' [ "$(why ds/a1 three)" = 'it is gone already' ]
check 'both are there' [ "$(names ds/a1 | tr ' ' '\n' | sort | tr '\n' ' ')" = 'one two ' ]

# --- a host that cannot be asked
mv "$B/run/storaged.sock" "$B/run/away"
status=0
a snapshot prune ds --json > "$T/out" 2> "$T/err" || status=$?
check 'partly done' [ $status = 3 ]
check 'it says what was not' grep -q 'ds/b1@[a-z]* is not judged: .*does not answer' "$T/err"
check 'the rest is' [ "$(names ds/a1)" = two ]
check 'what was taken with it stays' [ "$(why ds/a2 both)" = 'its group stays on ds/b1' ]
is '[.[] | select(.disk == "ds/b1") | .why] == ["its host does not answer","its host does not answer"]'
run_mustfail 3 'before ds/nothing is done.*does not exist' a snapshot prune ds/a1 ds/nothing
check 'what was named first is shown' grep -q 'not expired' "$T/out"
run_check a snapshot prune ds/a2
mv "$B/run/away" "$B/run/storaged.sock"
run_check a snapshot prune ds --json
is '[.[] | select(.deleted) | .disk + "@" + .name] | sort == ["ds/a2@both","ds/b1@alone","ds/b1@both"]'
run_check a datastore check ds
