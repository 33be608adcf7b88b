/* Links between hosts: one private, proved stream per connection, over TCP. Who may come in, and who is dialled, is a matter of public keys
 * (link_key.h) that the caller knows from elsewhere: each host's slot on the shared volume has its own. No certificate, no clock and no
 * token is believed.
 *
 *   dialler                                   listener
 *   ── TLS 1.3 (pre-shared key known to all, ephemeral Diffie-Hellman) ──
 *   struct gr_link_proof ───────────────────▶ admit(volume, key)?
 *   is it the key that was dialled? ◀──────── struct gr_link_proof
 *   ── what follows is the caller's ──
 *
 * Each proof signs the channel's own number (RFC 9266), so one in between who speaks TLS with both cannot pass it on. TLS itself is spoken
 * by a sandboxed child process (the same program executed again: gr_link_main()), for both directions; this one reads 120 bytes from a
 * stranger. Loop thread; what is marked (fiber) suspends. */
#ifndef GR_LINK_H
#define GR_LINK_H
#include "common/fiber.h"
#include "common/link_key.h"

struct gr_link_peer {
    uint8_t volume[16];
    uint8_t key[GR_LINK_KEY_LEN];
    char from[64]; /* address, for people */
};
struct gr_link_opts {
    struct gr_loop *loop;
    const struct gr_link_key *key; /* borrowed */
    const char *exe;               /* program that calls gr_link_main(); NULL: /proc/self/exe */
    void *arg;
    /* (fiber) May who has this key come in, for this volume? Negative: no. NULL: nobody. */
    int (*admit)(void *arg, const struct gr_link_peer *peer, struct gr_err *err);
    /* (fiber) He has; takes @fd (non-blocking stream). */
    void (*comes)(void *arg, int fd, const struct gr_link_peer *peer);
    void (*note)(void *arg, int level, const char *text); /* for the log: a sentence */
};
struct gr_link;
/* Starts the child process. */
int gr_link_new(const struct gr_link_opts *opts, struct gr_link **ret, struct gr_err *err);
/* (fiber) Cuts what has not been handed on yet; streams that have been end with the child. NULL allowed. */
void gr_link_free(struct gr_link *l);
/* Listen on "ADDRESS:PORT" or "[V6]:PORT", numeric and no wildcard: others dial it. Port 0 takes a free one. Once. */
int gr_link_listen(struct gr_link *l, const char *address, uint16_t *ret_port, struct gr_err *err);
/* (fiber) Dial @address (as above), where @theirs must be. *ret_fd: a non-blocking stream, the caller's. -ECONNREFUSED, -ETIMEDOUT: nobody
 * answers; -GR_EAUTH: somebody else does, or does not let us in. */
int gr_link_dial(struct gr_link *l, const char *address, const uint8_t volume[16], const uint8_t theirs[GR_LINK_KEY_LEN], uint64_t timeout_ms,
                 int *ret_fd, struct gr_err *err);
/* Call first thing in main(): when this process is the child, runs it and returns its exit status (>= 0); else -1. */
int gr_link_main(int argc, char **argv);
#endif
