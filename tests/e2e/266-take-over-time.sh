#!/bin/bash
# How long after kill -9 of a disk's owner an initiator waits that knows the survivor's portal: from the kill to the first write that the survivor has
# acknowledged, for one that logs in then, for one that was at work all the time, and for QEMU, whose own initiator sees no error either. On a file (life lock) 3 s at most, on a LUN of the default
# profile 10 s at most; the fast profile is 212's.
# alone
. "$(dirname "$0")/lib.sh"
requires jq qemu-io qemu-img
hosts a b array
ms() { echo $(($(date +%s%N) / 1000000)); }
target() { a lun list "$1" --json | jq -r '.[0].target'; }
declare -A url

run_check array lun add store "$T/store.img" --size 512M
run_check array up --portal "127.0.0.1:$(free_port)"
run_check a datastore create files "$T/ds.img" --size 512M
run_check a datastore create luns "$(array lun list --json | jq -r '.[0]."iscsi-url"')"
run_check b datastore join files "$T/ds.img"
run_check b datastore join luns "$(array lun list --json | jq -r '.[0]."iscsi-url"')"
run_check a datastore info luns --json
check 'its timing is the default' jq -e '."shared-luns" and .timing == "default"' "$T/out"
for d in {files,luns}/{busy,quiet,qemu}; do run_check a disk create $d --size 16M; done
run_check a up --portal 127.0.0.1:0
run_check b up --portal 127.0.0.1:0
portal=$(b status --json | jq -r .portal)
for d in files luns; do
    start "load-$d" "$BUILD/tests/tools/live_load" "$portal" "$(target $d/busy)" 60 iqn.2026-11.local.granary:busy
    run_check qemu-io -f raw -c 'write -P 0x11 0 4k' "iscsi://$portal/$(target $d/quiet)/0" # through the survivor's portal, led to the owner
    url[$d]=iscsi://$portal/$(target $d/quiet)/0
done
bench() { # DATASTORE COUNT
    qemu-img bench -f raw -t none -w -d 4 -s 4096 -c "$2" "iscsi://$portal/$(target "$1/qemu")/0"
}
for d in files luns; do # so much that it takes some seconds more than the take-over may
    begin=$(ms)
    run_check bench $d 1000
    count=$((1000 * 14000 / ($(ms) - begin + 1)))
    start "qemu-$d" bench $d $count
    echo "# QEMU on $d: $count writes"
done
sleep 0.5
owned() { b disk list "$1" --json | jq -e 'length == 3 and all(."owner-self" == false and .owner != "")'; }
check 'a owns what is on files' owned files
check 'a owns what is on LUNs' owned luns

for d in files luns; do kill -USR1 "$(cat "$T/load-$d.pid")"; done # the longest wait is measured from here
for d in files luns; do check "QEMU is at work on $d" kill -0 "$(cat "$T/qemu-$d.pid")"; done
kill -KILL "$(cat "$A/run/storaged.pid")"
begin=$(ms)
qemu_late() { # DATASTORE: until it writes at the survivor
    until b session list --json | jq -e --arg d "$1/qemu" 'any(.[]; .disk == $d and .writes > 0)' > "$T/sessions-$1"; do
        sleep 0.1
    done
    echo $(($(ms) - begin)) > "$T/qemu-$1.ms"
}
for d in files luns; do
    qemu_late $d &
    track $!
done
late() { # NAME URL: writes as soon as it may; who is led to the host that is gone, as one may be for a second, asks again
    until qemu-io -f raw -c 'write -P 0x22 4k 4k' "$2" > "$T/late-$1.log" 2>&1; do
        [ $(($(ms) - begin)) -lt 20000 ] || fail "no write at the survivor: $(cat "$T/late-$1.log")"
        sleep 0.05
    done
    echo $(($(ms) - begin)) > "$T/late-$1.ms"
}
late luns "${url[luns]}" &
track $!
late files "${url[files]}"
wait_for 30 [ -s "$T/late-luns.ms" ]
for d in files luns; do wait_for 30 [ -s "$T/qemu-$d.ms" ]; done
sleep 0.3
enough load-files load-luns
for d in files luns; do
    limit=$([ $d = files ] && echo 3000 || echo 10000)
    took=$(cat "$T/late-$d.ms")
    waited=$(jq '."longest-ms"' "$T/load-$d.log")
    echo "# $d: first write at the survivor after $took ms; who was at work waited $waited ms, QEMU $(cat "$T/qemu-$d.ms") ms"
    check "$d: the first write in time" [ "$took" -le $limit ]
    check "$d: nor did QEMU" [ "$(cat "$T/qemu-$d.ms")" -le $limit ]
    over "qemu-$d"
    check "$d: QEMU saw no error: $(cat "$T/qemu-$d.log")" grep -q 'Run completed' "$T/qemu-$d.log"
    check "$d: who was at work waited no longer" jq -e ".\"longest-ms\" <= $limit and .errors == 0 and .reconnects >= 1 and .ios > 100" "$T/load-$d.log"
done
check 'b has taken over on both' [ "$(grep -c 'recovered slot' "$B/log/storaged.log")" = 2 ]
for d in files luns; do run_check b datastore check $d; done
run_check b down
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log; then fail 'a sanitizer complains'; fi
