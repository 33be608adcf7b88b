#!/usr/bin/env python3
"""Touch everything below a directory that shows a damaged file system: errors are fine, hanging is not.

usage: walk-hostile.py DIR [SECONDS]: fails when one operation takes longer than SECONDS (10), or when something other
than an I/O error comes back. Prints the number of operations, errors and the longest time."""
import errno
import os
import sys
import time

top, limit = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
fine = {errno.EIO, errno.ELOOP, errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG, errno.EFBIG, errno.EOVERFLOW}
ops = errors = 0
longest = 0.0


def run(what, path, fn):
    global ops, errors, longest
    ops += 1
    start = time.monotonic()
    try:
        return fn()
    except OSError as e:
        errors += 1
        if e.errno not in fine:
            sys.exit(f"{what} {path!r}: {e}")
        return None
    finally:
        took = time.monotonic() - start
        longest = max(longest, took)
        if took > limit:
            sys.exit(f"{what} {path!r} took {took:.1f} s")


def read(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        for off in (0, size // 2, max(0, size - 4096)):
            os.pread(fd, 131072, off)
    finally:
        os.close(fd)


todo = [(top, 0)]
budget = 20000
while todo and budget > 0:
    path, depth = todo.pop()
    names = run("list", path, lambda: os.listdir(os.fsencode(path)))
    for name in names or []:
        budget -= 1
        if budget <= 0:
            break
        if name in (b".", b"..") or b"/" in name:
            sys.exit(f"a name that cannot be: {name!r}")
        child = os.path.join(os.fsencode(path), name)
        st = run("stat", child, lambda: os.lstat(child))
        if st is None:
            continue
        kind = st.st_mode & 0o170000
        if kind == 0o040000 and depth < 12:
            todo.append((child, depth + 1))
        elif kind == 0o120000:
            run("readlink", child, lambda: os.readlink(child))
        elif kind == 0o100000 and not child.endswith(b"disk.raw"):
            run("read", child, lambda: read(child))
print(f"{ops} operations, {errors} errors, longest {longest:.2f} s")
