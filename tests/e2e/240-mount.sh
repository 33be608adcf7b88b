#!/bin/bash
# granary datastore mount: a datastore as a file system that is written. Random operations against a model, also while the daemon is killed; fio; limits
# on names; disks as raw files, for one writer at a time.
# timeout: 300
. "$(dirname "$0")/lib.sh"
requires jq fio python3 qemu-io
[ -c /dev/fuse ] || skip 'no /dev/fuse'
requires_root
export PATH=$BUILD/tests/tools:$PATH
M=$T/mnt
mkdir "$M"
on_exit "granary unmount --force '$M'"
run_check granary datastore create ds "$T/ds.img" --size 1G
run_mustfail 4 'granary up' granary datastore mount ds "$M" # nobody to serve it
run_check granary up --portal 127.0.0.1:0 --mover 127.0.0.1:0
run_check granary disk create ds/vm/disk --size 8M
run_check granary datastore mount ds "$M"
check 'folders and disks are there' [ "$(stat -c '%F %s' "$M/vm/disk")" = 'regular file 8388608' ]

# ---- what software expects of files ----
mkdir "$M/work"
run_check fs_model "${GRANARY_SOAK:-8}" "$M/work"
check 'nothing of Granary shows' [ "$(ls "$M" | tr '\n' ' ')" = 'vm work ' ]
python3 - "$M" > "$T/out" 2>&1 <<'P' || { cat "$T/out"; fail 'files do not behave'; }
import errno, os, stat, sys
os.chdir(sys.argv[1])
def refused(code, fn, *args):
    try:
        fn(*args)
    except OSError as e:
        assert e.errno == code, (fn, args, e)
    else:
        raise AssertionError((fn, args))
os.umask(0o022)
os.mkdir("n" * 255)
os.rmdir("n" * 255)
refused(errno.ENAMETOOLONG, os.mkdir, "n" * 256)
for name in "a:b", "a@b", "granary.x", b"\xff".decode(errors="surrogateescape"):
    refused(errno.EPERM if name.startswith("granary") else errno.EINVAL, os.mkdir, name)
refused(errno.EPERM, os.symlink, "a", "b")
refused(errno.EPERM, os.unlink, "vm/disk")
# sparse, and a length that is no multiple of anything
f = os.open("sparse", os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(f, (1 << 40) + 7)
os.pwrite(f, b"x", 1 << 39)
assert os.lseek(f, 0, os.SEEK_DATA) == 1 << 39 and os.lseek(f, 1 << 39, os.SEEK_HOLE) > 1 << 39
assert os.fstat(f).st_blocks * 512 <= 1 << 17 and os.fstat(f).st_size == (1 << 40) + 7
assert stat.S_IMODE(os.fstat(f).st_mode) == 0o600
os.chmod("sparse", 0o4755)
os.chown("sparse", 12, 34)
os.utime("sparse", ns=(1234567890123456789, 987654321987654321))
s = os.stat("sparse")
assert (s.st_uid, s.st_gid, s.st_atime_ns, s.st_mtime_ns) == (12, 34, 1234567890123456789, 987654321987654321), s
# a directory of a group; its time moves with its names
os.mkdir("group")
os.chown("group", 0, 77)
os.chmod("group", 0o2775)
before = os.stat("group").st_mtime_ns
os.mkdir("group/below")
s = os.stat("group/below")
assert s.st_gid == 77 and s.st_mode & stat.S_ISGID, s
assert os.stat("group").st_mtime_ns > before
refused(errno.ENOTEMPTY, os.rmdir, "group")
refused(errno.EINVAL, os.rename, "group", "group/below/x")
# gone by name, there by descriptor
os.unlink("sparse")
assert os.pread(f, 1, 1 << 39) == b"x" and os.fstat(f).st_nlink == 0
os.close(f)
P
# ---- durable and owned: also for who mounts next, and for commands ----
printf 'kept' > "$M/work/kept"
chmod 640 "$M/work/kept"
sync "$M/work/kept"
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary up
check 'what was synced is there' [ "$(cat "$M/work/kept")" = kept ]
check 'and its mode' [ "$(stat -c %a "$M/work/kept")" = 640 ]
# the daemon is killed under a load: whoever uses the mount sees a pause
mkdir "$M/again"
FS_MODEL_KILLS=1 start model fs_model 60 "$M/again"
for _ in 1 2 3; do
    sleep 1
    kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
    run_check granary up
done
sleep 1
enough model
check 'the model and the datastore agree' grep -q operations "$T/model.log"
fs_model append 300 line "$M/lines" &
appender=$!
sleep 0.1
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary up
wait "$appender" || fail 'an append failed'
seq -f 'line %g' 0 299 > "$T/lines"
check 'each line was appended once' cmp "$T/lines" "$M/lines"

# locks outlive the daemon
cat > "$T/locks.py" <<'P'
import errno, fcntl, os, sys, time
a, b = (open(sys.argv[1] + "/locked", "w") for i in range(2))
def taken(fn, f):
    try:
        fn(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        assert e.errno == errno.EAGAIN, e
        return True
    return False
def other(f): # a POSIX lock is a process's
    pid = os.fork()
    if pid == 0:
        os._exit(1 if taken(lambda f, how: fcntl.lockf(f, how, 10, 5), f) else 0)
    return os.waitpid(pid, 0)[1] != 0
fcntl.flock(a, fcntl.LOCK_EX)
fcntl.lockf(a, fcntl.LOCK_EX, 30, 0)
fcntl.lockf(a, fcntl.LOCK_UN, 5, 20)
for again in range(2):
    assert taken(fcntl.flock, b)
    assert other(b)
    if not again:
        open(sys.argv[2] + "/locked", "w")
        while not os.path.exists(sys.argv[2] + "/again"):
            time.sleep(0.05)
fcntl.flock(a, fcntl.LOCK_UN)
assert not taken(fcntl.flock, b)
fcntl.lockf(a, fcntl.LOCK_UN, 30, 0)
assert not other(b)
print("held")
P
start locks python3 "$T/locks.py" "$M" "$T"
wait_for 60 test -e "$T/locked"
kill -9 "$(cat "$GRANARY_HOME/run/storaged.pid")"
run_check granary up
: > "$T/again"
over locks
check 'no lock was lost with the daemon' grep -qx held "$T/locks.log"

# ---- fio ----
cd "$T" # its state files
run_check fio --name=direct --directory="$M/work" --size=16M --rw=randrw --bsrange=512-64k --verify=crc32c --verify_fatal=1 --ioengine=libaio --iodepth=8 --direct=1
run_check fio --name=odd --directory="$M/work" --size=4M --rw=randwrite --bsrange=100-9000 --bs_unaligned --verify=md5 --verify_fatal=1 --ioengine=psync
run_check fio --name=mapped --directory="$M/work" --size=8M --rw=randwrite --bs=4k --verify=crc32c --verify_fatal=1 --ioengine=mmap
cd "$TOP"

# ---- disks ----
url=$(granary lun list --json | jq -r '.[0]."iscsi-url"')
run_check qemu-io -f raw -c 'write -P 0x51 0 64k' "$url"
check 'written by an initiator, read as a file' [ "$(head -c 65536 "$M/vm/disk" | tr -d Q | wc -c)" = 0 ]
head -c 4096 /dev/zero | tr '\0' W > "$T/w"
run_check dd if="$T/w" of="$M/vm/disk" bs=4096 seek=3 conv=notrunc,fsync
run_check qemu-io -r -f raw -c 'read -P 0x57 12288 4096' -c 'read -P 0x51 8192 4096' "$url"
check 'an initiator reads it' [ "$(grep -c 'read 4096/4096' "$T/out")" = 2 ]
if dd if="$T/w" of="$M/vm/disk" bs=4096 seek=2048 conv=notrunc 2> /dev/null; then fail 'a disk grew'; fi
exec 7<> "$M/vm/disk"
run_mustfail 1 '.' qemu-io -f raw -c 'read 0 512' "$url"
run_mustfail 4 'use' granary disk delete ds/vm/disk
exec 7>&-
start session qemu-io -f raw -c 'sleep 60000' "$url"
wait_for 10 sh -c "granary session list --json | jq -e 'length > 0'"
if : 2> /dev/null 7<> "$M/vm/disk"; then fail 'a disk in use was opened for writing'; fi
check 'the log says who has it' grep -q 'vm/disk cannot be opened for writing.*session' "$GRANARY_HOME/log/storaged.log"
check 'and so does the file' [ "$(python3 -c 'import os,sys; print(os.getxattr(sys.argv[1], "user.granary.holder").decode())' "$M/vm/disk")" = '1 session on this host' ]
check 'reading is allowed' [ "$(head -c 4096 "$M/vm/disk" | tr -d Q | wc -c)" = 0 ]
stop session KILL
mv "$M/vm/disk" "$M/vm/renamed" || fail 'a disk cannot be renamed'
run_check granary disk info ds/vm/renamed

# ---- quotas ----
mkdir "$M/small"
run_check granary datastore quota ds/small 2M
head -c 4M /dev/urandom > "$M/large"
if head -c 4M /dev/urandom 2> /dev/null > "$M/small/large"; then fail 'a file is larger than its folder may be'; fi
rm "$M/small/large"
if mv "$M/large" "$M/small/large" 2> /dev/null; then fail 'a file that is larger than its folder may be moved there'; fi
check 'it is where it was' [ "$(stat -c %s "$M/large")" = 4194304 ]
check 'and not there' [ -z "$(ls "$M/small")" ]

# what would wait for itself is refused
truncate -s 1M "$M/image"
run_mustfail 1 'mounted datastore' granary disk import "$M/image" ds/imported --format raw
run_mustfail 1 'mounted datastore' granary disk export ds/vm/renamed "$M/exported"
run_mustfail 1 'mounted datastore' granary datastore create inner "$M/inner" --size 64M

# ---- the end ----
run_mustfail 4 'mounted' granary datastore leave ds
exec 8< "$M/lines"
run_mustfail 4 '.' granary datastore unmount "$M"
exec 8<&-
run_check granary datastore unmount "$M"
check 'nothing is mounted' [ -z "$(ls -A "$M")" ]
run_check granary datastore mount ds/work "$M"
check 'a folder can be mounted' [ "$(cat "$M/kept")" = kept ]
check 'its owner is who it was' [ "$(stat -c %a "$M/kept")" = 640 ]
run_check granary unmount "$M"
run_check granary datastore check ds
run_check granary down
if grep -sq Sanitizer "$T"/home/log/*.log; then fail 'a sanitizer complains'; fi
