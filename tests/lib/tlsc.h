/* A TLS client for unit tests of the data mover, over a connection of nbdc.h; in a fiber of the server's loop. */
#ifndef TLSC_H
#define TLSC_H
#include "iscsi-target/mover.h"
#include <gnutls/gnutls.h>

struct tlsc {
    int fd;
    gnutls_session_t session;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_client_credentials_t psk;
};
/* Connect, greet, ask for TLS; the handshake is next. */
void tlsc_connect(struct tlsc *c, struct mover_server *s);
/* The handshake, with DIR/client-{cert,key}.pem of @cert_dir and the CA of @ca_dir (NULL: none is shown, none is checked), or with the PSK
 * @user, @hex. True when the server took part to the end, which in TLS 1.3 does not mean that it was content: see tlsc_alive(). */
bool tlsc_shake(struct tlsc *c, const char *priority, const char *cert_dir, const char *user, const char *hex);
/* Bytes received, 0 at a good-bye, negative: GnuTLS's code. */
ssize_t tlsc_recv(struct tlsc *c, void *buf, size_t len);
bool tlsc_send(struct tlsc *c, const void *buf, size_t len);
/* It answers NBD_OPT_LIST with NBD_REP_ERR_POLICY or what it has: somebody is let in. */
bool tlsc_alive(struct tlsc *c);
void tlsc_close(struct tlsc *c);
#endif
