#!/bin/bash
# Two hosts on a LUN of an array that has to prove who it is, too; the LUN grows while they work, and the datastore with it.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b array
secret() { echo "$2" > "$T/$1"; chmod 600 "$T/$1"; }
secret ours a-secret-of-the-hosts
secret theirs another-of-the-array
secret wrong something-quite-different

run_check array lun add store "$T/store.img" --size 512M
run_check array lun chap store --user hosts --secret-file "$T/ours" --mutual-user array --mutual-secret-file "$T/theirs"
run_check array up --portal 127.0.0.1:0
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
login=(--user hosts --secret-file "$T/ours" --target-user array --target-secret-file "$T/theirs")

# --- an array that does not prove itself gets no byte
run_mustfail 1 'CHAP|uthent|target|refuse' a datastore create ds "$lun" --user hosts --secret-file "$T/ours" --target-user array --target-secret-file "$T/wrong"
run_mustfail 1 'CHAP|uthent|target|refuse' a datastore create ds "$lun" --user hosts --secret-file "$T/ours" --target-user somebody --target-secret-file "$T/theirs"
run_mustfail 2 'go together' a datastore create ds "$lun" --user hosts --secret-file "$T/ours" --target-user array
check 'nothing was written' sh -c "! tr -d '\\0' < '$T/store.img' | head -c 1 | grep -q ."
run_check a datastore create ds "$lun" --timing fast "${login[@]}"
run_mustfail 1 'CHAP|uthent|target|refuse' b datastore join ds "$lun" --user hosts --secret-file "$T/ours" --target-user array --target-secret-file "$T/wrong"
run_check b datastore join ds "$lun" "${login[@]}"
for d in one two; do run_check a disk create ds/$d --size 400M; done
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
run_check a disk move ds/two "$(b datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')"
pa=$(a status --json | jq -r .portal)
target() { a lun list "$1" --json | jq -r '.[0].target'; }

# --- the array is started anew: both come back, with both proofs
run_check array down
run_check array up
start load "$BUILD/tests/tools/live_load" "$pa" "$(target ds/one)" 8 iqn.2026-11.local.granary:grows 0
sleep 0.5

# --- growth
size() { "$1" datastore info ds --json | jq .size; }
before=$(size a)
run_mustfail 2 "make it larger where it is served" a datastore grow ds 768M
run_check array lun resize store 768M
run_check a datastore grow ds 768M
check 'a has it' [ "$(size a)" -gt $((before + (200 << 20))) ]
check 'and b' [ "$(size b)" = "$(size a)" ]
run_check qemu-io -f raw -c 'write -P 0x61 50M 300M' "iscsi://$pa/$(target ds/one)/0"
run_check qemu-io -f raw -c 'write -P 0x62 50M 300M' "iscsi://$pa/$(target ds/two)/0" # more than there was
run_check qemu-io -r -f raw -c 'read -P 0x61 50M 300M' "iscsi://$pa/$(target ds/one)/0"
run_check qemu-io -r -f raw -c 'read -P 0x62 50M 300M' "iscsi://$pa/$(target ds/two)/0"
wait_for 30 eval "! ps -p $(cat "$T/load.pid") -o stat= | grep -qv Z"
echo "# $(cat "$T/load.log")"
check 'nobody noticed' jq -e '.errors == 0 and .ios > 100' "$T/load.log"

# --- what shrinks is not followed
run_mustfail 1 "not shrink" array lun resize store 512M
run_check b down
run_check a datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
