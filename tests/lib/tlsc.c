/* See tlsc.h. */
#include "tests/lib/tlsc.h"
#include "common/cleanup.h"
#include "tests/lib/nbdc.h"
#include "tests/lib/test.h"
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_MS 5000

void tlsc_connect(struct tlsc *c, struct mover_server *s)
{
    struct nbdc_rep rep;
    *c = (struct tlsc){.fd = nbdc_connect(s)};
    nbdc_hello(c->fd, 3);
    assert_int_equal(nbdc_ask(c->fd, NBD_OPT_STARTTLS, NULL, 0, &rep), NBD_REP_ACK);
}

/* Is it worth trying again? */
static bool again(struct tlsc *c, ssize_t r)
{
    if (r != GNUTLS_E_AGAIN && r != GNUTLS_E_INTERRUPTED)
        return false;
    if (gr_fiber_wait_fd(c->fd, gnutls_record_get_direction(c->session) ? POLLOUT : POLLIN, WAIT_MS) <= 0)
        fail_msg("the server said nothing for %d ms", WAIT_MS);
    return true;
}

bool tlsc_shake(struct tlsc *c, const char *priority, const char *cert_dir, const char *user, const char *hex)
{
    assert_true(gnutls_init(&c->session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) >= 0);
    assert_true(gnutls_priority_set_direct(c->session, priority, NULL) >= 0);
    gnutls_transport_set_int(c->session, c->fd);
    if (user) {
        gnutls_datum_t key = {(unsigned char *)(uintptr_t)hex, (unsigned)strlen(hex)};
        assert_true(gnutls_psk_allocate_client_credentials(&c->psk) >= 0);
        assert_true(gnutls_psk_set_client_credentials(c->psk, user, &key, GNUTLS_PSK_KEY_HEX) >= 0);
        assert_true(gnutls_credentials_set(c->session, GNUTLS_CRD_PSK, c->psk) >= 0);
    } else {
        assert_true(gnutls_certificate_allocate_credentials(&c->x509) >= 0);
        if (cert_dir) {
            gr_auto_free char *cert = gr_asprintf("%s/client-cert.pem", cert_dir), *key = gr_asprintf("%s/client-key.pem", cert_dir);
            assert_true(gnutls_certificate_set_x509_key_file(c->x509, cert, key, GNUTLS_X509_FMT_PEM) >= 0);
        }
        assert_true(gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE, c->x509) >= 0);
    }
    int r;
    do
        r = gnutls_handshake(c->session);
    while (again(c, r) || (r < 0 && !gnutls_error_is_fatal(r)));
    return r >= 0;
}

ssize_t tlsc_recv(struct tlsc *c, void *buf, size_t len)
{
    ssize_t n;
    do
        n = gnutls_record_recv(c->session, buf, len);
    while (again(c, n));
    return n;
}

bool tlsc_send(struct tlsc *c, const void *buf, size_t len)
{
    for (size_t at = 0; at < len;) {
        ssize_t n;
        do
            n = gnutls_record_send(c->session, (const char *)buf + at, len - at);
        while (again(c, n));
        if (n < 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

bool tlsc_alive(struct tlsc *c)
{
    struct nbd_opt_wire w = {gr_be64_of(NBD_OPTS_MAGIC), gr_be32_of(NBD_OPT_LIST), gr_be32_of(0)};
    uint8_t head[20];
    size_t got = 0;
    if (!tlsc_send(c, &w, sizeof(w)))
        return false;
    while (got < sizeof(head)) {
        ssize_t n = tlsc_recv(c, head + got, sizeof(head) - got);
        if (n <= 0)
            return false;
        got += (size_t)n;
    }
    uint8_t rest[NBD_MAX_STRING];
    for (size_t left = gr_get_be32(head + 16); left;) {
        ssize_t n = tlsc_recv(c, rest, GR_MIN(left, sizeof(rest)));
        if (n <= 0)
            return false;
        left -= (size_t)n;
    }
    return gr_get_be64(head) == NBD_REP_MAGIC;
}

void tlsc_close(struct tlsc *c)
{
    if (c->session)
        gnutls_deinit(c->session);
    if (c->x509)
        gnutls_certificate_free_credentials(c->x509);
    if (c->psk)
        gnutls_psk_free_client_credentials(c->psk);
    close(c->fd);
}
