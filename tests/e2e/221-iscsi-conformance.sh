#!/bin/bash
# timeout: 600
# Every test of iscsi-test-cu, each on the thin disk of a datastore that can run it: one that reports 512-byte physical blocks, with a
# second path, one that reports 4096 (512e), a removable, a read-only one and two to be sanitized, at the same time. Together they run
# all tests, and none fails; results as in the tables; nothing left behind by them.
. "$(dirname "$0")/lib.sh"
requires jq iscsi-test-cu
run_check granary datastore create ds "$T/ds.img" --size 7G
run_check granary disk create ds/512n --size 1025M --physical-block 512 # one MiB more than the longest WRITE SAME
run_check granary disk create ds/512e --size 1025M
run_check granary disk create ds/removable --size 1G
run_check granary disk create ds/readonly --size 1G
run_check granary disk create ds/sanitize --size 256M
run_check granary disk create ds/reset --size 1536M # large enough that its sanitizing is under way when the unit is reset
run_check granary disk set ds/removable --removable on
run_check granary up --portal 127.0.0.1:0 --multipath-portal 127.0.0.1:0 --mover 127.0.0.1:0
second=$(granary status --json | jq -er '."multipath-portal"')
run_check granary disk set ds/readonly --read-only on
url() { granary lun list --json | jq -er ".[] | select(.disk == \"$1\") | .\"iscsi-url\""; }
conform() { # DISK ARG...: its output in $T/DISK
    local disk=$1 profile=${1/reset/sanitize}; shift
    B=$BUILD "$TOP/tests/conformance/run" --table "$TOP/tests/conformance/expected-$profile.tsv" "$@" "$(url "ds/$disk")" > "$T/$disk" 2>&1
}
# GetLBAStatus.UnmapSingle agrees with the standard only where a physical block is a logical one
conform 512n --not '^Sanitize' --second "$(url ds/512n | sed "s|//[^/]*/|//$second/|")" & pids=($!)
conform 512e --not '^Sanitize|^GetLBAStatus.UnmapSingle$' & pids+=($!)
conform removable --only '^NoMedia|^PreventAllow|^StartStopUnit' & pids+=($!)
conform readonly --only '^ReadOnly' & pids+=($!)
conform sanitize --only '^Sanitize' --not '^Sanitize.Reset$' & pids+=($!)
conform reset --only '^Sanitize.Reset$' & pids+=($!)
differ=0
for pid in "${pids[@]}"; do wait "$pid" || differ=$((differ + 1)); done
for profile in 512n 512e removable readonly sanitize reset; do echo "# $profile: $(tail -n 1 "$T/$profile")"; done
[ $differ = 0 ] || { cat "$T"/512n "$T"/512e "$T"/removable "$T"/readonly "$T"/sanitize "$T"/reset; fail "results of $differ profiles differ from their tables"; }
all=$(iscsi-test-cu --list 2> /dev/null | sed -n 's/^ALL\.\([^.]*\.[^.]*\)$/\1/p' | sort -u)
ran=$(awk -F'\t' '$2 == "passed" { print $1 }' "$TOP"/tests/conformance/expected-*.tsv | sort -u)
check 'every test runs on one of them' [ "$all" = "$ran" ]
check 'and none fails on any' sh -c "! grep -qP '\tfailed\t' '$TOP'/tests/conformance/expected-*.tsv"
echo "# $(echo "$ran" | wc -l) tests ran and passed, of $(echo "$all" | wc -l)"
wait_for 10 sh -c 'granary session list --json | jq -e "length == 0"'
run_check granary down
run_check granary datastore check ds
