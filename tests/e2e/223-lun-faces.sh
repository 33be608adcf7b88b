#!/bin/bash
# How a disk shows itself: read-only, removable, sanitized. What it says outlives the daemon; a sanitize is refused while a snapshot
# shares blocks, goes on after a kill, and leaves nothing of the old bytes on the device.
. "$(dirname "$0")/lib.sh"
requires jq qemu-io nbdinfo python3
send=$BUILD/tests/tools/scsi_send
[ -x "$send" ] || skip "needs $send (make tools)"
url() { granary lun list --json | jq -er ".[] | select(.disk == \"$1\") | .\"$2\""; }
scsi() { # EXPECTED DISK CDB [OPTION...]
    local want=$1 disk=$2 cdb=$3 got; shift 3
    got=$("$send" "$@" "$(url "$disk" iscsi-url)" "$cdb") || fail "no answer to $cdb"
    # shellcheck disable=SC2254
    case $got in $want) ;; *) fail "$cdb on $disk: $got, wanted $want" ;; esac
}
up() { run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0; }
TUR=000000000000 EJECT=1b0000000200 LOAD=1b0000000300
run_check granary datastore create ds "$T/ds.img" --size 2G
for d in ro cd; do run_check granary disk create ds/$d --size 256M; done
run_check granary disk create ds/wipe --size 512M
run_mustfail 2 'say on or off' granary disk set ds/ro --read-only yes
run_mustfail 2 'say what to set' granary disk set ds/ro
run_mustfail 1 'ds/none' granary disk set ds/none --read-only on

# --- read-only: writes are refused by both protocols; snapshots are not writes; it outlives the daemon, and a clone is not
run_check granary disk set ds/ro --read-only on --json # offline
check 'it says so' jq -e '."read-only" and (.removable | not)' "$T/out"
up
run_mustfail 1 'write protected|Read-only|read-only' qemu-io -f raw -c 'write 0 4k' "$(url ds/ro iscsi-url)"
check 'so says the mover' nbdinfo --is readonly "$(url ds/ro nbd-url)"
scsi 'sense 7/27/00' ds/ro 48020000000000000000
run_check granary snapshot create ds/ro --name s
run_check granary snapshot clone ds/ro@s ds/copy
run_check granary disk info ds/copy --json
check 'a clone can be written' jq -e '."read-only" == false' "$T/out"
run_check granary disk set ds/ro --read-only off
run_check qemu-io -f raw -c 'write 0 4k' "$(url ds/ro iscsi-url)"
check 'the mover too' nbdinfo --can write "$(url ds/ro nbd-url)"

# --- removable
run_check granary disk set ds/cd --removable on
scsi 'good 0080*' ds/cd 120000002400 --in 36
start hold "$BUILD/tests/bench/iscsi_load" "$(url ds/cd iscsi-url | cut -d/ -f3)" "$(url ds/cd iscsi-url | cut -d/ -f4)" --rw randread --bs 4K --depth 1 --time 60 --size 1M
wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"' # somebody stays, so that the medium does
scsi good ds/cd $EJECT
scsi 'sense 2/3a/00' ds/cd $TUR
scsi 'sense 2/3a/00' ds/cd 25000000000000000000 --in 8
scsi good ds/cd $LOAD
scsi good ds/cd $TUR
scsi 'sense 5/24/00' ds/wipe $EJECT # a fixed one
stop hold

# --- sanitize
marker="bytes of a customer, $RANDOM$RANDOM"
{ yes "$marker" || true; } | head -c 16M > "$T/secret"
run_check qemu-img convert -n -f raw -O raw "$T/secret" "$(url ds/wipe iscsi-url)"
run_check granary snapshot create ds/wipe --name keep
check 'its bytes are on the device' holds "$T/ds.img" "$marker"
scsi 'sense 5/2c/00' ds/wipe 48020000000000000000
check 'the log says why' grep -q "shares blocks with its snapshot 'keep'" "$GRANARY_HOME/log/storaged.log"
run_check granary snapshot delete ds/wipe@keep --settle
{ printf '\x01\x00\x00\x04'; printf 'WIPE'; } > "$T/pattern"
scsi good ds/wipe 48810000000000000800 --out "$T/pattern" # IMMED, overwrite: 512 MiB at its pace
scsi 'sense 2/04/1b' ds/wipe $TUR
scsi 'sense 2/04/1b' ds/wipe 28000000000000000100 --in 512
scsi 'good 70*' ds/wipe 030000001200 --in 18
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
audited() { check "$1: $2" sh -c "granary audit $3 --json | jq -e '[.[] | select(.method == \"iscsi.sanitize\" and .named.disk == \"ds/wipe\")] | $2'"; }
audited 'who asked for it is written down' 'length == 1 and (.[0] | .result == "begun" and .named.action == "overwrite" and (.from | startswith("127.0.0.1:")) and (.initiator | startswith("iqn.")))' --unfinished
up
scsi 'sense 2/04/1b' ds/wipe $TUR # it goes on
tur_good() { [ "$("$send" "$(url ds/wipe iscsi-url)" $TUR)" = good ]; }
wait_for 30 tur_good
run_check qemu-img convert -f raw -O raw "$(url ds/wipe iscsi-url)" "$T/wiped"
check 'the pattern is everywhere' cmp "$T/wiped" <(yes WIPE | tr -d '\n' | head -c 512M)
audited 'it was gone on with' '.[1:] | map(.result) == ["begun", "ok"] and all(.named.resume and .uid == 0 and .call != null) and .[0].call == .[1].call' ''
scsi good ds/wipe 48020000000000000000 # block erase
audited 'begun and done' '.[3:] | map(.result) == ["begun", "ok"] and all(.initiator != null and .named.action == "block-erase") and .[0].call == .[1].call and .[1].seconds > 0' ''
run_check granary audit
check 'and shown' grep -q 'initiator iqn.* iscsi.sanitize' "$T/out"
run_check granary disk info ds/wipe --json
check 'all space is given back' jq -e '.used < 1048576' "$T/out"
run_check granary down
run_check granary datastore check ds
if holds "$T/ds.img" "$marker"; then fail 'bytes of it are left on the device'; fi
