/* Sessions of several connections for tests of the target: logging in to tgtfix, and what the disk then holds. */
#ifndef TEST_INISESS_H
#define TEST_INISESS_H
#include "tests/lib/inix.h"
#include "tests/lib/tgtfix.h"

#define INISESS_NAME "iqn.2026-11.local.granary:connections"
#define KEYS_ERL0 "MaxConnections=8\0InitialR2T=No\0ErrorRecoveryLevel=0"
#define KEYS_ERL1 "MaxConnections=8\0InitialR2T=Yes\0ErrorRecoveryLevel=1\0DataDigest=CRC32C\0MaxRecvDataSegmentLength=4096\0MaxBurstLength=16384\0FirstBurstLength=8192\0MaxOutstandingR2T=2"
#define KEYS_ERL2 "MaxConnections=8\0FirstBurstLength=8192\0InitialR2T=Yes\0ErrorRecoveryLevel=2\0MaxRecvDataSegmentLength=4096\0MaxBurstLength=16384\0DefaultTime2Wait=0\0DefaultTime2Retain=2\0MaxOutstandingR2T=2"
#define KEYS_JOIN "MaxRecvDataSegmentLength=4096"

/* One connection: the first of a session (@first NULL), or a further one. The login status. */
int inisess_open(const struct tgtfix *f, struct ini *i, const struct ini *first, uint16_t cid, const char *target, const char *keys, size_t len);
/* The first one, ready for commands; fails the test otherwise. */
void inisess_lead(const struct tgtfix *f, struct ini *i, const char *target, const char *keys, size_t len);
/* What is on TGTFIX_TARGET, read through a session of its own. */
void inisess_check_disk(const struct tgtfix *f, uint32_t lba, const uint8_t *want, uint32_t blocks);
/* With a fixture named fix. */
#define LEAD(i, target, keys) inisess_lead(&fix, i, target, keys, sizeof(keys))
#define JOIN(i, first, cid, target) inisess_open(&fix, i, first, cid, target, KEYS_JOIN, sizeof(KEYS_JOIN))
#endif
