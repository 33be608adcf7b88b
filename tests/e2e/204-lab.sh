#!/bin/bash
# scripts/lab: a site of several hosts comes up, answers, and goes; also in a directory with a long name.
. "$(dirname "$0")/lib.sh"
requires jq qemu-img
dir=$T/a-rather-long-directory-name-so-that-the-sockets-do-not-fit-into-the-108-bytes-of-a-unix-socket-address/lab
on_exit "'$TOP/scripts/lab' down '$dir'"
GRANARY_BUILD=$BUILD
export GRANARY_BUILD
run_check "$TOP/scripts/lab" up "$dir" --hosts 2 --disks 2 --size 16M
cp "$T/out" "$T/lab.json"
check 'something was printed' [ -s "$T/lab.json" ]
check 'one JSON object with two hosts and two disks' jq -e '(.hosts | length) == 2 and (.disks | length) == 2' "$T/lab.json"
for url in $(jq -r '.disks[]."iscsi-url"' "$T/lab.json"); do run_check qemu-img info "$url"; done
run_mustfail 1 'already' "$TOP/scripts/lab" up "$dir"
run_check "$TOP/scripts/lab" down "$dir"
for pid in $(jq -r '.hosts[].pid' "$T/lab.json"); do
    if kill -0 "$pid" 2> /dev/null && [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ]; then fail "process $pid is still there"; fi
done
run_mustfail 2 'usage|scripts/lab' "$TOP/scripts/lab" sideways "$dir"
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log "$T"/*/lab/host*/log/*.log; then fail 'a sanitizer complains'; fi
