#!/bin/bash
# Clones as users see them: a thousand of one image in one command, full copies, templates, origins that are deleted before their clones, a clone
# that gets its own blocks although its host is killed meanwhile, and clones on two hosts that need nothing of the one that has the image.
# timeout: 200
. "$(dirname "$0")/lib.sh"
requires jq qemu-io
hosts a b
j() { run_check a "$@" --json; }
is() { check "$1" jq -e "$1" "$T/out"; }
pid_a() { a up --json | jq -r '."storaged-pid"'; }
same() { # DISK: its first bytes are the image's
    rm -f "$T/got.raw"
    run_check "${2:-a}" disk export "$1" "$T/got.raw"
    equal "$T/image.raw" "$T/got.raw" $((20 << 20))
}
head -c 20M /dev/urandom > "$T/image.raw"
run_check a datastore create ds "$T/ds.img" --size 2G
run_check a disk import "$T/image.raw" ds/gold
run_check a disk resize ds/gold 64M
run_check a snapshot create ds/gold --name one

# --- many, in one command (elsewhere: a daemon opens each of them)
run_check a datastore create big "$T/big.img" --size 1G
run_check a disk import "$T/image.raw" big/gold
run_check a snapshot create big/gold --name one
blocks=$(stat -c %b "$T/big.img") began=$(date +%s%N)
j snapshot clone big/gold@one 'big/vdi/desk-####' --count 1000
ms=$((($(date +%s%N) - began) / 1000000)) kib=$((($(stat -c %b "$T/big.img") - blocks) / 2 / 1000))
echo "# 1000 clones: $ms ms, $kib KiB of the device each"
is 'length == 1000 and .[0].disk == "big/vdi/desk-0001" and .[999].disk == "big/vdi/desk-1000" and all(.[]; .parent == "big/gold@one")'
check 'at most 10 s' [ $ms -le 10000 ]
check 'at most 64 KiB each' [ $kib -le 64 ]
j snapshot list big/gold; is '.[0]."clone-disks" | length == 1000'
deep=(); for i in {1..200}; do deep+=("big/deep/$i/of/it/disk"); done # new folders count, too: more than one change of names can take home
j snapshot clone big/gold@one "${deep[@]}"; is 'length == 200'
run_check a datastore check big
run_check a datastore destroy big --yes

j snapshot clone ds/gold@one 'ds/vdi/desk-####' --count 6
run_mustfail 2 'goes with --full' a snapshot clone ds/gold@one ds/p --provision thick
run_mustfail 2 "no '#'" a snapshot clone ds/gold@one ds/vdi/desk --count 3
run_mustfail 1 'exists already' a snapshot clone ds/gold@one ds/new ds/vdi/desk-0003
run_mustfail 1 'does not exist' a disk info ds/new
j snapshot clone ds/gold@one 'ds/lab-#' --count 2 --first 7; is '[.[].disk] == ["ds/lab-7","ds/lab-8"]'
j snapshot list ds/gold; is '.[0]."clone-disks" | length == 8'
j disk info ds/gold; is '.clones | length == 8'
run_check a datastore check ds

# --- a copy shares nothing
j snapshot clone ds/gold@one ds/full --full; is '.parent == "" and .shared == 0 and .unique > 20000000'
same ds/full
j snapshot clone ds/gold@one ds/thick --full --provision thick; is '.provision == "thick"'

# --- a template
run_check a disk set ds/full --template on
run_mustfail 4 'is a template' a disk delete ds/full
run_mustfail 1 'is a template' a disk resize ds/full 128M
run_mustfail 1 'is a template' a snapshot revert ds/full@granary-template
run_mustfail 4 'is a template' a snapshot delete ds/full@granary-template
run_mustfail 2 'is no template' a snapshot clone ds/gold ds/x
j snapshot clone ds/full ds/t1; is '.parent == "ds/full@granary-template" and (.template | not)'
run_check a up --portal 127.0.0.1:0
url=$(a lun list ds/full --json | jq -r '.[0]."iscsi-url"')
run_mustfail 1 'rite.protected|ead.only' qemu-io -f raw -c 'write 0 4k' "$url"
run_check a disk set ds/full --template off
run_check a disk set ds/full --template on # nothing has changed: the same snapshot
j snapshot list ds/full; is 'length == 1 and .[0]."clone-disks" == ["ds/t1"]'
run_check a disk set ds/full --template off
run_check a disk delete ds/full
run_check a disk create ds/cut --size 8M
run_check a disk set ds/cut --template on
run_check a disk set ds/cut --template off
run_check a disk resize ds/cut 4M --shrink
run_check a disk set ds/cut --template on # it is another: so is what clones start at
j snapshot clone ds/cut ds/cut2; is '.size == 4194304'

# --- what is deleted while there are clones
j disk list --deleted; is '.[0].disk == "ds/full" and .[0].clones == ["ds/t1"]'
j disk info ds/t1; is '.parent == "ds/full@granary-template" and ."parent-deleted"'
same ds/t1
run_check a snapshot delete ds/gold@one
j snapshot list ds/gold; is 'length == 0'
j snapshot list ds/gold --deleted; is '.[0].name == "one" and .[0].deleting and (.[0]."clone-disks" | length == 8)'
run_check a disk delete ds/t1
wait_for 10 eval '[ "$(a disk list --deleted --json)" = "[]" ]'

# --- blocks of its own, although the host is killed
start own a disk detach ds/lab-7 --rate 4M
wait_for 20 eval 'a disk info ds/lab-7 --json | jq -e ".unique > 0"'
sleep 1 # of five
kill -KILL "$(pid_a)"
over own > /dev/null || true
run_check a up --portal 127.0.0.1:0
j disk info ds/lab-7; is '.parent == "ds/gold@one" and .unique > 0 and .shared > 0'
left=$(jq .shared "$T/out")
j disk detach ds/lab-7; is ".parent == \"\" and .shared == 0 and .copied <= $left"
j disk detach ds/lab-7; is '.copied == 0'
same ds/lab-7
run_check a datastore check ds

# --- a clone takes the place of what it was cloned from
run_check a disk import "$T/image.raw" ds/old
run_check a snapshot create ds/old --name base
run_check a snapshot clone ds/old@base ds/heir
run_mustfail 1 'no clone' a disk promote ds/old
j disk promote ds/heir; is '.parent == "" and .snapshots == 1'
j disk info ds/old; is '.parent == "ds/heir@base" and .snapshots == 0'
run_check a disk delete ds/old
wait_for 10 eval '[ "$(a snapshot list ds/heir --json | jq ".[0].clones")" = 0 ]'
check 'nothing of it is kept' [ "$(a disk list --deleted --json)" = '[]' ]
same ds/heir
run_check a disk delete ds/heir

# --- another host works with its clones while the one that has the image stands still
run_check b datastore join ds "$T/ds.img"
run_check b up --portal 127.0.0.1:0
pb=$(b status --json | jq -r .portal)
name() { a datastore info ds --json | jq -r --arg p "$1" '.hosts[] | select(.portal == $p) | .host'; }
run_check a disk move ds/vdi/desk-0001 "$(name "$pb")"
run_check a disk move ds/vdi/desk-0002 "$(name "$pb")"
run_check a disk info ds/gold
target=$(b lun list ds/vdi/desk-0001 --json | jq -r '.[0].target')
start mine "$BUILD/tests/tools/live_load" "$pb" "$target" 60 iqn.2026-11.local.granary:mine 81920
sleep 0.5
pid_a > "$T/pid.a"
kill -STOP "$(cat "$T/pid.a")"
on_exit 'kill -CONT $(cat $T/pid.a)'
sleep 1
same ds/vdi/desk-0002 b
enough mine
kill -CONT "$(cat "$T/pid.a")"
check 'it went on, and read what it wrote' jq -e '.errors == 0 and .ios > 100 and .reconnects == 0' "$T/mine.log"

# the image is a's, and so is the count of its clones: what b deletes is finished by a
run_check b disk delete ds/vdi/desk-0002
wait_for 20 eval 'a snapshot list ds/gold --deleted --json | jq -e ".[0].clones == 6" > /dev/null'
run_check b disk delete ds/vdi/desk-0001
wait_for 20 eval 'a snapshot list ds/gold --deleted --json | jq -e ".[0].clones == 5" > /dev/null'
run_check a datastore check ds
