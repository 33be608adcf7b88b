#!/bin/bash
# One instant of disks that three hosts on a LUN own, and initiators write: of writes that depend on each other over the disks no snapshot has an effect
# without its cause, whoever leads. A host is killed in the middle, each in turn: then all disks have the snapshot, or none.
# timeout: 400
# GRANARY_ROUNDS: how often somebody is killed
# shellcheck disable=SC2154 # numbers and have are groups.sh's
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/groups.sh"
requires jq
HOSTS=(a b c)
hosts "${HOSTS[@]}" array
declare -A portal name home_of=([x]=a [y]=b [z]=c)

run_check array lun add store "$T/store.img" --size 1G
run_check array up --portal "127.0.0.1:$(free_port)"
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
run_check a datastore create ds "$lun" --timing fast
for d in x y z; do run_check a disk create ds/$d --size 1M; done
for h in "${HOSTS[@]}"; do
    [ $h = a ] || run_check $h datastore join ds "$lun"
    run_check $h up --portal 127.0.0.1:0
    portal[$h]=$($h status --json | jq -r .portal)
    name[$h]=$($h datastore info ds --json | jq -r '.hosts[] | select(.self) | .host')
done
check 'each has tried what the array honours' sh -c "! grep -h 'cannot be tried' '$T'/home/log/storaged.log '$T'/[bc]/log/storaged.log"
run_check a datastore info ds --json
check 'three hosts on a LUN' jq -e '."shared-luns" and ([.hosts[] | select(.alive)] | length) == 3' "$T/out"
owner() { # DISK: the host
    local h
    for h in "${HOSTS[@]}"; do
        if $h disk info "ds/$1" --json | jq -e '."owner-self"' > /dev/null; then echo $h; fi
    done
}
home() { # each disk is at its host
    local d
    for d in x y z; do
        [ "$(owner $d)" = "${home_of[$d]}" ] || run_check "${HOSTS[0]}" disk move ds/$d "${name[${home_of[$d]}]}"
    done
}
home
for d in x y z; do check "$d has its host" [ "$(owner $d)" = "${home_of[$d]}" ]; done
url() { a lun list "ds/$1" --json | jq -r '"iscsi://'"${portal[a]}"'/" + .[0].target + "/0"'; }
ux=$(url x) uy=$(url y) uz=$(url z)
chain() { start chain "$BUILD/tests/tools/lun_chain" "$1" "$ux" "$uy" "$uz"; sleep 0.5; }
chain_over() {
    wait_for 40 ended chain
    echo "# $(cat "$T/chain.log")"
    check 'the writer went on' jq -e ".last > $1" "$T/chain.log"
}

# --- while all is well, whoever is asked and whoever leads
chain 15
for i in 1 2 3; do
    run_check a snapshot create ds/x ds/y ds/z --name "a$i" --json
    check 'a row for each disk, of one group' jq -e '[.[].disk] == ["ds/x","ds/y","ds/z"] and ([.[].group] | unique | length == 1)' "$T/out"
    run_check b snapshot create ds/y ds/z ds/x --name "b$i"
    run_check c snapshot create ds/x ds/z ds/y --name "c$i"
done
chain_over 50
for i in a1 b1 c1 a2 b2 c2 a3 b3 c3; do consistent $i; done
echo "# numbers:$numbers"

# --- each is killed in the middle of one
outcome=
for round in $(seq "${GRANARY_ROUNDS:-3}"); do
    home
    chain 3
    h=${HOSTS[$((round % 3))]}
    run=${h^^}
    pid=$(cat "${!run}/run/storaged.pid")
    start make env GRANARY_HOME="$A" granary snapshot create ds/x ds/y ds/z --name "k$round"
    sleep "0.0$(printf %02d $((RANDOM % 80)))"
    kill -KILL "$pid"
    wait "$(cat "$T/make.pid")" || true
    run_check $h up --portal "${portal[$h]}"
    chain_over 3
    whole "k$round" "round $round, $h was killed"
    outcome+=" $h:${have:-none}"
done
echo "# outcomes:$outcome"
run_check a datastore check ds
