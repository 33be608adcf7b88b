/* How often an address may prove itself wrongly to a disk: TGT_GUESSES at once, then one more each TGT_GUESS_S seconds (a leaky
 * bucket per pair). Beyond that proofs are not looked at, right or wrong. Memory is fixed: pairs share buckets by a keyed hash, so that
 * who does not know the key cannot aim at another's. Any thread, one at a time. */
#ifndef TGT_GUESSES_H
#define TGT_GUESSES_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TGT_GUESSES 10u
#define TGT_GUESS_S 6u
struct tgt_guesses {
    uint64_t key[2];
    uint64_t until_ns[1024]; /* of each bucket: when all that was poured in has leaked out */
};
/* @address: "1.2.3.4:port" or "[v6]:port"; the port does not count, and of an IPv6 address only the /64. */
bool tgt_guess_allowed(const struct tgt_guesses *g, const char *address, const char *disk, uint64_t now_ns);
/* A wrong proof was given; true: it was the last for now. */
bool tgt_guess_wrong(struct tgt_guesses *g, const char *address, const char *disk, uint64_t now_ns);
void tgt_guess_right(struct tgt_guesses *g, const char *address, const char *disk);
#endif
