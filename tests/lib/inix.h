/* PDUs one by one, for tests that lose, break and repeat them on purpose. Everything that must not fail fails the test. */
#ifndef TEST_INIX_H
#define TEST_INIX_H
#include "tests/lib/ini.h"
#include <stdbool.h>

#define INIX_BLOCK 512u
extern uint8_t inix_seg[262144]; /* data segment of the last PDU received */
/* READ(10), WRITE(10). */
void inix_rw_cdb(uint8_t cdb[10], bool write, uint32_t lba, uint32_t blocks);
/* A command without its data, with the session's next number, which several connections share. */
int inix_send_rw(struct ini *i, uint32_t cmdsn, uint32_t itt, bool write, uint32_t lba, uint32_t blocks);
/* A Data-Out for the tags of @r2t; and one with a wrong data digest. */
int inix_send_out(struct ini *i, const uint8_t *r2t, uint32_t sn, uint32_t off, uint32_t len, bool final, const uint8_t *data);
int inix_send_out_bad(struct ini *i, const uint8_t *r2t, uint32_t sn, uint32_t off, uint32_t len, bool final, const uint8_t *data);
/* The next PDU, which must be of that kind: length of its data. */
int inix_expect(struct ini *i, uint8_t *b, enum tgt_opcode op);
void inix_silent(struct ini *i, int ms); /* nothing comes */
void inix_take_status(struct ini *i, const uint8_t *b); /* its StatSN is acknowledged from now on */
void inix_good(struct ini *i, uint32_t itt);
void inix_ready(struct ini *i); /* eat unit attentions */
void inix_pattern(uint8_t *p, size_t len, unsigned seed);
int inix_logout(struct ini *i, unsigned reason, uint16_t cid);
void inix_snack(struct ini *i, unsigned type, uint32_t itt, uint32_t ttt, uint32_t from, uint32_t count);
int inix_reassign(struct ini *i, uint32_t itt, uint32_t expdatasn);
#endif
