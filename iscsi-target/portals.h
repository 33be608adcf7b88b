/* Addresses that a storage daemon listens on. A port given as 0 is any free one, and the same again at the next start when it
 * is still free (state/ports.json), so that initiators find their way back. Thread rule as iscsi-target/target.h. */
#ifndef TGT_PORTALS_H
#define TGT_PORTALS_H
#include "common/home.h"
#include "iscsi-target/mover.h"
#include "iscsi-target/target.h"

#define TGT_PORTAL_DEFAULT "127.0.0.1:3260"
#define TGT_MOVER_DEFAULT "127.0.0.1:10809"
#define TGT_SHOWN 300 /* bytes of "HOST:PORT" as it is told to others */

/* Listen on @portal with @flags (enum tgt_portal_flags). @key: under which its port is remembered. */
int tgt_portal_open(struct tgt_server *s, struct gr_home *home, const char *key, const char *portal, unsigned flags, char ret_shown[TGT_SHOWN],
                    struct gr_err *err);
/* Listen on @wanted, or, when NULL, on the default, or, when that is taken, on any free port of the loopback. */
int tgt_mover_open(struct mover_server *s, struct gr_home *home, const char *wanted, char ret_shown[TGT_SHOWN], struct gr_err *err);
/* The HOST of "HOST:PORT" without brackets; "" when it names no single host. */
void tgt_portal_host(const char *portal, char ret[TGT_SHOWN]);
/* True when "HOST:PORT" reaches this machine only (an address of the loopback, or localhost). */
bool tgt_portal_local(const char *portal);
#endif
