# shellcheck shell=bash
# Sourced after tests/e2e/lib.sh by tests that stop a host in the middle of what it does with another one (tests/matrix/pause.c):
#   LD_PRELOAD=$PAUSE_LIBRARY GRANARY_PAUSE_FILE=FILE granary up     a host that can be stopped so
#   pause_plan FILE            before that: nowhere yet
#   pause_at FILE 'WHEN METHOD'
#   pause_landed FILE PID      waits until it stands still there, or fails
# shellcheck disable=SC2034
PAUSE_LIBRARY=$BUILD/tests/matrix/pause.so
pause_plan() { truncate -s 4096 "$1"; }
pause_at() { { printf '%s' "$2" && head -c $((64 - ${#2})) /dev/zero; } | dd of="$1" conv=notrunc status=none; }
pause_stands() { [ "$(head -c 1 "$1")" = '!' ] && [ "$(ps -o stat= -p "$2" | cut -c1)" = T ]; }
pause_landed() { wait_for 20 pause_stands "$1" "$2"; }
