#!/bin/sh
# The loop and gr_bdev_file beside the bare system interface.
set -eu
exec "${B:-build/release}/tests/bench/loop" "${SECONDS_EACH:-2}"
