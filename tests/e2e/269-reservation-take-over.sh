#!/bin/bash
# The owner of disks with reservations is killed, on a file and on a LUN: whoever takes them over has the registrations and the reservations, keeps strangers out
# while the holder writes, lets one that is registered preempt, and forgets no generation. With APTPL and without: a process that dies is no loss of power.
. "$(dirname "$0")/lib.sh"
requires jq
hosts a b array
run_check array lun add store "$T/store.img" --size 512M
run_check array up --portal "127.0.0.1:$(free_port)"
lun=$(array lun list --json | jq -r '.[0]."iscsi-url"')
run_check a datastore create files "$T/ds.img" --size 512M
run_check a datastore create luns "$lun" --timing fast
run_check b datastore join files "$T/ds.img"
run_check b datastore join luns "$lun"
disks='files/kept files/plain luns/kept luns/plain'
for d in $disks files/silent; do run_check a disk create "$d" --size 16M; done
run_check a up --portal 127.0.0.1:0
standby=127.0.0.1:$(free_port)
run_check b up --portal 127.0.0.1:0 --multipath-portal "$standby"
declare -A target
for d in $disks files/silent; do target[$d]=$(a lun list "$d" --json | jq -r '.[0].target'); done
portal=$(a status --json | jq -r .portal)
bare=()
send() { # DISK PORT ARGUMENT...: scsi_send as that initiator port
    local d=$1 port=$2; shift 2
    "$BUILD/tests/tools/scsi_send" "${bare[@]}" --port "$port" "${@:1:$# - 1}" "iscsi://$portal/${target[$d]}/0" "${@: -1}"
}
out() { # DISK PORT ACTION TYPE KEY NEW-KEY [APTPL]: PERSISTENT RESERVE OUT
    printf '%016x%016x%08x%02x000000' "$5" "$6" 0 "${7:-0}" | sed 's/../\\x&/g' > "$T/text"
    printf '%b' "$(cat "$T/text")" > "$T/list"
    send "$1" "$2" --out "$T/list" "5f$3$(printf %02x "$4")00000000001800"
}
write() { head -c 512 /dev/zero > "$T/block"; send "$1" "$2" --out "$T/block" 2a000000000000000100; }
keys() { send "$1" 2 --in 24 5e000000000000001800; }
holder() { send "$1" 2 --in 16 5e010000000000001000; }

# the path ends at the other host, and the owner is silent: BUSY before an initiator gives the command up, and it is not carried out late
owner=$portal portal=$standby bare=(--bare on)
check "registered by way of the other host" [ "$(out files/silent 1 06 0 0 0xb1)" = good ]
stopped=$(cat "$A/run/storaged.pid")
on_exit "kill -CONT $stopped"
kill -STOP "$stopped"
began=$SECONDS
check "no answer: busy" [ "$(out files/silent 1 00 0 0xb1 0xb2 || true)" = other ]
echo "# told after $((SECONDS - began)) s"
check "in time" [ $((SECONDS - began)) -lt 10 ]
kill -CONT "$stopped"
check "the owner goes on, and the key is the old one" [ "$(out files/silent 1 00 0 0xb1 0xb3)" = good ]
portal=$owner bare=()

# ports 1 and 2 register, 1 reserves: write exclusive, registrants only (5); 3 is a stranger
for d in $disks; do
    aptpl=$([ "${d#*/}" = kept ] && echo 1 || echo 0)
    check "$d: the first registers" [ "$(out "$d" 1 06 0 0 0xb1 "$aptpl")" = good ]
    check "$d: the second registers" [ "$(out "$d" 2 06 0 0 0xb2 "$aptpl")" = good ]
    check "$d: the first reserves" [ "$(out "$d" 1 01 5 0xb1 0)" = good ]
    check "$d: a stranger may not write" [ "$(write "$d" 3)" = conflict ]
    check "$d: the second may" [ "$(write "$d" 2)" = good ]
    keys "$d" > "$T/keys-${d/\//-}"
    holder "$d" > "$T/holder-${d/\//-}"
    check "$d: two keys: $(cat "$T/keys-${d/\//-}")" grep -q '0000000200000010.*b1.*b2' "$T/keys-${d/\//-}"
done

kill -KILL "$(cat "$A/run/storaged.pid")"
portal=$(b status --json | jq -r .portal)
for d in $disks; do
    wait_for 20 sh -c "'$BUILD/tests/tools/scsi_send' --in 512 'iscsi://$portal/${target[$d]}/0' 28000000000000000100 | grep -q ^good"
    run_check b disk info "$d" --json
    check "$d: b has it" jq -e '."owner-self"' "$T/out"
    # a power-on tells a port that was there something, once
    send "$d" 1 000000000000 > "$T/said" || true
    check "$d: the keys and their generation are those of before" [ "$(keys "$d")" = "$(cat "$T/keys-${d/\//-}")" ]
    check "$d: so is the reservation" [ "$(holder "$d")" = "$(cat "$T/holder-${d/\//-}")" ]
    check "$d: a stranger may not write" [ "$(write "$d" 3)" = conflict ]
    check "$d: its holder may" [ "$(write "$d" 1)" = good ]
    check "$d: who is registered preempts it" [ "$(out "$d" 2 04 5 0xb2 0xb1)" = good ]
    check "$d: who held it is a stranger now" [ "$(write "$d" 1)" = conflict ]
    check "$d: the second releases it" [ "$(out "$d" 2 02 5 0xb2 0)" = good ]
    check "$d: anybody writes" [ "$(write "$d" 3)" = good ]
done
run_check b down
for d in files luns; do run_check b datastore check $d; done
