#!/bin/bash
# A part of a group is deleted where its disk is owned, by a name that only those know who look at the group: what has got the snapshot's name since
# stays, also after the disk has moved.
. "$(dirname "$0")/lib.sh"
requires jq
hosts a b
rpc() { "$BUILD/tests/tools/rpc_call" "$A/run/storaged.sock" "$@"; }
group=bbbbbbbb-1111-4222-8333-444444444444 other=cccccccc-1111-4222-8333-444444444444
names() { a snapshot list ds/d --json | jq -r '[.[].name] | join(" ")'; }
part() { rpc snapshot.delete '{"disk":"ds/d","snapshot":"s","group":"'"$1"'"}'; }

run_check a datastore create ds "$T/ds.img" --size 256M
run_check a up --portal 127.0.0.1:0
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0
run_check a disk create ds/d --size 16M
run_check rpc snapshot.create '{"disks":["ds/d"],"name":"s","group":"'$group'"}'
run_check a disk move ds/d "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"
run_mustfail 1 "is not of group $other" part $other
check 'it is there' [ "$(names)" = s ]
run_check part $group
check 'it is gone' [ "$(names)" = '' ]
check 'the owner was asked as one that knows' [ "$(b audit --json | jq -c '[.[] | select(.result != "begun") | .method] | .[-2:]')" = '["snapshot.delete-part","snapshot.delete-part"]' ]

# --- another one of that name
run_check a snapshot create ds/d --name s
run_mustfail 1 "is not of group $group" part $group
check 'it stays' [ "$(names)" = s ]
run_check a snapshot delete ds/d@s
check 'without a group by its old name' [ "$(b audit --json | jq -r '[.[] | .method] | last')" = snapshot.delete ]
