#!/bin/bash
# timeout: 1500
# scripts/quickstart as a user runs it, and beside it a second copy that is interrupted when its guest runs (it boots: that costs
# less than one that is up): the first finds everything right, neither leaves a process, mount or file.
# guest
. "$(dirname "$0")/lib.sh"
requires qemu-system-x86_64 jq mmdebstrap nbdinfo setsid
requires_root
[ -e /dev/fuse ] || skip "needs /dev/fuse"
mkdir "$T/one" "$T/two"

# (a shell starts its background jobs with SIGINT ignored)
TMPDIR=$T/two setsid env --default-signal=INT "$TOP/scripts/quickstart" > "$T/two.log" 2>&1 &
two=$!
on_exit "kill -TERM $two"
TMPDIR=$T/one setsid "$TOP/scripts/quickstart" > "$T/one.log" 2>&1 &
one=$!
on_exit "kill -TERM $one"

# the second: Ctrl-C, as a terminal sends it, to all of its process group
runs() { GRANARY_HOME=$(echo "$T"/two/granary-quickstart.*/home) granary vm info web --json | jq -e '.state == "running"'; }
wait_for 900 grep -q '^         \$ granary vm start web' "$T/two.log"
wait_for 180 runs
kill -INT -- "-$two"
status=0
wait "$two" || status=$?
check "an interrupt is told by the exit status ($status)" test $status = 130
status=0
wait "$one" || status=$?
[ $status = 0 ] || { cat "$T/one.log"; fail "quickstart: exit $status"; }

check "it says what it did" grep -q '^What was done' "$T/one.log"
check "three backups" test "$(grep -c 'filesystem-consistent' "$T/one.log")" = 3
check "strangers were refused" test "$(grep -c ': refused (' "$T/one.log")" = 3
check "the restored guest checked itself" grep -q 'granary-selfcheck: OK .* disks=2' "$T/one.log"
for t in one two; do
    check "nothing is left in $t" test -z "$(ls -A "$T/$t")"
    check "nothing of $t is mounted" sh -c "! grep -q ' $T/$t' /proc/self/mounts"
    for p in /proc/[0-9]*; do
        ! grep -qzE "^GRANARY_HOME=$T/$t/" "$p/environ" 2>/dev/null || fail "still runs: $(tr '\0' ' ' < "$p/cmdline")"
    done
done
sed -n '/^What was done/,/^A permanent/p' "$T/one.log" | sed 's/^/# /'
