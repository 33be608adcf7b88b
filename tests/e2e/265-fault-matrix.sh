#!/bin/bash
# One trial of each cell of the fault matrix: hosts as processes and in network namespaces, on a file and on LUNs, killed, stopped, cut off,
# starved, with clocks that jump, answers that are lost, whoever takes over killed at each step, and storage that stands still or fails (tests/matrix).
# Trials in which a third device is lost take long: make matrix.
# timeout: 600
. "$(dirname "$0")/lib.sh"
requires jq ip unshare nbdkit nbdfuse
requires_root
[ -d /sys/fs/cgroup/cpu ] || skip 'needs the cpu controller of cgroups'
TMPDIR=$T "$TOP/tests/matrix/run" --jobs 8 --kinds "lun lun_steps file fuse lun_idle fuse_idle"
