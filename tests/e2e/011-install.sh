#!/bin/bash
# `make install DESTDIR=` puts every program, page and unit where packages want them, and nothing outside DESTDIR.
. "$(dirname "$0")/lib.sh"
requires make readelf
[ -x "$BUILD/bin/granary" ] || skip "granary is not built"
dest=$T/dest
run_check make -s -C "$TOP" O="$(dirname "$BUILD")" VARIANT="$(basename "$BUILD")" install DESTDIR="$dest" PREFIX=/usr UNITDIR=/lib/systemd/system
for p in "$BUILD"/bin/*; do check "$(basename "$p") is installed" test -x "$dest/usr/bin/$(basename "$p")"; done
for p in "$TOP"/docs/man/*.8; do check "$(basename "$p") is installed" test -s "$dest/usr/share/man/man8/$(basename "$p")"; done
for u in "$TOP"/scripts/systemd/*; do
    unit=$dest/lib/systemd/system/$(basename "$u")
    check "$(basename "$u") is installed" test -s "$unit"
    # every program a unit starts is there
    sed -n 's/^Exec[A-Za-z]*=[-+!@]*\([^ ]*\).*/\1/p' "$unit" > "$T/execs"
    while read -r program; do check "$(basename "$unit"): $program" test -x "$dest$program"; done < "$T/execs"
    check "no placeholder is left" sh -c '! grep -n "@[a-z]*@" "$1"' sh "$unit"
done
# licences: libtsk stays in the helper that parses guests, and nothing it does not mix with goes there
for p in "$dest"/usr/bin/*; do
    libs=$(readelf -d "$p" | sed -n 's/.*NEEDED.*\[\(.*\)\.so.*/\1/p' | sort | tr '\n' ' ')
    case $p in
    */granary-fsread) for l in $libs; do case $l in libc | libm | libseccomp | libtsk) ;; *) fail "granary-fsread links $l" ;; esac; done ;;
    *) case " $libs" in *' libtsk '*) fail "$p links libtsk" ;; esac ;;
    esac
done
run_check "$dest/usr/bin/granary" --version
check "a version" grep -Eq '^granary [0-9]+\.[0-9]+' "$T/out"
