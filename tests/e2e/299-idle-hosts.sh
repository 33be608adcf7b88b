#!/bin/bash
# Two hosts with initiators logged in and nothing to do, as the array sees them: at most one small read per interval and host, and no writes.
# idle
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array
run_check array lun add store "$T/store.img" --size 512M
run_check array up --portal "127.0.0.1:$(free_port)"
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
run_check a datastore create ds "$lun"
run_check b datastore join ds "$lun"
for d in a b; do run_check a disk create ds/$d --size 64M; done
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check a disk move ds/b "$(b status --json | jq -r .portal)"
for h in a b; do # a disk each, written, and its initiator stays
    url=iscsi://$($h status --json | jq -r .portal)/$(a lun list ds/$h --json | jq -r '.[0].target')/0
    start user-$h qemu-io -f raw -c 'write 0 1M' -c 'flush' -c 'write 8M 64k' -c 'sleep 100000' "$url"
done
for h in "$A" "$B"; do wait_for 20 sh -c "GRANARY_HOME='$h' granary session list --json | jq -e 'any(.[]; .writes >= 2)'"; done
count() { array lun stat --json | jq -c '.[0] | [.reads, .writes, ."read-bytes"]'; }
sleep 5 # what was begun is done
before=$(count)
sleep 20
after=$(count)
echo "# in 20 s: reads, writes and bytes read from $before to $after"
check 'one small read a second and host at most, and no writes' jq -en "$before as \$b | $after as \$a | \$b[1] > 0 and \$a[1] == \$b[1] and \$a[0] - \$b[0] >= 20 and \$a[0] - \$b[0] <= 2 * 21 and \$a[2] - \$b[2] <= 4096 * (\$a[0] - \$b[0])"
run_check b disk list ds --json
check 'a disk each' jq -e 'map(."owner-self") | sort == [false, true]' "$T/out"
for h in a b; do stop user-$h KILL; done
