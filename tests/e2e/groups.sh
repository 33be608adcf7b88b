# shellcheck shell=bash
# Sourced behind lib.sh by tests of snapshots of ds/x, ds/y and ds/z at one instant, which say who an owner DISK is; writes to these depend on each other
# (tests/tools/lun_chain).
numbers= # what snapshots have, for a person
count() { # DISK SNAPSHOT: the number in it
    rm -f "$T/out.raw"
    run_check "$(owner "$1")" disk export "ds/$1@$2" "$T/out.raw"
    od -An -N8 -tu8 "$T/out.raw" | tr -d ' '
}
consistent() { # SNAPSHOT: no effect without its cause
    local x y z
    x=$(count x "$1") y=$(count y "$1") z=$(count z "$1")
    [ "$x" -ge "$y" ] && [ "$y" -ge "$z" ] && [ "$z" -ge $((x - 1)) ] || fail "snapshot $1 has $x, $y and $z"
    numbers+=" $x/$y/$z"
}
whole() { # SNAPSHOT WHEN: all disks have it, or none; left in $have
    local d n
    have=
    for d in x y z; do
        run_check "$(owner $d)" snapshot list "ds/$d" --json
        jq -e --arg n "$1" 'any(.name == $n)' "$T/out" > /dev/null && have+=$d
        n=$(jq length "$T/out")
        run_check "$(owner $d)" disk info "ds/$d" --json
        check "nothing undecided is left of $d" [ "$(jq .snapshots "$T/out")" = "$n" ]
    done
    case $have in
    xyz) consistent "$1" ;;
    '') ;;
    *) fail "$2: only '$have' have the snapshot; $(cat "$T/make.log")" ;;
    esac
}
