#!/bin/bash
# The host agent, or the storage service, killed at one system call after another while a snapshot of a machine with its memory is taken, or while the
# machine is reverted to one. Afterwards the machine is in a state that has a name, a snapshot that is said to be whole is, the same command given again
# does it, and nothing is left. The machine has no system: its memory is what its firmware left.
# GRANARY_KILLS=N: trials of each of the four (1). GRANARY_SOAK: each call of each. GRANARY_KILL='revert storaged pwrite64 4':
# this one alone, as a failure names it.
# timeout: 240
. "$(dirname "$0")/lib.sh"
requires qemu-system-x86_64 jq strace
send=$BUILD/tests/tools/scsi_send call=$BUILD/tests/tools/rpc_call
[ -x "$send" ] && [ -x "$call" ] || skip "needs $send and $call (make tools)"
strace -o /dev/null -e trace=none true 2> /dev/null || skip "strace may not trace here"
export GRANARY_ENGINE=sync # whatever it does is a system call
seed=${GRANARY_SEED:-$(date +%s)}
echo "# GRANARY_SEED=$seed"
RANDOM=$((seed % 32768))

state() { granary vm info web --json 2> /dev/null | jq -r "$1"; }
shot() { granary vm snapshots web --json | jq -r --arg n "$1" ".[] | select(.name == \$n) | $2"; }
files() { "$call" "$GRANARY_HOME/run/storaged.sock" dir.list '{"path": "ds/web"}' | jq -r '[.[].name] | sort | join(" ")'; }
count() { granary datastore check ds --json | jq .objects; }
url() { granary lun list "ds/web/$1" --json | jq -r '.[0]."iscsi-url"'; }
block() { "$send" --in 512 "$(url "$1")" 28000000000000000100 | cut -d' ' -f2 | cut -c1-8; }
fill() { for d in disk0 disk1; do check "$d is written" [ "$("$send" --out "$T/block-$1" "$(url $d)" 2a000000000000000100)" = good ]; done; }
has_disks() { [ "$(block disk0) $(block disk1)" = "$1 $1" ]; }
is_state() { [ "$(state .state)" = "$1" ]; }
up() { run_check granary up --portal "127.0.0.1:$port" --mover 127.0.0.1:0; }
for b in a b; do head -c 512 /dev/zero | tr '\0' $b > "$T/block-$b"; done

port=$(free_port)
run_check granary datastore create ds "$T/ds.img" --size 1G
up
run_check granary vm create ds/web --disk 4M --disk 4M --memory 64M
fill a
run_check granary vm start web
run_check granary vm snapshot web --name kept --memory
base=$(files) objects=0
settled() { local before=$objects; sleep 1; objects=$(count); [ "$before" = "$objects" ]; } # what was replaced goes in the background
wait_for 20 settled

# Kill WHO at the N-th CALL of it while the command is at work. False: it was not reached.
kill_at() { # WHO CALL N COMMAND...
    local who=$1 name=$2 n=$3 pid; shift 3
    pid=$(cat "$GRANARY_HOME/run/$who.pid")
    start strace strace -qq -o /dev/null -p "$pid" -e "trace=$name" -e "inject=$name:signal=KILL:when=$n"
    wait_for 10 grep -q '^TracerPid:.*[1-9]' "/proc/$pid/status"
    status=0
    timeout 60 "$@" > "$T/cut.log" 2>&1 || status=$?
    check "the command comes to an end ($who $name $n): $*" [ $status -ne 124 ]
    stop strace
    case $(ps -o stat= -p "$pid") in '' | Z*) ;; *) return 1 ;; esac # an orphan may wait for an init that does not collect
}

none_left() { [ "$(count)" = "$objects" ]; }
nothing_left() {
    run_check granary vm delete-snapshot web new
    check "$at: no file is left" [ "$(files)" = "$base" ]
    check "$at: of the machine's snapshots the first is there" [ "$(granary vm snapshots web --json | jq -r '[.[] | "\(.name) \(.state)"] | join(" ")')" = 'kept whole' ]
    for d in disk0 disk1; do check "$at: of $d's, too" [ "$(granary snapshot list "ds/web/$d" --json | jq -r '[.[].name] | join(" ")')" = kept ]; done
    run_check granary datastore check ds --json
    check "$at: sound" jq -e '.sound and ."leaked-units" == 0' "$T/out"
    wait_for 20 none_left
}

cut_snapshot() { # WHO CALL N
    local reached=0
    at="snapshot $*"
    kill_at "$@" granary vm snapshot web --name new --memory || reached=1
    up
    wait_for 30 is_state running
    case $(shot new '"\(.state) \(.missing | length)"') in
        'whole 0') ;;
        '' | 'making '*) run_check granary vm snapshot web --name new --memory ;;
        *) fail "$at: $(shot new '"\(.state) \(.missing)"')" ;;
    esac
    check "$at: it is whole" [ "$(shot new '"\(.state) \(.consistency) \(.missing | length)"')" = 'whole memory 0' ]
    run_check granary vm revert web new --force
    check "$at: it goes on from it" is_state running
    nothing_left
    return $reached
}

cut_revert() { # WHO CALL N
    local reached=0
    at="revert $*"
    fill b
    kill_at "$@" granary vm revert web kept --force || reached=1
    up
    wait_for 30 eval 'is_state running || is_state off'
    if is_state off && [ $((RANDOM % 2)) = 0 ]; then # what was begun is finished by a start, too
        begun=$(state '"\(.reverting)\(.resumes)"')
        run_check granary vm start web
        [ "$begun" = false ] || check "$at: the start finished it" has_disks 61616161
    fi
    run_check granary vm revert web kept --force --json
    check "$at: it runs" jq -e '.state == "running" and .snapshot == "kept" and .resumes == false and .reverting == ""' "$T/out"
    check "$at: its disks are those of then" has_disks 61616161
    run_check granary vm snapshot web --name new
    nothing_left
    return $reached
}

declare -A calls=([hostd]='recvfrom connect' [storaged]='pwrite64 pwritev2 fdatasync sendto')
killed=0 over=0
if [ -n "${GRANARY_KILL:-}" ]; then
    read -r what who name n <<< "$GRANARY_KILL"
    "cut_$what" "$who" "$name" "$n" && killed=1
elif [ -n "${GRANARY_SOAK:-}" ]; then
    for what in snapshot revert; do
        for who in hostd storaged; do
            for name in ${calls[$who]}; do
                for ((n = 1; n < 400; n++)); do
                    "cut_$what" "$who" "$name" "$n" || break
                    killed=$((killed + 1))
                done
                echo "# $what, $who: $((n - 1)) $name"
            done
        done
    done
else
    for ((i = 0; i < 4 * ${GRANARY_KILLS:-1}; i++)); do
        what=$([ $((i % 2)) = 0 ] && echo snapshot || echo revert)
        who=$([ $((i / 2 % 2)) = 0 ] && echo hostd || echo storaged)
        read -ra names <<< "${calls[$who]}"
        name=${names[RANDOM % ${#names[@]}]} n=$((1 + RANDOM % 60))
        case $name in connect | sendto) n=$((1 + n % 16)) ;; esac
        if "cut_$what" "$who" "$name" "$n"; then killed=$((killed + 1)); else over=$((over + 1)); fi
    done
fi
echo "# killed $killed times, $over times the command was over before"
[ $killed -gt $over ] || fail 'too few were killed: the test proves little'
run_check granary vm stop web --force
run_check granary vm delete web --yes
run_check granary down
run_check granary datastore check ds --json
check 'sound, and nothing left' jq -e '.sound and ."leaked-units" == 0' "$T/out"
