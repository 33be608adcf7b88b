/* Certificates that hosts of one site give each other, so that the URL of a disk's owner can be used where another host shows it: each
 * host has a CA of its own, and a folder of the owner's means nothing on another machine. Who may have one is for the caller to know. */
#ifndef ISCSI_TARGET_MOVER_LEND_H
#define ISCSI_TARGET_MOVER_LEND_H
#include "common/err.h"
#include <jansson.h>

/* {"ca","cert","key"} (PEM): a client's certificate for @host, signed by the CA in @pki_dir; made once, kept in PKI_DIR/hosts/, and made anew
 * when that CA is another one. Blocking (milliseconds). Errors: -ENOMEM, those of mover_pki_make_client(). */
int mover_lend(const char *pki_dir, const char *host, json_t **ret, struct gr_err *err);
/* Put what was lent into the folder @dir, as clients want it; nothing is written when it is there already. -GR_EFORMAT: that is none. */
int mover_keep_lent(const char *dir, json_t *lent, struct gr_err *err);
#endif
