/* A session that works while others misbehave: writes and reads back blocks of its own, at the end of TGTFIX_TARGET, hundreds of times a second. Any
 * error, and a wait of over two seconds, fails the test that stops it. */
#ifndef TEST_WITNESS_H
#define TEST_WITNESS_H
#include "tests/lib/tgtfix.h"

struct witness;
struct witness *witness_start(struct tgtfix *f);
/* Ends it. */
void witness_stop(struct witness *w);
#endif
