#!/bin/bash
# Owners, modes and times of a mounted datastore, for users that are not root and on two hosts: what one host sets the other holds everybody to at once.
# timeout: 120
. "$(dirname "$0")/lib.sh"
requires python3 unshare
mount_hosts 256M
# the way to $T is closed to others: in a namespace of its own it sees the two mounts below /mnt
# shellcheck disable=SC2016
as_users() { unshare -m sh -ec 'mount -t tmpfs none /mnt; mkdir /mnt/a /mnt/b; mount --bind "$2" /mnt/a; mount --bind "$3" /mnt/b; exec python3 "$1" /mnt/a /mnt/b' sh "$@"; }
cat > "$T/users.py" <<'P'
import errno, os, sys
ONE, TWO, TEAM = 61001, 61002, 62001 # users, each with a group of the same number; a group
def ids(uid, groups=()):
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
def as_user(uid, fn, *args, groups=()): # 0, or the errno; what else is wrong fails
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            ids(uid, groups)
            fn(*args)
            code = 0
        except OSError as e:
            code = e.errno
        except BaseException as e:
            print(fn, args, repr(e), file=sys.stderr)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
count = [0]
def attempts(uid, which, groups=()): # (code or 0, fn, *args) each, one after the other, by one process of that user
    def one_after_the_other():
        for code, fn, *args in which:
            try:
                fn(*args)
                got = 0
            except OSError as e:
                got = e.errno
            assert got == code, (uid, fn.__name__, args, errno.errorcode.get(got, got), "not", errno.errorcode.get(code, code))
    count[0] += len(which)
    assert as_user(uid, one_after_the_other, groups=groups) == 0
def may(uid, fn, *args, groups=()):
    attempts(uid, [(0, fn, *args)], groups)
def may_not(uid, code, fn, *args, groups=()):
    attempts(uid, [(code, fn, *args)], groups)
def read(path):
    with open(path, "rb") as f:
        return f.read()
def write(path):
    f = os.open(path, os.O_WRONLY)
    assert os.write(f, b"w") == 1
    os.close(f)
def make(path, mode=0o600):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
def run(path):
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as e:
            os._exit(e.errno)
    r = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if r:
        raise OSError(r, "exec")
P
cat > "$T/alone.py" <<'P'
from users import *
m = sys.argv[1]
may_not(ONE, errno.EACCES, os.listdir, m)
may_not(ONE, errno.EACCES, os.stat, m)
P
run_check a datastore mount ds "$MA"
run_check as_users "$T/alone.py" "$MA" "$MB" # without --allow-other nobody else is let in
run_check a unmount "$MA"
run_check a datastore mount ds "$MA" --allow-other
run_check b datastore mount ds "$MB" --allow-other

cat > "$T/modes.py" <<'P'
from users import *
import stat, time
a, b = sys.argv[1:3]
os.umask(0)
EACCES, EPERM = errno.EACCES, errno.EPERM
R, W = 4, 2
def both(path):
    return a + path, b + path
# ---- files: each of the nine bits, set through one host and asked for through both; the owner's bits are for the owner, also when others' allow more ----
make(a + "/f")
os.chown(a + "/f", ONE, TEAM)
users = {"owner": (ONE, ()), "group": (TWO, (TEAM,)), "other": (TWO, ())}
for n, mode in enumerate((0o000, 0o600, 0o400, 0o200, 0o060, 0o040, 0o020, 0o006, 0o004, 0o002, 0o077, 0o707, 0o770)):
    os.chmod((a, b)[n % 2] + "/f", mode)
    for shift, who in ((6, "owner"), (3, "group"), (0, "other")):
        uid, groups = users[who]
        attempts(uid, [(0 if mode >> shift & bit else EACCES, fn, path) for path in both("/f") for bit, fn in ((R, read), (W, write))], groups)
os.chown(b + "/f", TWO, TEAM) # another owner, at once
os.chmod(b + "/f", 0o600)
for path in both("/f"):
    may(TWO, read, path)
    may_not(ONE, EACCES, read, path)
# ---- programs ----
with open(a + "/run", "w") as f:
    f.write("#!/bin/sh\nexit 0\n")
for mode, ok in ((0o755, True), (0o744, False), (0o711, False), (0o555, True)): # a script is read by who runs it
    os.chmod(a + "/run", mode)
    for path in both("/run"):
        if ok:
            may(ONE, run, path)
        elif mode & 1:
            may_not(ONE, EACCES, read, path)
        else:
            may_not(ONE, EACCES, run, path)
# ---- folders: to list, to go through, to change ----
os.mkdir(a + "/d")
make(a + "/d/in", 0o666)
for n, (mode, lists, goes, changes) in enumerate(((0o755, 1, 1, 0), (0o711, 0, 1, 0), (0o744, 1, 0, 0), (0o700, 0, 0, 0), (0o777, 1, 1, 1), (0o733, 0, 1, 1), (0o722, 0, 0, 0), (0o766, 1, 0, 0))):
    os.chmod((b, a)[n % 2] + "/d", mode)
    for i, m in enumerate((a, b)):
        attempts(ONE, [(0 if ok else EACCES, fn, *args) for ok, fn, *args in (
            (lists, os.listdir, m + "/d"), (goes, read, m + "/d/in"), (goes, os.stat, m + "/d/in"), (changes, make, m + "/d/new%d" % i),
            (changes, os.mkdir, m + "/d/sub%d" % i), (changes, os.rename, m + "/d/in", m + "/d/out"))])
        if changes:
            attempts(TWO, [(0, os.rename, m + "/d/out", m + "/d/in"), (0, os.unlink, m + "/d/new%d" % i), (0, os.rmdir, m + "/d/sub%d" % i)])
        else:
            may_not(ONE, EACCES, os.unlink, m + "/d/in")
# ---- sticky folders: everybody may add, only the owner of a file or of the folder takes away ----
os.mkdir(a + "/tmp")
os.chmod(b + "/tmp", 0o1777)
assert os.stat(a + "/tmp").st_mode & 0o7777 == 0o1777
for here, there in ((a, b), (b, a)):
    may(ONE, make, here + "/tmp/ones", 0o666)
    for m in (here, there):
        may_not(TWO, EPERM, os.unlink, m + "/tmp/ones")
        may_not(TWO, EPERM, os.rename, m + "/tmp/ones", m + "/tmp/twos")
        may(TWO, write, m + "/tmp/ones")
    may(TWO, make, there + "/tmp/twos")
    may_not(TWO, EPERM, os.rename, there + "/tmp/twos", there + "/tmp/ones") # nor over it
    may(TWO, os.unlink, here + "/tmp/twos")
    may(ONE, os.unlink, there + "/tmp/ones")
# ---- who may change what ----
may(ONE, make, a + "/tmp/mine", 0o644)
for m in (a, b):
    s = os.stat(m + "/tmp/mine")
    assert (s.st_uid, s.st_gid, s.st_mode & 0o7777) == (ONE, ONE, 0o644), s
    may_not(TWO, EPERM, os.chmod, m + "/tmp/mine", 0o666)
    may_not(TWO, EPERM, os.chown, m + "/tmp/mine", TWO, -1)
    may_not(TWO, EACCES, os.truncate, m + "/tmp/mine", 0)
    may_not(TWO, EACCES, os.utime, m + "/tmp/mine")
    may_not(TWO, EPERM, os.utime, m + "/tmp/mine", (1, 1))
    may_not(ONE, EPERM, os.chown, m + "/tmp/mine", TWO, -1) # nothing is given away
    may_not(ONE, EPERM, os.chown, m + "/tmp/mine", -1, TEAM) # nor to a group that one is not in
    may(ONE, os.chown, m + "/tmp/mine", -1, TEAM, groups=(TEAM,))
    may(ONE, os.chown, m + "/tmp/mine", -1, ONE)
    may(ONE, os.chmod, m + "/tmp/mine", 0o640)
    may(ONE, os.utime, m + "/tmp/mine", (1, 1))
    may_not(TWO, EACCES, read, m + "/tmp/mine")
    may(ONE, os.chmod, m + "/tmp/mine", 0o644)
os.chmod(a + "/tmp/mine", 0o666)
may(TWO, os.utime, b + "/tmp/mine") # now is a write
# set-user-ID goes when somebody else writes, or when it gets another owner; set-group-ID is not for who is not in the group
os.chmod(a + "/tmp/mine", 0o6777)
may(TWO, write, b + "/tmp/mine")
for m in (a, b):
    assert os.stat(m + "/tmp/mine").st_mode & 0o6000 == 0, oct(os.stat(m + "/tmp/mine").st_mode)
os.chown(a + "/tmp/mine", ONE, TEAM)
may(ONE, os.chmod, b + "/tmp/mine", 0o2755)
for m in (a, b):
    assert os.stat(m + "/tmp/mine").st_mode & 0o2000 == 0
may(ONE, os.chmod, b + "/tmp/mine", 0o2755, groups=(TEAM,))
for m in (a, b):
    assert os.stat(m + "/tmp/mine").st_mode & 0o2000
# what is made has the mode that was asked for, less the umask; in a folder of a group that group's
def make_masked(path):
    os.umask(0o027)
    make(path, 0o666)
    os.mkdir(path + "-d", 0o777)
may(ONE, make_masked, b + "/tmp/masked")
assert os.stat(a + "/tmp/masked").st_mode & 0o7777 == 0o640 and os.stat(a + "/tmp/masked-d").st_mode & 0o7777 == 0o750
# a descriptor that is open stays what it is
def keeps():
    f = os.open(a + "/tmp/kept", os.O_RDWR | os.O_CREAT, 0o600)
    os.chmod(b + "/tmp/kept", 0)
    try:
        os.open(a + "/tmp/kept", os.O_RDONLY)
        raise AssertionError("opened")
    except PermissionError:
        pass
    assert os.pwrite(f, b"kept", 0) == 4 and os.pread(f, 4, 0) == b"kept"
may(ONE, keeps)
# ---- times ----
def times(path):
    x, y = (os.stat(m + path) for m in (a, b))
    assert (x.st_mtime_ns, x.st_ctime_ns) == (y.st_mtime_ns, y.st_ctime_ns), (path, x, y)
    return x.st_mtime_ns, x.st_ctime_ns
def moves(path, what, fn, *args): # what: m, c: must grow; the others must stay
    before = times(path)
    time.sleep(0.002)
    fn(*args)
    after = times(path)
    for k, t in enumerate("mc"):
        assert (after[k] > before[k]) if t in what else (after[k] == before[k]), (path, fn.__name__, t, before, after)
def cut(path):
    os.truncate(path, 3)
for m in (a, b):
    o = b if m == a else a
    make(o + "/t", 0o666)
    moves("/t", "mc", write, m + "/t")
    moves("/t", "", read, m + "/t")
    moves("/t", "mc", cut, m + "/t")
    moves("/t", "c", os.chmod, m + "/t", 0o644)
    moves("/t", "c", os.chown, m + "/t", ONE, ONE)
    moves("/t", "mc", os.utime, m + "/t")
    os.utime(m + "/t", ns=(5, 1234567890123456789))
    assert times("/t")[0] == 1234567890123456789
    os.mkdir(m + "/td")
    moves("/td", "mc", make, o + "/td/x")
    moves("/td", "", write, o + "/td/x")
    moves("/td", "", os.listdir, o + "/td")
    moves("/td", "mc", os.rename, o + "/td/x", o + "/td/y")
    moves("/td", "mc", os.unlink, m + "/td/y")
    moves("/td", "c", os.chmod, m + "/td", 0o711)
    moves("/td", "mc", os.mkdir, m + "/td/z")
    moves("/td", "mc", os.rmdir, o + "/td/z")
    os.rmdir(m + "/td")
    os.unlink(m + "/t")
print(count[0], "attempts of users")
P
run_check as_users "$T/modes.py" "$MA" "$MB"
echo "# $(cat "$T/out")"

mounts_over
