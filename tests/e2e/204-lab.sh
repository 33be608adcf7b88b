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
if jq -e '.hosts[0].netns' "$T/lab.json" > "$T/out"; then
    ns=$(jq -r '.hosts[1].netns' "$T/lab.json") url=$(jq -r '.disks[0]."iscsi-url"' "$T/lab.json")
    one=$(jq -r '.hosts[0].portal' "$T/lab.json") two=$(jq -r '.hosts[1].portal' "$T/lab.json")
    run_check qemu-img info "${url/$one/$two}" # through the redirect of the other host
    ip -n "$ns" link set eth0 down
    if timeout 5 qemu-img info "${url/$one/$two}" > "$T/out" 2>&1; then fail 'a cut link still carries a login'; fi
    run_check qemu-img info "$url"
    ip -n "$ns" link set eth0 up
fi
run_mustfail 1 'already' "$TOP/scripts/lab" up "$dir"
run_check "$TOP/scripts/lab" down "$dir"
for pid in $(jq -r '.hosts[].pid' "$T/lab.json"); do
    if kill -0 "$pid" 2> /dev/null && [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ]; then fail "process $pid is still there"; fi
done
if [ -n "$(find "$dir" -name '*.netns' -o -name bridge)" ]; then fail 'a network is left'; fi
rm -rf "$dir"
run_check "$TOP/scripts/lab" up "$dir" --loopback --size 16M
check 'on the loopback' jq -e '.hosts[0].portal | startswith("127.0.0.1:")' "$T/out"
run_check "$TOP/scripts/lab" down "$dir"

# on a LUN of a target of its own, in namespaces where there are some; who is killed is taken over from
rm -rf "$dir"
run_mustfail 1 'file or lun' "$TOP/scripts/lab" up "$dir" --device tape
run_check "$TOP/scripts/lab" up "$dir" --hosts 2 --disks 1 --size 16M --device lun
cp "$T/out" "$T/lun.json"
check 'the device is a LUN' jq -e '(.device | startswith("iscsi://")) and .array.pid > 0' "$T/lun.json"
home=$(jq -r '.hosts[0].home' "$T/lun.json") url=$(jq -r '.disks[0]."iscsi-url"' "$T/lun.json")
one=$(jq -r '.hosts[0].portal' "$T/lun.json") two=$(jq -r '.hosts[1].portal' "$T/lun.json")
GRANARY_HOME=$home run_check granary datastore info lab --json
check 'which hosts share' jq -e '."shared-luns" and .timing == "fast" and ([.hosts[] | select(.alive)] | length) == 2' "$T/out"
run_check qemu-io -f raw -c 'write -P 0x33 1M 64k' "$url"
kill -KILL "$(jq -r '.hosts[0].pid' "$T/lun.json")"
wait_for 20 qemu-io -r -f raw -c 'read -P 0x33 1M 64k' "${url/$one/$two}" # for a second it may still be led to who is gone
run_check "$TOP/scripts/lab" down "$dir"
for pid in $(jq -r '.hosts[].pid, .array.pid' "$T/lun.json"); do
    if kill -0 "$pid" 2> /dev/null && [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ]; then fail "process $pid is still there"; fi
done
run_mustfail 2 'usage|scripts/lab' "$TOP/scripts/lab" sideways "$dir"
if grep -sq Sanitizer "$T"/home/log/*.log "$T"/b/log/*.log "$T"/*/lab/host*/log/*.log; then fail 'a sanitizer complains'; fi
