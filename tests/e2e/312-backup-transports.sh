#!/bin/bash
# The transports against a running daemon: san (iSCSI), lan (NBD with TLS), local (the datastore itself, as a reader beside the
# daemon), each full and incremental; restores through the daemon; files out of a point.
. "$(dirname "$0")/lib.sh"
requires granary granary-proxy granary-storaged jq qemu-io qemu-img mke2fs cmp python3
cd "$T"
repo=$T/repo
field() { jq -r ".[0][\"$1\"]" out; }
mkdir -p src/etc; echo "it is me" > src/etc/motd; head -c 3000000 /dev/urandom > src/big
mke2fs -q -t ext4 -d src fs.img 64M
run_check granary datastore create ds1 "$T/vol.img" --size 1G
run_check granary disk import fs.img ds1/vm/root --format raw
run_check granary disk create ds1/vm/data --size 100M
run_check granary up --portal "127.0.0.1:$(free_port)" --mover "127.0.0.1:$(free_port)"
on_exit 'granary down'
url() { granary lun list --json | jq -r ".[]|select(.disk==\"$1\")|.\"iscsi-url\""; }
data=$(url ds1/vm/data)
truncate -s 100M data.raw
write() { # OFFSET LENGTH PATTERN: in the live LUN and in the oracle
    run_check qemu-io -f raw -c "write -P $3 $1 $2" -c flush "$data"
    qemu-io -f raw -c "write -P $3 $1 $2" data.raw > /dev/null
}
n=0
for transport in san lan local; do
    n=$((n + 1))
    write $((n * 10485760)) 1M $((n + 40))
    run_check granary backup run --disk ds1/vm/root --disk ds1/vm/data --name "$transport" --repo "$repo" --transport $transport --json
    check "$transport: full" test "$(field kind)/$(field transport)" = full/$transport
    full=$(field read)
    write $((n * 10485760 + 4096)) 8192 $((n + 80))
    run_check granary backup run --disk ds1/vm/root --disk ds1/vm/data --name "$transport" --repo "$repo" --transport $transport --json
    check "$transport: 8 KiB changed, $(field read) read (full: $full)" test "$(field read)" -le 9011
    check "$transport: and not less" test "$(field read)" -ge 8192
    rm -f ./*.back
    run_check granary backup export "$transport:data" data.back --format raw --repo "$repo"; check "$transport: data" equal data.raw data.back
    run_check granary backup export "$transport:root" root.back --format raw --repo "$repo"; check "$transport: root" equal fs.img root.back
done
check "no snapshot stays" test "$(granary snapshot list ds1/vm/data --json | jq length)$(granary snapshot list ds1/vm/root --json | jq length)" = 00
check "no intent stays" test -z "$(ls home/state/intents)"
run_check granary restore disk local:data ds1/back --repo "$repo"
run_check qemu-img compare -f raw -F raw data.raw "$(url ds1/back)"
run_mustfail 1 "exists already" granary restore disk local:data ds1/back --repo "$repo"
run_check granary restore file lan:root /etc/motd motd --repo "$repo"
check "a file of the guest" cmp motd src/etc/motd
run_check granary restore file lan:root /big . --repo "$repo"
check "a larger one" cmp big src/big
run_mustfail 1 "nothere" granary restore file lan:root /nothere x --repo "$repo"
# a job killed while the daemon serves it leaves a snapshot: the next one takes it away
truncate -s 90M noise; dd if=/dev/urandom of=noise bs=1M count=80 conv=notrunc status=none
run_check qemu-img convert -n -f raw -O raw noise "$data"
granary-proxy backup --repo "$repo" --transport lan --disk ds1/vm/data --name killed > killed.log 2>&1 & pid=$!
wait_for 20 bash -c 'granary snapshot list ds1/vm/data --json | jq -e "length>0" > /dev/null || ! kill -0 '$pid
kill -KILL $pid 2> /dev/null || true; wait $pid || true
run_check granary backup run --disk ds1/vm/data --name killed --repo "$repo" --transport san
check "no snapshot stays after a kill" test "$(granary snapshot list ds1/vm/data --json | jq length)" = 0
check "no intent either" test -z "$(ls home/state/intents)"
# ended by a signal: in order, at once
granary-proxy backup --repo "$repo" --transport lan --disk ds1/vm/data --name ended --json > ended.log 2>&1 & pid=$!
wait_for 20 bash -c 'granary snapshot list ds1/vm/data --json | jq -e "length>0" > /dev/null || ! kill -0 '$pid
kill -TERM $pid 2> /dev/null || true; wait $pid || true
check "nothing left by a job that was told to end" test "$(granary snapshot list ds1/vm/data --json | jq length)$(ls home/state/intents)$(ls repo/tmp)" = 0
# three jobs at once into one repository, and one of a name that is being backed up
pids=()
for k in 1 2 3; do granary-proxy backup --repo "$repo" --transport lan --disk ds1/vm/data --name "at-once-$k" > "once$k.log" 2>&1 & pids+=($!); done
for p in "${pids[@]}"; do wait "$p" || { cat once*.log; fail "a job beside others failed"; }; done
run_check qemu-img convert -f raw -O raw "$data" data.now
for k in 1 2 3; do rm -f x.raw; run_check granary backup export "at-once-$k" x.raw --format raw --repo "$repo"; check "job $k of three" equal x.raw data.now; done
(exec 7> "repo/leases/.name-$(printf taken | sha256sum | cut -c1-16)"
    python3 -c 'import fcntl, struct, time; fcntl.fcntl(7, 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)); time.sleep(60)' & echo $! > holder.pid; wait) &
wait_for 10 test -s holder.pid
track "$(cat holder.pid)"; sleep 1
run_mustfail 4 "another job is backing up 'taken'" granary backup run --disk ds1/vm/data --name taken --repo "$repo"
end_pid "$(cat holder.pid)"
run_check granary backup verify --repo "$repo"
run_check granary down
run_check granary datastore check ds1
