#!/bin/bash
# Backup and restore of plain disks without a daemon: full, incremental by what changed, retention, collection, damage, refusals.
# The oracle is a raw file that gets the same changes as the disk.
. "$(dirname "$0")/lib.sh"
requires granary granary-proxy jq truncate cmp
poke=$BUILD/tests/tools/disk_poke
[ -x "$poke" ] || skip "needs $poke (make tools)"
cd "$T"
repo=$T/repo
field() { jq -r ".[0][\"$1\"]" out; }
both() { "$poke" ds1/vm/a < "$1" && "$poke" --file a.raw < "$1"; }
backup() { run_check granary backup run --disk ds1/vm/a --repo "$repo" --json "$@"; }
restored_equals() { # POINT RAW
    rm -f back.raw
    run_check granary backup export "$1" back.raw --format raw --repo "$repo"
    check "$1 gives back $2" equal back.raw "$2"
}

run_check granary datastore create ds1 "$T/vol.img" --size 1G
run_check granary disk create ds1/vm/a --size 300M
truncate -s 300M a.raw
{ echo "w 0 1048576 1"; echo "w 100000768 8192512 2"; echo "w 209715200 65536 3"; echo "w 314568704 4096 4"; } > c1
both c1

# full, then nothing, then what changed and no more
backup; check "a first backup is full" test "$(field kind)" = full
check "and says why" grep -q "first backup" out
p1=$(field point); cp a.raw p1.raw
backup; check "no change, nothing read" test "$(field kind)/$(field read)" = incremental/0
{ echo "w 4096 4096 11"; echo "z 209715200 65536"; echo "w 150003712 131072 12"; echo "w 65536000 4096 13"; echo "w 65544192 4096 14"; } > c2
both c2
backup; p3=$(field point); cp a.raw p3.raw
changed=$((4096 + 131072 + 4096 + 4096))
check "an incremental reads what changed ($(field read) of $changed)" test "$(field read)" -le $((changed * 11 / 10))
check "and not less" test "$(field read)" -ge "$changed"
check "no snapshot stays" test "$(granary snapshot list ds1/vm/a --json | jq length)" = 0
check "no intent stays" test -z "$(ls home/state/intents)"
check "no lease stays" test -z "$(ls repo/leases)$(ls repo/tmp)"
restored_equals "$p1" p1.raw
restored_equals "$p3" p3.raw
# a snapshot taken and deleted before the overwrite changes nothing about that
run_check granary snapshot create ds1/vm/a --name x; run_check granary snapshot delete ds1/vm/a@x
echo "w 8192 12288 15" > c3; both c3
backup; check "12 KiB changed, 12 KiB read" test "$(field read)" -le 13516; cp a.raw p4.raw; p4=$(field point)
restored_equals "$p4" p4.raw
# grown disk
run_check granary disk resize ds1/vm/a 400M; truncate -s 400M a.raw
echo "w 400000000 8192 16" | sed 's/400000000/400003072/' > c4; both c4
backup; check "grown: still incremental" test "$(field kind)" = incremental; p5=$(field point); cp a.raw p5.raw
restored_equals "$p5" p5.raw
restored_equals "$p4" p4.raw
# reverted: what changed cannot be told from births alone; full or not, it must be right
run_check granary snapshot create ds1/vm/a --name before; cp a.raw before.raw
echo "w 50003968 65536 17" > c5; both c5; backup
echo "w 60002304 65536 18" > c6; both c6
run_check granary snapshot revert ds1/vm/a@before; cp before.raw a.raw
echo "w 70004736 4096 19" > c7; both c7
backup; p7=$(field point); echo "after a revert: $(field kind), $(field cause)"
cp a.raw p7.raw; restored_equals "$p7" p7.raw
# --full shares what is there already
backup --full; check "a full stores little new" test "$(field stored)" -lt 300000; restored_equals "$(field point)" a.raw

# restores
run_check granary restore disk "$p3" ds1/vm/b
run_check granary disk export ds1/vm/b b.raw --format raw; check "restored disk" equal b.raw p3.raw
run_mustfail 1 "exists already" granary restore disk "$p3" ds1/vm/b
run_mustfail 1 "no restore point" granary restore disk ds1/vm/a/20010101T000000Z ds1/vm/c
run_mustfail 1 "no restore point of" granary restore disk ds1/nobody ds1/vm/c
run_mustfail 1 "has no disk 'zz'" granary restore disk "$p3:zz" ds1/vm/c
run_mustfail 1 "holds no VM" granary restore vm "$p3" --as ds1/new
run_check granary backup export "$p3" p3.vmdk
check "VMDK of a point" qemu-img compare -f raw -F vmdk p3.raw p3.vmdk
run_mustfail 1 "exists already" granary backup export "$p3" p3.vmdk

# refusals
mkdir full; touch full/holiday.jpg
run_mustfail 1 "holiday.jpg" granary backup run --disk ds1/vm/a --repo full
run_mustfail 1 "no such|does not exist|not found|cannot|unknown|there is no|No such" granary backup run --disk ds1/vm/zz --repo "$repo"
run_mustfail 1 "ds1/vm/zz" granary backup run --disk ds1/vm/zz --repo new
run_mustfail 1 "no-vm" granary backup run ds1/no-vm --repo new
check "no repository for a job that cannot be" test ! -e new
run_mustfail 2 "not both" granary backup run ds1/x --disk ds1/vm/a --repo "$repo"
run_mustfail 1 "needs the storage daemon" granary backup run --disk ds1/vm/a --repo "$repo" --transport san
run_mustfail 2 "unknown transport" granary backup run --disk ds1/vm/a --repo "$repo" --transport pigeon
check "failed jobs leave nothing" test "$(granary snapshot list ds1/vm/a --json | jq '[.[]|select(.name!="before")]|length')/$(ls home/state/intents | wc -l)" = 0/0

# the catalogue is a cache
granary backup list --repo "$repo" --json > l1; rm -f repo/catalogue.db*; granary backup list --repo "$repo" --json > l2
check "the same without it" cmp l1 l2
run_check granary backup rebuild-catalogue --repo "$repo"; granary backup list --repo "$repo" --json > l2; check "the same rebuilt" cmp l1 l2

# retention and collection
run_check granary backup prune ds1/vm/a --keep-last 2 --repo "$repo"
check "two stay" test "$(granary backup list --repo "$repo" --json | jq length)" = 2
run_check granary backup gc --repo "$repo" --json
run_check granary backup verify --repo "$repo"
restored_equals ds1/vm/a a.raw
run_mustfail 1 "no restore point" granary backup show "$p1" --repo "$repo"

# damage is found, named, and its exit status is 5
big=$(find repo/packs -name '*.pack' -printf '%s %p\n' | sort -n | tail -1 | cut -d' ' -f2)
dd if=/dev/urandom of="$big" bs=64 count=1 seek=$(($(stat -c %s "$big") / 128)) conv=notrunc status=none
run_mustfail 5 "damaged" granary backup verify --repo "$repo"
check "affected points are named" grep -q "ds1/vm/a/2" out
run_check granary datastore check ds1
