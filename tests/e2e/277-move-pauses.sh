#!/bin/bash
# A host stands still (SIGSTOP) in the middle of a disk's move to another host, or of a snapshot of disks of two hosts that it leads, for longer than anybody
# waits: at each step of their talk (tests/matrix/pause.c). Then the disk is one host's, writes that were answered are there, and all disks have the snapshot, or none.
# timeout: 300
. "$(dirname "$0")/lib.sh"
requires jq
. "$TOP/tests/matrix/pause.sh"
hosts a b
owner_of() { "$1" datastore info ds --json | jq -r '.hosts[] | select(.self) | .host'; }
up() { # HOST
    pause_plan "$T/pause-$1"
    LD_PRELOAD=$PAUSE_LIBRARY GRANARY_PAUSE_FILE=$T/pause-$1 run_check "$1" up --portal 127.0.0.1:0 --mover 127.0.0.1:0
}
run_check a datastore create ds "$T/ds.img" --size 512M
run_check b datastore join ds "$T/ds.img"
for d in x y; do run_check a disk create ds/$d --size 1M; done
up a
up b
home_a=$(owner_of a) home_b=$(owner_of b)
pa=$(a status --json | jq -r .portal)
url() { a lun list "ds/$1" --json | jq -r '"iscsi://" + "'"$pa"'" + "/" + .[0].target + "/0"'; }
ux=$(url x) uy=$(url y)
owners() { echo "$(a disk info "ds/$1" --json | jq '."owner-self"')/$(b disk info "ds/$1" --json | jq '."owner-self"')"; }
one_owner() { case $(owners "$1") in true/false | false/true) ;; *) return 1 ;; esac; }
content() { # HOST DISK: the number in it
    rm -f "$T/out.raw"
    run_check "$1" snapshot create "ds/$2" --name now
    run_check "$1" disk export "ds/$2@now" "$T/out.raw"
    run_check "$1" snapshot delete "ds/$2@now"
    od -An -N8 -tu8 "$T/out.raw" | tr -d ' '
}
declare -A landed

stand_still() { # HOST 'WHEN METHOD' COMMAND...: it comes to a halt there, for 2.6 s
    local pid host=$1 home=$A place=$2
    [ "$host" = a ] || home=$B
    pid=$(cat "$home/run/storaged.pid")
    on_exit "kill -CONT $pid"
    pause_at "$T/pause-$host" "$place"
    shift 2
    start command "$@"
    pause_landed "$T/pause-$host" "$pid"
    landed[$place]=$((${landed[$place]:-0} + 1))
    sleep 2.6
    kill -CONT "$pid"
    over command
}
# ---- moves: x goes from a to b, and a or b stands still ----
for step in 'a asks' 'b asked' 'b answers' 'a hears'; do
    [ "$(owners x)" = true/false ] || run_check b disk move ds/x "$home_a"
    start chain "$BUILD/tests/tools/lun_chain" 60 "$ux" "$uy"
    sleep 0.3
    stand_still "${step% *}" "${step#* } disk.take" env GRANARY_HOME="$A" granary disk move ds/x "$home_b"
    wait_for 20 one_owner x
    sleep 0.5
    enough chain
    last=$(jq .last "$T/chain.log")
    check 'writes went on' [ "$last" -gt 20 ]
    h=b
    [ "$(owners x)" = false/true ] || h=a
    check 'what was answered is there' [ "$(content $h x)" = "$last" ]
    outcome+=" $step: $(owners x) ($(jq '."longest-ms"' "$T/chain.log") ms);"
done
echo "# the disk is a's/b's:$outcome"

# ---- a group's leader: x is a's, y is b's ----
[ "$(owners x)" = true/false ] || run_check b disk move ds/x "$home_a"
[ "$(owners y)" = false/true ] || run_check a disk move ds/y "$home_b"
outcome='' n=0
for step in 'asks snapshot.hold' 'hears snapshot.hold' 'asks snapshot.take' 'hears snapshot.take' 'asks snapshot.settle' 'hears snapshot.settle'; do
    n=$((n + 1))
    start chain "$BUILD/tests/tools/lun_chain" 60 "$uy"
    sleep 0.3
    stand_still a "$step" env GRANARY_HOME="$A" granary snapshot create ds/x ds/y --name "s$n"
    enough chain
    check 'writes went on' [ "$(jq .last "$T/chain.log")" -gt 20 ]
    check 'and did not wait for it' jq -e '."longest-ms" < 2000' "$T/chain.log"
    have=
    for d in x y; do
        h=a
        [ $d = x ] || h=b
        wait_for 20 eval "[ \"\$($h disk info ds/$d --json | jq .snapshots)\" = \"\$($h snapshot list ds/$d --json | jq length)\" ]"
        run_check $h snapshot list "ds/$d" --json
        jq -e --arg n "s$n" 'any(.name == $n)' "$T/out" > /dev/null && have+=$d
    done
    [ "$have" = xy ] || [ -z "$have" ] || fail "$step: only '$have' has the snapshot; $(cat "$T/command.log")"
    outcome+=" $step: ${have:-none};"
done
echo "# who has the snapshot:$outcome"
for step in "${!landed[@]}"; do echo "# stood still when it $step: ${landed[$step]}"; done
check 'at each step' [ "${#landed[@]}" = 10 ]
run_check b down
run_check a down
run_check a datastore check ds --json
check 'sound' jq -e '.sound and ."leaked-units" == 0' "$T/out"
