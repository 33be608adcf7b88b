#!/bin/bash
# timeout: 300
# iscsi-test-cu on raw LUNs: as on a disk with 4096-byte physical blocks, but that nothing is written atomically to a file.
. "$(dirname "$0")/lib.sh"
requires jq iscsi-test-cu
run_check granary lun add raw "$T/raw.img" --size 1025M # one MiB more than the longest WRITE SAME
run_check granary lun add waits "$T/waits.img" --size 1025M
run_check granary lun add wiped "$T/wiped.img" --size 256M
run_check granary up --portal 127.0.0.1:0 --multipath-portal 127.0.0.1:0 --mover 127.0.0.1:0
second=$(granary status --json | jq -er '."multipath-portal"')
url() { granary lun list "$1" --json | jq -er '.[0]."iscsi-url"'; }
conform() { # LUN TABLE ARG...: its output in $T/LUN.txt
    local lun=$1 table=$2; shift 2
    B=$BUILD "$TOP/tests/conformance/run" --table "$TOP/tests/conformance/expected-$table.tsv" "$@" "$(url "$lun")" > "$T/$lun.txt" 2>&1
}
slow='^Reserve6|^iSCSIcmdsn' # they wait for what must not come, three seconds each
conform raw raw --not "^Sanitize|^GetLBAStatus.UnmapSingle$|$slow" --second "$(url raw | sed "s|//[^/]*/|//$second/|")" & pids=($!)
conform waits raw --only "$slow" & pids+=($!)
conform wiped sanitize --only '^Sanitize' --not '^Sanitize.Reset$' & pids+=($!)
differ=0
for pid in "${pids[@]}"; do wait "$pid" || differ=$((differ + 1)); done
for lun in raw waits wiped; do echo "# $lun: $(tail -n 1 "$T/$lun.txt")"; done
[ $differ = 0 ] || { cat "$T"/*.txt; fail "results of $differ LUNs differ from their tables"; }
families='^(CompareAndWrite|GetLBAStatus|MultipathIO|Prin|Prout|Read[0-9C]|Reserve|Unmap|Verify|Write[0-9SV])'
ran=$(awk -F'\t' '$2 == "passed" { print $1 }' "$TOP/tests/conformance/expected-raw.tsv")
check 'what shared datastores need is in it' [ "$(echo "$ran" | grep -cE "$families")" -gt 120 ]
check 'none of that is skipped' sh -c "! grep -P '\t(skipped|failed)\t' '$TOP/tests/conformance/expected-raw.tsv' | grep -qE '$families'"
