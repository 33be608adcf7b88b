#!/bin/bash
# Two machines, as network namespaces, show one datastore on a LUN of an array in a third as a file system: each operation through one of the two agrees
# with a model, also while the daemons are killed and taken over from; locks count; what was synced on a host that dies, or loses its way to the array, is here.
# On files 241 does the same and more.
# timeout: 300
. "$(dirname "$0")/lib.sh"
requires python3 jq ip nsenter
[ -c /dev/fuse ] || skip 'no /dev/fuse'
requires_root
export PATH=$BUILD/tests/tools:$PATH
MA=$T/mnt-a MB=$T/mnt-b
mkdir "$MA" "$MB"
hosts a b array
machines a b s
wire a 10.78.1.1 s 10.78.1.9
wire b 10.78.2.1 s 10.78.2.9
wire a 10.78.3.1 b 10.78.3.2
on() { # NAMESPACE HOME CMD...: only its network is another, so that mounts are seen here
    local n=$1 home=$2; shift 2
    GRANARY_HOME=$home nsenter "--net=/run/netns/$N$n" "$@"
}
a() { on a "$A" granary "$@"; }
b() { on b "$B" granary "$@"; }
array() { on s "$ARRAY" granary "$@"; }
on_exit "b unmount --force '$MB'"
on_exit "a unmount --force '$MA'"
run_check array lun add store "$T/array.img" --size 1G
run_check array up --portal 10.78.1.9:3260 --portal 10.78.2.9:3260 --insecure
target=$(array lun list --json | jq -r '.[0].target')
run_check a datastore create ds "iscsi://10.78.1.9/$target/0" --timing fast
run_check b datastore join ds "iscsi://10.78.2.9/$target/0"
up() { run_check "$1" up --portal "$2:3260" --insecure --link "$2:3999"; }
up a 10.78.3.1
up b 10.78.3.2
run_check a datastore info ds --json
check 'on a shared LUN, with links' jq -e '."shared-luns" and ([.hosts[].address] | all(startswith("hostlink://10.78.3.")))' "$T/out"
run_check a datastore mount ds "$MA"
run_check b datastore mount ds "$MB"

# ---- one file system: each operation goes through one of the two ----
mkdir "$MA/work"
run_check fs_model "${GRANARY_SOAK:-5}" "$MA/work" "$MB/work"
mkdir "$MA/again"
FS_MODEL_KILLS=1 start model fs_model 120 "$MA/again" "$MB/again"
sleep 1.5
kill -9 "$(cat "$A/run/storaged.pid")"
up a 10.78.3.1
sleep 1.5
kill -9 "$(cat "$B/run/storaged.pid")"
up b 10.78.3.2
sleep 1
enough model
check 'the model and both hosts agree' grep -q operations "$T/model.log"

# ---- at the same time ----
for kind in flock ofd; do
    pids=()
    for m in "$MA" "$MB"; do
        fs_model count 40 "$kind" "$m/counter" &
        pids+=($!)
    done
    for p in "${pids[@]}"; do wait "$p" || fail "counting under $kind locks failed"; done
    check "no count was lost under $kind locks" [ "$(cat "$MB/counter")" = 80 ]
    rm "$MB/counter"
done

# ---- a host loses its way to the array with a file: the other has it, once it is shut out ----
printf 'from b' > "$MB/last"
sync "$MB/last"
ip -n "${N}b" link set tos down
check 'what was synced there is here' [ "$(timeout 60 cat "$MA/last")" = 'from b' ]
printf 'a was here' > "$MA/last"
sync "$MA/last"
ip -n "${N}b" link set tos up
same() { [ "$(timeout 20 cat "$MB/last" 2> /dev/null)" = 'a was here' ]; }
wait_for 60 same

# ---- and dies with one ----
printf 'b once more' > "$MB/dead"
sync "$MB/dead"
kill -9 "$(cat "$B/run/storaged.pid")"
check 'what was synced there is here' [ "$(timeout 60 cat "$MA/dead")" = 'b once more' ]
up b 10.78.3.2
check 'and there' [ "$(timeout 60 cat "$MB/dead")" = 'b once more' ]
run_check a unmount "$MA"
run_check b unmount "$MB"
run_check b down
run_check a datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
