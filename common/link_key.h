/* A host's key for the links to other hosts (common/link.h), and what it proves with it: Ed25519 (RFC 8032). Any context; blocking where
 * files are named. */
#ifndef GR_LINK_KEY_H
#define GR_LINK_KEY_H
#include "common/endian.h"
#include "common/err.h"
#include <stdbool.h>

#define GR_LINK_KEY_LEN 32u       /* a public key: what a host's slot says */
#define GR_LINK_CHANNEL_LEN 32u   /* the channel's own number, RFC 9266 "tls-exporter" */
#define GR_LINK_SIGNATURE_LEN 64u

/* What each end says first inside the channel. The signature is over this head, GR_LINK_TEXT and:
 * the role ('d' who dialled, 'l' who listens), the channel's number and the other end's key. */
struct gr_link_proof {
    uint8_t magic[8];   /* GR_LINK_MAGIC */
    uint8_t volume[16]; /* UUID of the datastore in whose slots the keys are */
    uint8_t key[GR_LINK_KEY_LEN]; /* the signer's */
    uint8_t signature[GR_LINK_SIGNATURE_LEN];
} __attribute__((packed));
GR_SIZE(struct gr_link_proof, 120);
#define GR_LINK_MAGIC "GRLINK1\n"
#define GR_LINK_TEXT "Granary link between hosts, version 1"

struct gr_link_key;
/* The key in the file @path (its seed in base64, mode 0600), made when there is none. -EPERM: others can read it; -GR_EFORMAT. */
int gr_link_key_open(const char *path, struct gr_link_key **ret, struct gr_err *err);
void gr_link_key_free(struct gr_link_key *k); /* NULL allowed */
const uint8_t *gr_link_key_public(const struct gr_link_key *k);
/* @theirs: the other end's key. 0 or negative. */
int gr_link_prove(const struct gr_link_key *k, bool dialled, const uint8_t volume[16], const uint8_t channel[GR_LINK_CHANNEL_LEN],
                  const uint8_t theirs[GR_LINK_KEY_LEN], struct gr_link_proof *ret);
/* Is @p made by who has the key that it names, for this channel, this role and us (@ours)? */
bool gr_link_proves(const struct gr_link_proof *p, bool dialled, const uint8_t channel[GR_LINK_CHANNEL_LEN], const uint8_t ours[GR_LINK_KEY_LEN]);
#endif
