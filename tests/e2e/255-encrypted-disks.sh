#!/bin/bash
# Encrypted disks: what lies on the device, two homes with and without the key, a stock initiator, backup and restore, keys that change under
# load, the end of a disk.
. "$(dirname "$0")/lib.sh"
requires jq python3 qemu-img qemu-io truncate cmp
hosts a b
url() { "$1" lun list --json | jq -r --arg d "$2" '.[] | select(.disk == $d) | ."iscsi-url"'; }
key_of() { "$1" disk info "$2" --json | jq -r .key; }
sound() { run_check a datastore check ds; }
word='a word that stands in no other file'
python3 -c 'import sys; sys.stdout.write((sys.argv[1] + "\n") * 150000)' "$word" | head -c 4M > "$T/words" || true # head closes early

# keys
run_check a datastore create ds "$T/ds.img" --size 1G
run_mustfail 1 'granary key create makes one' a disk create ds/a --size 32M --encrypt
run_mustfail 2 'add --encrypt' a disk create ds/a --size 32M --key 0123456789abcdef
run_check a key create --json
k1=$(jq -r .key "$T/out")
check 'a key is for its owner only' [ "$(stat -c %a "$A/conf/keys/$k1.key" "$A/conf/keys" | tr '\n' ' ')" = '600 700 ' ]
run_mustfail 1 'key 0123456789abcdef' a disk create ds/a --size 32M --encrypt --key 0123456789abcdef
run_check a disk create ds/a --size 32M --encrypt
run_check a disk create ds/eager --size 8M --encrypt --provision eager
run_check a disk create ds/plain --size 32M
run_check a disk list ds --json
check 'the list tells' jq -e --arg k "$k1" 'map([.disk, .encrypted, .key]) | sort == [["ds/a", true, $k], ["ds/eager", true, $k], ["ds/plain", false, ""]]' "$T/out"

# imported, snapshotted, cloned: none of it in clear on the device
run_check a disk import "$T/words" ds/words --encrypt
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check qemu-img dd -f raw -O raw bs=1M count=4 "if=$T/words" "of=$T/w.raw"
run_check qemu-img convert -n -f raw -O raw "$T/w.raw" "$(url a ds/a)"
run_check a snapshot create ds/a --name s
run_check qemu-io -f raw -c 'write -P 0x57 1M 300k' -c 'write -P 0x58 512 512' -c 'read -P 0x58 512 512' -c 'read -P 0x57 1M 300k' "$(url a ds/a)"
run_check a snapshot clone ds/a@s ds/clone
run_check a disk export ds/clone "$T/clone.raw"
check 'a clone reads what the snapshot has' cmp -n 4194304 "$T/clone.raw" "$T/words"
run_check a disk export ds/a@s "$T/s.raw"
check 'so does the snapshot' cmp -n 4194304 "$T/s.raw" "$T/words"
run_check a disk export ds/words "$T/words.raw"
check 'and the imported disk' cmp "$T/words.raw" "$T/words"
run_check a down
if holds "$T/ds.img" "$word"; then fail 'a word of it is on the device'; fi
run_check a disk import "$T/words" ds/clear
check 'one of a plain disk is' holds "$T/ds.img" "$word"
run_check a disk delete ds/clear
sound

# a host without the key: everything else works, and it keeps nobody from the disk
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0 --mover 127.0.0.1:0
check 'it says why' grep -q "ds/a.*encrypted with key $k1, which is not here: 'granary key import' it" "$B/log/storaged.log"
run_check qemu-io -f raw -c 'write -P 0x11 0 64k' "$(url b ds/plain)"
check 'a login to the disk is refused' bash -c "! timeout 20 qemu-io -r -f raw -c 'read 0 512' '$(url b ds/a)'"
run_mustfail 1 "$k1" b snapshot create ds/a --name no
run_check b disk list ds --json
check 'it sees that there is a key' jq -e --arg k "$k1" '.[] | select(.disk == "ds/a") | .key == $k' "$T/out"
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check qemu-io -r -f raw -c 'read -P 0x57 1M 300k' "$(url a ds/a)"
run_check b snapshot create ds/a --name through-a # asked of the owner, who has the key
run_check a key export "$k1" "$T/k1"
check 'an exported key is for its owner only' [ "$(stat -c %a "$T/k1")" = 600 ]
run_mustfail 1 'exists already' a key export "$k1" "$T/k1"
chmod 644 "$T/k1"
run_mustfail 1 'k1' b key import "$T/k1"
chmod 600 "$T/k1"
run_check b key import "$T/k1"
run_check a down
run_check qemu-io -r -f raw -c 'read -P 0x57 1M 300k' "$(url b ds/a)" # it came later, and nothing was started again
run_check b down

# backup by what the mover gives and by what a reader of the volume sees; restored in clear or encrypted
run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
for transport in lan local; do
    run_check a backup run --disk ds/a --repo "$T/repo-$transport" --transport $transport --json
    p=$(jq -r '.[0].point' "$T/out")
    rm -f "$T/back.raw"
    run_check a backup export "$p" "$T/back.raw" --format raw --repo "$T/repo-$transport"
    run_check qemu-io -r -f raw -c 'read -P 0x57 1M 300k' -c 'read -P 0x58 512 512' "$T/back.raw"
    check "$transport: it read the plain text" grep -qaF "$word" "$T/back.raw"
done
run_check a restore disk "$p" ds/restored --encrypt --repo "$T/repo-local"
check 'restored encrypted' [ "$(key_of a ds/restored)" = "$k1" ]
run_check qemu-io -r -f raw -c 'read -P 0x57 1M 300k' -c 'read -P 0x58 512 512' "$(url a ds/restored)"
run_check a disk delete ds/restored

# keys change under a load that verifies what it reads
load() { start "$1" "$BUILD/tests/tools/live_load" "$(a status --json | jq -r .portal)" "iqn.2026-11.local.granary:ds:eager" 60 iqn.2026-11.local.granary:load; }
load live
sleep 1
for i in 1 2 3; do
    run_check a disk rekey ds/eager
    run_check a disk rekey ds/eager --rewrite --json
    check "round $i: only what snapshots need is left of the data keys" jq -e --argjson i $i '."data-keys" == $i' "$T/out"
    run_check a snapshot create ds/eager --name "s$i"
done
run_check a key rotate --json
k2=$(jq -r .key "$T/out")
check 'all disks have the new key' jq -e '.disks == 4 and .failed == []' "$T/out"
run_mustfail 1 'needs this key' a key delete "$k2"
enough live
check 'the load saw no wrong byte' jq -e '.errors == 0 and .ios > 100' "$T/live.log"
run_check a key delete "$k1"
run_mustfail 1 'is not here' a key export "$k1" "$T/k1.again"
run_check a disk rekey ds/a --rewrite --json
check 'a snapshot keeps its key' jq -e '."data-keys" >= 2' "$T/out"
run_check qemu-io -r -f raw -c 'read -P 0x57 1M 300k' -c 'read -P 0x58 512 512' "$(url a ds/a)"

# killed within a rotation: the disk reads as before, and rotates again
for i in 1 2 3 4; do
    a disk rekey ds/a --rewrite > /dev/null 2>&1 &
    rpc=$!
    sleep "0.0$((i * 2))"
    kill -9 "$(cat "$A/run/storaged.pid")"
    wait $rpc || true
    run_check a up --portal 127.0.0.1:0 --mover 127.0.0.1:0
    run_check qemu-io -r -f raw -c 'read -P 0x57 1M 300k' -c 'read -P 0x58 512 512' "$(url a ds/a)"
done
run_check a disk rekey ds/a
run_check a disk rekey ds/a --resume --json
keys=$(jq '."data-keys"' "$T/out")
run_check a disk rekey ds/a --resume --json
check 'going on makes no new key' jq -e --argjson n "$keys" '."data-keys" == $n' "$T/out"
sound

# the end: no key is needed, snapshots go with it, clones stand in the way
run_mustfail 2 'add --yes' a disk erase ds/words
run_mustfail 1 'clones start at' a disk erase ds/a --yes
run_mustfail 1 'no encrypted disk' a disk erase ds/plain --yes
run_check a disk erase ds/words --yes
run_check a disk info ds/words --json
check 'it says so' jq -e '.encrypted and .key == "erased"' "$T/out"
run_mustfail 1 'was erased' a disk export ds/words "$T/no.raw"
run_check a down
rm "$A/conf/keys/$k2.key"
run_check a disk delete ds/words
run_check a disk delete ds/clone
run_mustfail 1 "$k2" a disk export ds/a "$T/no.raw"
run_check a disk delete ds/a
run_check a disk delete ds/eager
sound
run_check a disk list ds --json
check 'the plain one is left' jq -e 'map(.disk) == ["ds/plain"]' "$T/out"
