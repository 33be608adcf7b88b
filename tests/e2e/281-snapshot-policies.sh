#!/bin/bash
# Which snapshots stay: policies of folders and disks, inherited; what expires, what is protected, groups as a whole; with and without the daemon, on
# two hosts, and by whoever is killed.
# timeout: 200
. "$(dirname "$0")/lib.sh"
requires jq
hosts a b
j() { run_check a "$@" --json; }
is() { check "$1" jq -e "$1" "$T/out"; }
names() { a snapshot list "$1" --json | jq -r '[.[].name] | join(" ")'; }
run_check a datastore create ds "$T/ds.img" --size 512M
for d in vm1/root vm1/data vm2/root lone; do run_check a disk create ds/$d --size 8M; done

# --- said, shown, inherited
run_mustfail 2 'a policy says what to keep' a snapshot policy ds/vm1 --prefix x-
run_mustfail 2 'say which' a snapshot policy ds/vm1 --clear --keep-last 2
run_mustfail 2 "keep-daily" a snapshot policy ds/vm1 --keep-daily many
run_mustfail 2 "must not contain" a snapshot policy ds/vm1 --keep-daily 1 --prefix a/b
run_mustfail 1 'does not exist' a snapshot policy ds/nothing --keep-last 2
j snapshot policy ds; is '.policy | not'
j snapshot policy ds --keep-daily 7 --keep-weekly 4; is '.policy and .from == "ds" and ."keep-daily" == 7 and ."keep-weekly" == 4 and .prefix == "auto-"'
j snapshot policy ds/vm1 --keep-last 2 --prefix vm1-; is '.from == "ds/vm1" and ."keep-daily" == 0'
j snapshot policy ds/vm1/root; is '.from == "ds/vm1" and .prefix == "vm1-"'
j snapshot policy ds/vm2/root; is '.from == "ds"'
j snapshot policy ds/lone --none; is '(.policy | not) and .from == "ds/lone"'
j snapshot policy ds/lone --clear; is '.policy and .from == "ds"'
run_check a snapshot policy ds/lone --none

# --- taken: an instant for each folder
run_mustfail 1 'has no snapshot policy' a snapshot create ds/lone --policy
run_mustfail 2 'leave --name away' a snapshot create ds/vm1 --policy --name x
run_mustfail 2 'two prefixes' a snapshot create ds/vm1/root ds/vm2/root --policy
j snapshot create ds --policy; is 'length == 3 and ([.[] | select(.disk | startswith("ds/vm1/")) | .group] | unique | length == 1)'
is '[.[].name | split("-")[0]] | unique == ["auto","vm1"]'
sleep 1.1
run_check a up --portal 127.0.0.1:0 # the rest with the daemon
run_check a snapshot create ds/vm1 --policy
sleep 1.1
run_check a snapshot create ds/vm1 --policy
read -r first second third <<< "$(names ds/vm1/root)"
run_check a snapshot create ds/vm1/root --name by-hand

# --- kept: groups stay or go as one
run_check a snapshot protect ds/vm1/data@"$first" --reason 'audit of 2026' --by 'ops@site'
j snapshot prune ds --dry-run
is "[.[] | select(.name == \"$first\") | .why] == [\"protected\",\"its group stays on ds/vm1/data\"] or [.[] | select(.name == \"$first\") | .why] == [\"its group stays on ds/vm1/data\",\"protected\"]"
is '[.[] | select(.keep | not)] == []'
is '[.[] | select(.name == "by-hand") | .why] == ["not of the policy"]'
run_check a snapshot unprotect ds/vm1/data@"$first"
j snapshot prune ds/vm1/root --dry-run; is "[.[] | select(.keep | not) | .disk] | sort == [\"ds/vm1/data\",\"ds/vm1/root\"]"
check 'a dry run removes nothing' [ "$(names ds/vm1/data)" = "$first $second $third" ]
j snapshot prune ds/vm1/root; is "[.[] | select(.deleted) | .name] == [\"$first\",\"$first\"]" # the other disk's goes along
check 'two stay' [ "$(names ds/vm1/root)" = "$second $third by-hand" ]
check 'of both' [ "$(names ds/vm1/data)" = "$second $third" ]
j snapshot prune ds; is '[.[] | select(.keep | not)] == []'

# --- protected: who and why
run_check a snapshot protect ds/vm1/root@by-hand --reason 'audit of 2026' --by 'ops@site'
j snapshot list ds/vm1/root; is '.[] | select(.name == "by-hand") | .protected and ."protected-by" == "ops@site" and ."protected-why" == "audit of 2026"'
run_mustfail 4 'protected by ops@site since .*: audit of 2026' a snapshot delete ds/vm1/root@by-hand
run_mustfail 4 'protected by ops@site' a disk delete ds/vm1/root
run_check a snapshot revert ds/vm1/root@"$second" # later ones stay
check 'it is still there' [ "$(names ds/vm1/root)" = "$second $third by-hand" ]

# --- expiring
run_mustfail 2 'time to live' a snapshot create ds/vm2/root --name e --expire soon
j snapshot create ds/vm2/root ds/vm1/data --name e --expire 7d; is '.[0].expires > now + 604000 and .[0].expires < now + 605000'
j snapshot prune ds; is '[.[] | select(.name == "e") | .why] | unique == ["not expired"]'
run_check a snapshot expire ds/vm2/root@e off
run_check a snapshot expire ds/vm2/root@e 1m
"$BUILD/tests/tools/rpc_call" "$A/run/storaged.sock" snapshot.expire '{"disk":"ds/vm1/data","snapshot":"e","expires":1}' > "$T/rpc"
j snapshot prune ds; is '[.[] | select(.name == "e") | .why] | sort == ["its group stays on ds/vm2/root","not expired"]'
"$BUILD/tests/tools/rpc_call" "$A/run/storaged.sock" snapshot.expire '{"disk":"ds/vm2/root","snapshot":"e","expires":1}' > "$T/rpc"
run_check a snapshot create ds/vm2/root --name f --expire 1h
j snapshot prune ds; is '[.[] | select(.name == "e") | .deleted] == [true,true]'

# --- killed: what was answered is there
run_check a snapshot protect ds/vm2/root@f --reason 'and it lasts'
pid=$(a up --json | jq -r '."storaged-pid"')
kill -KILL "$pid"
run_check a up --portal 127.0.0.1:0
run_mustfail 4 'and it lasts' a snapshot delete ds/vm2/root@f
j snapshot list ds/vm2/root; is '.[] | select(.name == "f") | .expires > 0'
run_check a snapshot unprotect ds/vm2/root@f

# --- another host has a disk: one prune does for all
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0
run_check a disk move ds/vm1/data "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"
j snapshot policy ds/vm1 --keep-last 1 --prefix vm1-
check 'b reads the same policy' [ "$(b snapshot policy ds/vm1/data --json | jq '."keep-last"')" = 1 ]
run_check b snapshot create ds/vm1 --policy
run_check b snapshot prune ds/vm1 --json
check 'on both hosts' jq -e '([.[] | select(.deleted) | .disk] | unique) == ["ds/vm1/data","ds/vm1/root"]' "$T/out"
check 'one of the policy is left' [ "$(names ds/vm1/data | tr ' ' '\n' | grep -c '^vm1-')" = 1 ]
run_check a datastore check ds
