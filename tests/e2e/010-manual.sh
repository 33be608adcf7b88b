#!/bin/bash
# Command tables, --help and manual pages agree, both ways: every command and option is in its page, and no page speaks of one
# that does not exist. A noun's commands are in docs/man/granary-NOUN.8 as ".Ss VERB" with ".It Fl -OPTION"; one-word commands
# in granary.8; a program that is one command in docs/man/PROGRAM.8.
. "$(dirname "$0")/lib.sh"
requires jq mandoc
bad=0
complain() { echo "$*"; bad=$((bad + 1)); }

# Options that the part of PAGE below ".Ss VERB" (or the whole page, VERB empty) lists or speaks of.
options_in() { # PAGE VERB
    awk -v verb="$2" '
        /^\.Sh/ { on = verb == "" }
        /^\.Ss/ { on = verb == "" || $NF == verb }
        on { line = $0; while (match(line, /Fl -[a-z][a-z0-9-]*/)) { print substr(line, RSTART + 4, RLENGTH - 4); line = substr(line, RSTART + RLENGTH) } }
    ' "$1" | sort -u
}
verbs_in() { awk '/^\.Sh/ { on = $2 == "COMMANDS" } on && /^\.Ss/ { print $NF }' "$1" | sort -u; }

compare_command() { # PAGE VERB WHAT HELP-TEXT-COMMAND...
    local page=$1 verb=$2 what=$3 o help_options page_options; shift 3
    "$@" --help > "$T/help" 2>&1 || { complain "$what --help: exit $?"; return; }
    help_options=$(sed -n 's/^  --\([a-z0-9-]*\).*/\1/p' "$T/help" | sort -u)
    page_options=$(options_in "$page" "$verb")
    for o in $help_options; do
        case $o in json | help) continue ;; esac
        grep -qx -- "$o" <<< "$page_options" || complain "$page: ${verb:+.Ss $verb: }option --$o of \`$what\` is missing"
    done
    for o in $page_options; do
        case $o in json | help | version) continue ;; esac
        grep -qx -- "$o" <<< "$help_options" || complain "$page: ${verb:+.Ss $verb: }\`$what\` has no option --$o"
    done
}

[ -x "$BUILD/bin/granary" ] || skip "granary is not built"
granary --help --json > "$T/table"
jq -e 'length > 0 and all(.[]; (.verb | length) > 0 and (.help | length) > 0)' "$T/table" > "$T/out" || fail "granary --help --json is no table of commands"
granary --help > "$T/all"
while IFS=$'\t' read -r noun verb; do
    [ "$noun" = - ] && noun=''
    what="granary${noun:+ $noun} $verb"
    page=$TOP/docs/man/granary${noun:+-$noun}.8
    grep -q -- "^  ${noun:+$noun }$verb " "$T/all" || complain "granary --help does not list $what"
    [ -e "$page" ] || { complain "docs/man/granary${noun:+-$noun}.8 is missing ($what)"; continue; }
    verbs_in "$page" | grep -qx -- "$verb" || { complain "$page: no \".Ss $verb\" in COMMANDS for \`$what\`"; continue; }
    # shellcheck disable=SC2086
    compare_command "$page" "$verb" "$what" granary ${noun:+$noun} "$verb"
done < <(jq -r '.[] | "\(.noun // "-")\t\(.verb)"' "$T/table")

for page in "$TOP"/docs/man/*.8; do
    name=$(basename "$page" .8)
    if ! mandoc -Tlint -Wwarning "$page" > "$T/lint" 2>&1 && grep -v 'referenced manual not found' "$T/lint"; then complain "$name.8: mandoc has warnings"; fi
    case $name in
    granary) noun='' ;;
    granary-*)
        noun=${name#granary-}
        # a program of its own, or a noun
        if [ -e "$BUILD/bin/$name" ]; then continue; fi ;;
    *) complain "$name.8: what is it about?"; continue ;;
    esac
    for verb in $(verbs_in "$page"); do
        jq -e --arg n "$noun" --arg v "$verb" 'any(.[]; (.noun // "") == $n and .verb == $v)' "$T/table" > "$T/out" ||
            complain "$name.8: there is no command \`granary${noun:+ $noun} $verb\`"
    done
done

for program in "$BUILD"/bin/granary-*; do
    [ -e "$program" ] || continue
    name=$(basename "$program")
    page=$TOP/docs/man/$name.8
    [ -e "$page" ] || { complain "docs/man/$name.8 is missing"; continue; }
    if "$program" --help --json > "$T/ptable" 2> /dev/null && jq -e 'type == "array" and length > 0' "$T/ptable" > "$T/out" 2> /dev/null; then
        for verb in $(jq -r '.[].verb' "$T/ptable"); do # a program with commands of its own
            verbs_in "$page" | grep -x -- "$verb" > "$T/out" || { complain "$page: no \".Ss $verb\" in COMMANDS for \`$name $verb\`"; continue; }
            compare_command "$page" "$verb" "$name $verb" "$program" "$verb"
        done
        continue
    fi
    compare_command "$page" '' "$name" "$program"
done
[ $bad -eq 0 ] || fail "$bad differences"
echo "# $(jq length "$T/table") commands and $(ls "$TOP"/docs/man | wc -l) pages agree"
