#!/bin/bash
# timeout: 240
# Raw LUNs: files that a plain machine serves as an array would. Added, grown, redirected and removed while the daemon runs and while it
# does not; reservations outlive kill -9; a second home is refused, and takes a LUN over when it is told to; upgrades keep sessions.
. "$(dirname "$0")/lib.sh"
requires jq qemu-img qemu-io iscsi-inq cmp
hosts a b
send() { "$BUILD/tests/tools/scsi_send" "$@"; }
url() { granary lun list "$1" --json | jq -er '.[0]."iscsi-url"'; }
row() { granary lun list "$1" --json | jq -e ".[0] | $2"; }
naa() { send --in 255 "$1" 120183ff0000 | sed 's/^good //; s/\(.*\) .*/\1/'; }

# ---- what is refused, and leaves nothing behind ----
refused() { local status=$1 text=$2; shift 2; run_mustfail "$status" "$text" granary lun add "$@"; }
refused 2 "must not contain '/'" ds/x "$T/x"
refused 2 "must not contain '@'" x@y "$T/x"
refused 2 "discovery" discovery "$T/x"
refused 2 "must not start with" .x "$T/x"
refused 2 "1 to 128 bytes" "" "$T/x"
refused 1 "does not exist: give a size" x "$T/x"
refused 1 "multiple of 4096" x "$T/x" --size 1000
refused 2 "size" x "$T/x" --size many
refused 2 "say on or off" x "$T/x" --size 1M --read-only yes
refused 1 "not a uuid" x "$T/x" --size 1M --uuid 7
refused 1 "No such file" x "$T/none/x" --size 1M
refused 1 "neither a regular file nor a block device" x "$T"
mkfifo "$T/fifo"
refused 1 "neither a regular file nor a block device" x "$T/fifo"
: > "$T/empty"
refused 1 "nothing to serve" x "$T/empty"
refused 1 "exists already" x "$T/empty" --size 1M
check 'nothing was made' [ ! -e "$T/x" ]
check 'and nothing is registered' [ "$(jq -c '.luns // {}' "$A/conf/luns.json" 2> /dev/null || echo '{}')" = '{}' ]
run_mustfail 1 "does not exist" granary lun remove x
run_mustfail 2 "HOST:PORT, or --off" granary lun redirect x
run_mustfail 1 "does not exist" granary lun resize x 1M

# ---- while the daemon does not run; from there on while it does ----
run_check granary lun add one "$T/one.img" --size 64M
check 'it takes space as it is written' [ "$(stat -c %b "$T/one.img")" -lt 100 ]
refused 1 "LUN 'one' already" two "$T/one.img"
refused 1 "exists already" one "$T/two.img" --size 1M
run_check granary up --portal 127.0.0.1:0 --multipath-portal 127.0.0.1:0 --mover 127.0.0.1:0 --loops 2
at=$(granary status --json | jq -r .portal)
(cd "$T" && run_check granary lun add two two.img --size 32M --json)
check 'the path is absolute' jq -e '.file == "'"$T"'/two.img" and .size == 33554432' "$T/out"
run_check granary status
check 'status shows it' grep -q "one .*64 MiB .*one.img" "$T/out"
check 'so does the list, beside disks' row one '.file == "'"$T"'/one.img" and .size == 67108864 and ."nbd-url" == null and ."read-only" == false'
one=$(url one) two=$(url two)
run_check qemu-img info --output=json "$one"
check 'its size' jq -e '."virtual-size" == 67108864' "$T/out"
head -c 20000000 /dev/urandom > "$T/data"
run_check qemu-img convert -n -f raw -O raw "$T/data" "$one"
run_check qemu-img compare -f raw -F raw "$T/data" "$one"
check 'the bytes are those of the file' cmp -n 20000000 "$T/data" "$T/one.img"
run_check granary lun stat one --json
check 'counted' jq -e '.[0]."write-bytes" >= 20000000' "$T/out"

# identity: one for each, the same after a restart
check 'two LUNs are two' [ "$(naa "$one")" != "$(naa "$two")" ]
before=$(naa "$one")
run_check granary down
run_check granary up
check 'the same after a restart' [ "$(naa "$one")" = "$before" ]

# ---- space: UNMAP makes holes, GET LBA STATUS tells them ----
blocks=$(stat -c %b "$T/one.img")
run_check qemu-io -f raw -c 'discard 4M 8M' -c 'read -P 0 4M 8M' "$one"
check 'a hole in the file' [ "$(stat -c %b "$T/one.img")" -le $((blocks - 16000)) ]
lba_status() { send --in 24 "$one" "9e12$(printf %016x $(($1 / 512)))000000180000" | cut -d' ' -f2; }
status=$(lba_status $((4 << 20)))
check 'deallocated from there, 16384 blocks' [ "${status:16:26}" = "0000000000002000""00004000""01" ]
status=$(lba_status $((12 << 20)))
check 'mapped behind it' [ "${status:40:2}" = 00 ]

# ---- it grows: sessions are told once ----
start grows "$BUILD/tests/tools/live_load" "$at" iqn.2026-11.local.granary:two 60
wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"'
run_check granary lun resize two 48M
run_mustfail 1 'can grow, not shrink' granary lun resize two 32M
run_mustfail 4 'in use by initiator' granary lun remove two
enough grows
check 'CAPACITY DATA HAS CHANGED' jq -e '.errors == 0 and .reconnects == 0 and .attentions == {"2a09": 1}' "$T/grows.log"
run_check qemu-img info --output=json "$two"
check 'the new size' jq -e '."virtual-size" == 50331648' "$T/out"

# ---- access rules are those of disks ----
run_check granary lun acl two --allow iqn.2026-11.org.example:me
if iscsi-inq -i iqn.2026-11.org.example:other "$two" > "$T/out" 2>&1; then fail 'the access list lets somebody else in'; fi
run_check iscsi-inq -i iqn.2026-11.org.example:me "$two"
run_check granary lun mask one
if iscsi-inq "$one" > "$T/out" 2>&1; then fail 'a masked LUN is there'; fi
run_check granary lun unmask one
printf 'a-long-enough-secret\n' > "$T/secret"; chmod 600 "$T/secret"
run_check granary lun chap two --user joe --secret-file "$T/secret"
if iscsi-inq -i iqn.2026-11.org.example:me "$two" > "$T/out" 2>&1; then fail 'no proof was asked for'; fi
run_check iscsi-inq -i iqn.2026-11.org.example:me "${two/iscsi:\/\//iscsi:\/\/joe%a-long-enough-secret@}"
run_check granary lun chap two --off

run_mustfail 2 'say what to set' granary lun set two
run_mustfail 2 'say a number or off' granary lun set two --iops many
run_mustfail 2 '4096 to' granary lun set two --bandwidth 100
rate() { "$BUILD/tests/bench/iscsi_load" "$at" iqn.2026-11.local.granary:one --rw randread --bs 4K --depth 16 --time 1 --size 8M | jq .iops; }
run_check granary lun set one --iops 500 --burst 10 --json
check 'set' jq -e '.disk == "one" and .iops == 500 and .bandwidth == 0 and ."burst-ms" == 10' "$T/out"
got=$(rate)
check "500 commands a second ($got)" [ "$got" -gt 100 -a "$got" -lt 530 ]
run_check granary upgrade
check 'an upgrade keeps it' row one '.iops == 500'
run_check granary lun set one --iops off --burst off
check "no limit any more" [ "$(rate)" -gt 600 ]

# ---- persistent reservations outlive kill -9 ----
out() { # PORT ACTION TYPE KEY NEW-KEY: PERSISTENT RESERVE OUT with APTPL
    printf '%016x%016x%s' "$4" "$5" 0000000001000000 | sed 's/../\\x&/g' > "$T/text"
    printf '%b' "$(cat "$T/text")" > "$T/list"
    send --port "$1" --out "$T/list" "$one" "5f$2$(printf %02x "$3")00000000001800"
}
check 'registered' [ "$(out 1 06 0 0 0xa1)" = good ]
check 'so is a second port' [ "$(out 2 06 0 0 0xb2)" = good ]
check 'reserved, for registrants only' [ "$(out 1 01 6 0xa1 0)" = good ]
held() {
    check "$1: the keys" [ "$(send --port 1 --in 24 "$one" 5e000000000000001800 | cut -c14-)" = "00000010""00000000000000a1""00000000000000b2" ]
    check "$1: the reservation" [ "$(send --port 1 --in 24 "$one" 5e010000000000001800 | cut -c14-37)" = "00000010""00000000000000a1" ]
    check "$1: a stranger may not read" [ "$(send --port 3 --in 512 "$one" 28000000000000000100)" = conflict ]
    check "$1: a registrant may" [ "$(send --port 2 --in 512 "$one" 28000000000000000100 | cut -c1-4)" = good ]
}
held 'at first'
kept=$(echo "$A"/state/luns/*/reservations)
check 'kept privately' [ "$(stat -c %a "$kept")" = 600 ]
start cut "$BUILD/tests/tools/live_load" "$at" iqn.2026-11.local.granary:two 60 iqn.2026-11.org.example:me 8192 # what it is told is written stays
wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"'
for round in 1 2 3; do
    sleep 0.4
    kill -9 "$(cat "$A/run/storaged.pid")"
    run_check granary up
    held "after kill -9, $round"
done
sleep 1 # it reads again what it had written
enough cut
check 'nothing that was acknowledged is lost' jq -e '.errors == 0 and .reconnects >= 3 and .ios > 100' "$T/cut.log"
mv "${kept%/*}" "$T/gone"
check 'what cannot be kept is not granted' [ "$(out 2 06 0 0 0xc3)" = 'sense 4/44/00' ]
mv "$T/gone" "${kept%/*}"
held 'after that'
check 'who is ejected' [ "$(out 2 05 6 0xb2 0xa1)" = good ]
run_check granary upgrade
check 'is ejected after an upgrade, too' [ "$(send --port 1 --in 512 "$one" 28000000000000000100)" = conflict ]
check 'and cannot eject' [ "$(out 1 05 6 0xa1 0xb2)" = conflict ]
check 'cleared' [ "$(out 2 03 0 0xb2 0)" = good ]
check 'nothing is kept of it' [ ! -e "$kept" ]

# ---- one home serves a file ----
run_mustfail 4 'another GRANARY_HOME' b lun add one "$T/one.img"
run_mustfail 4 'another GRANARY_HOME' b lun add one "$T/one.img" --read-only on
if b datastore create ds "$T/one.img" --force > "$T/out" 2>&1; then fail 'a datastore was made of a LUN that is served'; fi
check 'its bytes are untouched' cmp -n 4000000 "$T/data" "$T/one.img"
run_check granary datastore create ds "$T/ds.img" --size 256M
run_mustfail 4 'device of a datastore' granary lun add three "$T/ds.img"
run_check b lun add ro "$T/data" --read-only on
run_check granary lun add ro "$T/data" --read-only on
check 'readers share' row ro '."read-only"'
check 'a write is refused' [ "$(head -c 512 /dev/zero > "$T/zeros"; send --out "$T/zeros" "$(url ro)" 2a000000000000000100)" = 'sense 7/27/00' ]

# ---- upgrades keep sessions, also with several loops ----
start kept "$BUILD/tests/tools/live_load" "$at" iqn.2026-11.local.granary:one 60 iqn.2026-11.org.example:kept 49152
wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"'
for round in 1 2; do run_check granary upgrade; sleep 0.5; done
enough kept
check 'nobody noticed' jq -e '.errors == 0 and .reconnects == 0 and .ios > 100 and (.attentions | length == 0)' "$T/kept.log"

# ---- redirect: another home serves the file from now on ----
run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
there=$(b status --json | jq -r .portal)
uuid=$(row one .uuid | tr -d '"')
run_mustfail 1 'portal of this host' granary lun redirect one "$at"
run_mustfail 1 'not HOST:PORT' granary lun redirect one nowhere
start moves "$BUILD/tests/tools/live_load" "$at" iqn.2026-11.local.granary:one 60 iqn.2026-11.org.example:moves 57344
wait_for 20 sh -c 'granary session list --json | jq -e "length == 1"'
sleep 0.5
run_check granary lun redirect one "$there"
run_check b lun add one "$T/one.img" --uuid "$uuid"
run_mustfail 4 'another GRANARY_HOME' granary lun redirect one --off
check 'the list shows where' row one '.redirect == "'"$there"'" and (."iscsi-url" | contains("'"$there"'"))'
run_mustfail 4 'resize it there' granary lun resize one 128M
old=${one/"$at"/"$(granary status --json | jq -r .portal)"}
aside=${one/"$at"/"$(granary status --json | jq -r '."multipath-portal"')"}
check 'a portal that never redirects has it in standby' [ "$("$BUILD/tests/tools/scsi_send" --bare on "$aside" 000000000000)" = 'sense 2/04/0b' ]
check 'known again behind the redirect' [ "$(naa "$old")" = "$before" ]
wait_for 20 sh -c "GRANARY_HOME='$B' granary session list --json | jq -e 'length == 1'"
run_check granary down
run_check granary up
check 'the redirect is remembered' row one '.redirect == "'"$there"'"'
enough moves
check 'one new session, nothing lost' jq -e '.errors == 0 and .reconnects >= 1 and .ios > 100' "$T/moves.log"
run_check b lun remove one
run_check granary lun redirect one --off
check 'served here again' row one '.redirect == null and .error == null and .size == 67108864'
run_check qemu-io -r -f raw -c 'read 0 1M' "$one"

# ---- what cannot be opened is told, and tried again ----
run_check granary down
mv "$T/two.img" "$T/away.img"
run_mustfail 3 "LUN 'two'.*No such file" granary up
check 'the list says why' row two '.error | contains("No such file")'
run_check qemu-io -r -f raw -c 'read 0 1M' "$one"
mv "$T/away.img" "$T/two.img"
run_check iscsi-inq -i iqn.2026-11.org.example:me "$two"
check 'it is there now' row two '.error == null and .size == 50331648'

# ---- removal: the bytes stay ----
start user qemu-io -f raw -c 'read 0 4k' -c 'sleep 30000' "$one"
wait_for 10 sh -c 'granary session list --json | jq -e "length == 1"'
run_mustfail 4 'in use by initiator' granary lun remove one
run_check granary lun remove one --force
check 'its session ended' sh -c 'granary session list --json | jq -e "length == 0"'
stop user
run_mustfail 1 'not served' granary lun list one
check 'the file is there' [ -s "$T/one.img" ]
run_check granary down
run_check granary lun resize two 64M
run_check granary lun remove two
check 'offline, too' [ "$(stat -c %s "$T/two.img")" = 67108864 ]
check 'nothing is remembered of either' [ "$(ls "$A/state/luns" | wc -l)" = 1 ] # "ro" is left
echo '{"luns": []}' > "$A/conf/luns.json"
run_mustfail 1 'conf/luns.json: "luns" is not an object' granary up
if grep -sq Sanitizer "$A"/log/*.log "$B"/log/*.log; then fail 'a sanitizer complains'; fi
