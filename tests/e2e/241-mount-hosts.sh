#!/bin/bash
# Two hosts show one datastore as a file system at once: what one did the other sees; locks hold between them; the daemons are killed.
# timeout: 300
. "$(dirname "$0")/lib.sh"
requires python3 fio
export PATH=$BUILD/tests/tools:$PATH
mount_hosts 1G
run_check a datastore mount ds "$MA"
run_check b datastore mount ds "$MB"

# ---- one file system: each operation goes through one of the two ----
mkdir "$MA/work"
run_check fs_model "${GRANARY_SOAK:-10}" "$MA/work" "$MB/work"
mkdir "$MA/again"
FS_MODEL_KILLS=1 start model fs_model 90 "$MA/again" "$MB/again"
for _ in 1 2; do
    sleep 1.5
    kill -9 "$(cat "$A/run/storaged.pid")"
    run_check a up
    sleep 1.5
    kill -9 "$(cat "$B/run/storaged.pid")"
    run_check b up
done
sleep 1
enough model
check 'the model and both hosts agree' grep -q operations "$T/model.log"

# ---- at the same time ----
for kind in flock posix ofd; do
    pids=()
    for m in "$MA" "$MA" "$MB" "$MB"; do
        fs_model count 60 "$kind" "$m/counter" &
        pids+=($!)
    done
    for p in "${pids[@]}"; do wait "$p" || fail "counting under $kind locks failed"; done
    check "no count was lost under $kind locks" [ "$(cat "$MB/counter")" = 240 ]
    rm "$MB/counter"
done
pids=()
for n in 1 2 3 4; do
    m=$MA
    [ $((n % 2)) = 0 ] || m=$MB
    fs_model append 100 "w$n" "$m/lines" &
    pids+=($!)
done
for p in "${pids[@]}"; do wait "$p" || fail 'an append failed'; done
for n in 1 2 3 4; do seq -f "w$n %g" 0 99; done | sort > "$T/want"
check 'no line was lost or torn' cmp "$T/want" <(sort "$MA/lines")
check 'both see the same' cmp "$MA/lines" "$MB/lines"
# fio on both at once; each then verifies what the other wrote
cd "$T" # its state files
both() { # JOB-SUFFIX-OF-A JOB-SUFFIX-OF-B ARG...
    local one=$1 two=$2; shift 2
    local job=(--size=8M --rw=randwrite --bs=16k --verify=crc32c --verify_fatal=1 --ioengine=psync --end_fsync=1 --verify_state_save=0 "$@")
    start fio-a fio --name="w$one" --filename="$MA/fio$one" "${job[@]}"
    start fio-b fio --name="w$two" --filename="$MB/fio$two" "${job[@]}"
    over fio-a
    over fio-b
    if grep 'verify failed' "$T/fio-a.log" "$T/fio-b.log"; then fail 'one host does not see what the other wrote'; fi
    check 'both did all of it, and nothing is wrong' [ "$(grep -c 'err= 0' "$T/fio-a.log" "$T/fio-b.log" | grep -c ':1$')" = 2 ]
}
both 1 2 --do_verify=0
both 2 1 --verify_only=1
cd "$TOP"
# whoever looks at a name that is replaced sees the old or the new file, whole
python3 - "$MA" "$MB" > "$T/out" 2>&1 <<'P' || { cat "$T/out"; fail 'a name that is replaced'; }
import os, sys
a, b = sys.argv[1:]
def write(m, n):
    with open(m + "/new", "w") as f:
        f.write("%d\n" % n * 2000)
    os.rename(m + "/new", m + "/current")
write(a, 0)
pid = os.fork()
if pid == 0:
    for n in range(1, 60):
        write(a, n)
    os._exit(0)
last = -1
while last < 59:
    lines = open(b + "/current").read().split()
    n = int(lines[0])
    assert len(lines) == 2000 and set(lines) == {lines[0]}, (n, len(lines))
    assert n >= last, (n, last)
    last = n
    write_done = os.waitpid(pid, os.WNOHANG)
    if write_done[0]:
        assert write_done[1] == 0
        last = int(open(b + "/current").readline())
        assert last == 59, last
# mapped there, written here
f = os.open(a + "/map", os.O_RDWR | os.O_CREAT)
os.ftruncate(f, 8192)
import mmap
ma = mmap.mmap(f, 8192)
g = os.open(b + "/map", os.O_RDWR)
assert os.fstat(g).st_size == 8192
mb = mmap.mmap(g, 8192)
for i in range(50):
    ma[i] = i + 1
    assert mb[i] == i + 1, i
    mb[4096 + i] = 100 + i
    assert os.pread(f, 1, 4096 + i)[0] == 100 + i, i
# without a name here, open there
h = os.open(b + "/lost", os.O_RDWR | os.O_CREAT)
os.pwrite(h, b"still here", 0)
os.unlink(a + "/lost")
os.pwrite(h, b"S", 0)
assert os.pread(h, 20, 0) == b"Still here"
k = os.open(a + "/both", os.O_RDWR | os.O_CREAT)
l = os.open(b + "/both", os.O_RDWR)
os.unlink(b + "/both")
os.pwrite(k, b"one", 0)
os.close(k)
assert os.pread(l, 3, 0) == b"one"
os.close(l)
os.close(h)
P

# ---- a host dies with a file ----
printf 'from b' > "$MB/last"
sync "$MB/last"
sleep 300 7<> "$MB/last" & # in a process of its own: to close it needs the daemon
track $!
holder=$!
kill -9 "$(cat "$B/run/storaged.pid")"
check 'what was synced there is here' [ "$(timeout 60 cat "$MA/last")" = 'from b' ]
printf 'a was here' > "$MA/last"
run_check b up
check 'it sees what happened meanwhile' [ "$(cat "$MB/last")" = 'a was here' ]
kill "$holder"
wait "$holder" || true

# ---- disks: who has it ----
run_check b disk create ds/disk --size 4M
exec 7<> "$MB/disk"
if : 2> /dev/null 8<> "$MA/disk"; then fail 'a disk that is open on another host was opened'; fi
check 'the log names the host' grep -Eq "disk cannot be opened for writing: host '.*' has it" "$A/log/storaged.log"
exec 7>&-
: 8<> "$MA/disk" || fail 'a disk that nobody uses any more'
mounts_over
