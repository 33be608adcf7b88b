/* Site PKI: a CA, a server and client certificates, made with GnuTLS alone, so that nothing needs openssl or certtool.
 * ECDSA P-256 and SHA-256. File names are those that libnbd, nbdkit and QEMU expect in a certificate directory. */
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/mover.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <gnutls/abstract.h>
#include <gnutls/x509.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define MAX_PEM (1u << 20)
#define RENEW_DAYS 30
#define DAY_S 86400

struct pair { /* a certificate and its key */
    gnutls_x509_crt_t crt;
    gnutls_x509_privkey_t key;
};

static void pair_done(struct pair *p)
{
    if (p->crt)
        gnutls_x509_crt_deinit(p->crt);
    if (p->key)
        gnutls_x509_privkey_deinit(p->key);
}
#define auto_pair __attribute__((cleanup(pair_done))) struct pair

static void datum_done(gnutls_datum_t *d)
{
    if (d->data)
        gnutls_memset(d->data, 0, d->size);
    gnutls_free(d->data);
}
#define auto_datum __attribute__((cleanup(datum_done))) gnutls_datum_t

static int tls_fail(struct gr_err *err, int code, const char *what)
{
    return gr_fail(err, code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL, "%s: %s", what, gnutls_strerror(code));
}

/* New key and a certificate for @cn with everything but its purpose and signature. */
static int pair_new(struct pair *p, const char *cn, struct gr_err *err)
{
    uint8_t serial[16];
    const struct gr_world *w = gr_world_real();
    w->random(w->arg, serial, sizeof(serial));
    serial[0] = (serial[0] & 0x7f) | 0x40; /* positive, no leading zero (RFC 5280 4.1.2.2) */
    int64_t now = w->wall_s(w->arg);
    int r = gnutls_x509_privkey_init(&p->key);
    if (r >= 0)
        r = gnutls_x509_privkey_generate(p->key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
    if (r >= 0)
        r = gnutls_x509_crt_init(&p->crt);
    if (r >= 0)
        r = gnutls_x509_crt_set_version(p->crt, 3);
    if (r >= 0)
        r = gnutls_x509_crt_set_serial(p->crt, serial, sizeof(serial));
    if (r >= 0)
        r = gnutls_x509_crt_set_activation_time(p->crt, now - DAY_S); /* a peer's clock may be behind */
    if (r >= 0)
        r = gnutls_x509_crt_set_expiration_time(p->crt, now + (int64_t)MOVER_PKI_DAYS * DAY_S);
    if (r >= 0)
        r = gnutls_x509_crt_set_dn_by_oid(p->crt, GNUTLS_OID_X520_COMMON_NAME, 0, cn, (unsigned)strlen(cn));
    if (r >= 0)
        r = gnutls_x509_crt_set_dn_by_oid(p->crt, GNUTLS_OID_X520_ORGANIZATION_NAME, 0, "Granary", 7);
    if (r >= 0)
        r = gnutls_x509_crt_set_key(p->crt, p->key);
    uint8_t id[64];
    size_t id_len = sizeof(id);
    if (r >= 0)
        r = gnutls_x509_crt_get_key_id(p->crt, 0, id, &id_len);
    if (r >= 0)
        r = gnutls_x509_crt_set_subject_key_id(p->crt, id, id_len);
    return r < 0 ? tls_fail(err, r, "cannot make a certificate") : 0;
}

static int sign(struct pair *p, const struct pair *ca, struct gr_err *err)
{
    uint8_t id[64];
    size_t id_len = sizeof(id);
    int r = gnutls_x509_crt_get_key_id(ca->crt, 0, id, &id_len);
    if (r >= 0)
        r = gnutls_x509_crt_set_authority_key_id(p->crt, id, id_len);
    if (r >= 0)
        r = gnutls_x509_crt_sign2(p->crt, ca->crt, ca->key, GNUTLS_DIG_SHA256, 0);
    return r < 0 ? tls_fail(err, r, "cannot sign a certificate") : 0;
}

static int put(const char *dir, const char *name, const void *data, size_t len, int mode, struct gr_err *err)
{
    gr_auto_free char *path = gr_asprintf("%s/%s", dir, name);
    return path ? gr_file_replace(path, data, len, mode, err) : gr_fail(err, -ENOMEM, "out of memory");
}

/* The key first: a certificate is never there without its key. */
static int pair_write(const struct pair *p, const char *dir, const char *what, struct gr_err *err)
{
    auto_datum key = {0};
    auto_datum crt = {0};
    char key_name[32], crt_name[32];
    snprintf(key_name, sizeof(key_name), "%s-key.pem", what);
    snprintf(crt_name, sizeof(crt_name), "%s-cert.pem", what);
    int r = gnutls_x509_privkey_export2(p->key, GNUTLS_X509_FMT_PEM, &key);
    if (r >= 0)
        r = gnutls_x509_crt_export2(p->crt, GNUTLS_X509_FMT_PEM, &crt);
    if (r < 0)
        return tls_fail(err, r, "cannot encode a certificate");
    r = gr_mkdirs(dir, 0700, err);
    if (r >= 0)
        r = put(dir, key_name, key.data, key.size, 0600, err);
    return r < 0 ? r : put(dir, crt_name, crt.data, crt.size, 0644, err);
}

static int load_crt(const char *dir, const char *name, gnutls_x509_crt_t *ret, struct gr_buf *ret_pem, struct gr_err *err)
{
    gr_auto_free char *path = gr_asprintf("%s/%s", dir, name);
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = gr_file_read(path, MAX_PEM, ret_pem, err);
    if (r < 0)
        return r;
    gnutls_datum_t d = {(unsigned char *)ret_pem->data, (unsigned)ret_pem->len};
    gnutls_x509_crt_t crt = NULL;
    r = gnutls_x509_crt_init(&crt);
    if (r >= 0)
        r = gnutls_x509_crt_import(crt, &d, GNUTLS_X509_FMT_PEM);
    if (r < 0) {
        gnutls_x509_crt_deinit(crt);
        return gr_fail(err, -GR_EFORMAT, "%s: not a certificate: %s", path, gnutls_strerror(r));
    }
    *ret = crt;
    return 0;
}

static int load_ca(const char *dir, struct pair *p, struct gr_buf *ret_pem, struct gr_err *err)
{
    int r = load_crt(dir, "ca-cert.pem", &p->crt, ret_pem, err);
    if (r < 0)
        return r;
    gr_auto_free char *path = gr_asprintf("%s/ca-key.pem", dir);
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_auto_buf struct gr_buf pem = {0};
    r = gr_secret_read(path, &pem, err);
    if (r < 0)
        return r;
    gnutls_datum_t d = {(unsigned char *)pem.data, (unsigned)pem.len};
    r = gnutls_x509_privkey_init(&p->key);
    if (r >= 0)
        r = gnutls_x509_privkey_import(p->key, &d, GNUTLS_X509_FMT_PEM);
    explicit_bzero(pem.data, pem.len);
    return r < 0 ? gr_fail(err, -GR_EFORMAT, "%s: not a private key: %s", path, gnutls_strerror(r)) : 0;
}

static bool exists(const char *dir, const char *name)
{
    gr_auto_free char *path = gr_asprintf("%s/%s", dir, name);
    return path && access(path, F_OK) == 0;
}

int mover_pki_make_ca(const char *dir, const char *site, struct gr_err *err)
{
    if (exists(dir, "ca-key.pem") || exists(dir, "ca-cert.pem"))
        return gr_fail(err, -EEXIST, "%s: there is a site CA already", dir);
    auto_pair p = {0};
    char cn[65];
    snprintf(cn, sizeof(cn), "%.50s CA", site); /* ub-common-name: 64 */
    int r = pair_new(&p, cn, err);
    if (r < 0)
        return r;
    r = gnutls_x509_crt_set_basic_constraints(p.crt, 1, 0);
    if (r >= 0)
        r = gnutls_x509_crt_set_key_usage(p.crt, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
    if (r < 0)
        return tls_fail(err, r, "cannot make the CA certificate");
    r = sign(&p, &p, err);
    return r < 0 ? r : pair_write(&p, dir, "ca", err);
}

static int leaf_new(struct pair *p, const char *cn, const char *purpose, struct gr_err *err)
{
    int r = pair_new(p, cn, err);
    if (r < 0)
        return r;
    r = gnutls_x509_crt_set_basic_constraints(p->crt, 0, -1);
    if (r >= 0)
        r = gnutls_x509_crt_set_key_usage(p->crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
    if (r >= 0)
        r = gnutls_x509_crt_set_key_purpose_oid(p->crt, purpose, 0);
    return r < 0 ? tls_fail(err, r, "cannot make a certificate") : 0;
}

static int add_san(gnutls_x509_crt_t crt, const char *host)
{
    uint8_t ip[16];
    if (inet_pton(AF_INET, host, ip) == 1)
        return gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, ip, 4, GNUTLS_FSAN_APPEND);
    if (inet_pton(AF_INET6, host, ip) == 1)
        return gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, ip, 16, GNUTLS_FSAN_APPEND);
    return gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, host, (unsigned)strlen(host), GNUTLS_FSAN_APPEND);
}

int mover_pki_make_server(const char *dir, const char *const *hosts, size_t n_hosts, struct gr_err *err)
{
    auto_pair ca = {0};
    auto_pair p = {0};
    gr_auto_buf struct gr_buf pem = {0};
    int r = load_ca(dir, &ca, &pem, err);
    if (r >= 0)
        r = leaf_new(&p, "granary-storaged", GNUTLS_KP_TLS_WWW_SERVER, err);
    if (r < 0)
        return r;
    static const char *const always[] = {"localhost", "127.0.0.1", "::1"};
    for (size_t i = 0; r >= 0 && i < GR_ARRAY_LEN(always); i++)
        r = add_san(p.crt, always[i]);
    for (size_t i = 0; r >= 0 && i < n_hosts; i++)
        r = hosts[i][0] ? add_san(p.crt, hosts[i]) : 0;
    if (r < 0)
        return tls_fail(err, r, "cannot put the host names into the certificate");
    r = sign(&p, &ca, err);
    return r < 0 ? r : pair_write(&p, dir, "server", err);
}

int mover_pki_make_client(const char *dir, const char *name, const char *out_dir, struct gr_err *err)
{
    auto_pair ca = {0};
    auto_pair p = {0};
    gr_auto_buf struct gr_buf pem = {0};
    if (!name[0] || strlen(name) > 64)
        return gr_fail(err, -EINVAL, "a client's name has 1 to 64 bytes");
    int r = load_ca(dir, &ca, &pem, err);
    if (r >= 0)
        r = leaf_new(&p, name, GNUTLS_KP_TLS_WWW_CLIENT, err);
    if (r >= 0)
        r = sign(&p, &ca, err);
    if (r >= 0)
        r = pair_write(&p, out_dir, "client", err);
    if (r >= 0 && strcmp(dir, out_dir))
        r = put(out_dir, "ca-cert.pem", pem.data, pem.len, 0644, err);
    return r;
}

/* Is the server certificate there, good for RENEW_DAYS more, and made for all of @hosts? */
static bool server_good(const char *dir, const char *const *hosts, size_t n_hosts)
{
    auto_pair p = {0};
    gr_auto_buf struct gr_buf pem = {0};
    if (!exists(dir, "server-key.pem") || load_crt(dir, "server-cert.pem", &p.crt, &pem, NULL) < 0)
        return false;
    const struct gr_world *w = gr_world_real();
    if (gnutls_x509_crt_get_expiration_time(p.crt) < w->wall_s(w->arg) + (int64_t)RENEW_DAYS * DAY_S)
        return false;
    for (size_t i = 0; i < n_hosts; i++)
        if (hosts[i][0] && !gnutls_x509_crt_check_hostname(p.crt, hosts[i]))
            return false;
    return true;
}

int mover_pki_ensure(const char *dir, const char *const *hosts, size_t n_hosts, struct gr_err *err)
{
    int r = gr_mkdirs(dir, 0700, err);
    if (r < 0)
        return r;
    gr_auto_close int lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX) < 0)
        return gr_fail(err, -errno, "%s: cannot be locked: %s", dir, gr_code_text(-errno));
    if (!exists(dir, "ca-cert.pem"))
        r = mover_pki_make_ca(dir, "Granary site", err);
    if (r >= 0 && !server_good(dir, hosts, n_hosts))
        r = mover_pki_make_server(dir, hosts, n_hosts, err);
    if (r >= 0 && (!exists(dir, "client-key.pem") || !exists(dir, "client-cert.pem")))
        r = mover_pki_make_client(dir, "granary-client", dir, err);
    return r;
}

int mover_psk_make(const char *path, const char *user, struct gr_err *err)
{
    if (!user[0] || strlen(user) > 255 || strpbrk(user, ":\n#") || !gr_utf8_ok(user, strlen(user)))
        return gr_fail(err, -EINVAL, "a PSK user name has 1 to 255 bytes without ':', '#' or control characters");
    uint8_t key[32];
    const struct gr_world *w = gr_world_real();
    w->random(w->arg, key, sizeof(key));
    gr_auto_buf struct gr_buf b = {0};
    int r = gr_buf_printf(&b, "%s:", user);
    for (size_t i = 0; r >= 0 && i < sizeof(key); i++)
        r = gr_buf_printf(&b, "%02x", key[i]);
    if (r >= 0)
        r = gr_buf_add(&b, "\n", 1);
    if (r < 0)
        return gr_fail(err, r, "out of memory");
    gr_auto_close int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: %s", path, errno == EEXIST ? "there is a PSK file already" : gr_code_text(-errno));
    ssize_t n = write(fd, b.data, b.len);
    r = n == (ssize_t)b.len && fsync(fd) == 0 ? 0 : gr_fail(err, n < 0 ? -errno : -EIO, "%s: cannot be written", path);
    explicit_bzero(b.data, b.len);
    explicit_bzero(key, sizeof(key));
    if (r < 0)
        (void)unlink(path);
    return r;
}
