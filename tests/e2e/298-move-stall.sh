#!/bin/bash
# A disk with a large, much changed map is given from host to host under load: it is nowhere for 20 ms at most, counted from when its initiators are asked
# to go (the median of five moves; three attempts, for the machine may be busy with something else). On a LUN the array is one more program at work on the same
# cores, and each block is some round trips to it, so what is due to that is allowed for.
# alone
# timeout: 400
. "$(dirname "$0")/lib.sh"
requires jq qemu-img
for store in file lun; do
    for attempt in 1 2 3; do
        ! LIMIT=$([ $store = file ] && echo 20 || echo 100) STORES=$store B=$BUILD "$TOP/tests/bench/move.sh" 5 > "$T/$store.log" 2>&1 || break
        [ $attempt -lt 3 ] || fail "$(cat "$T/$store.log")"
    done
    sed 's/^/# /' "$T/$store.log"
done
