#include "iscsi-target/mover_lend.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "iscsi-target/mover.h"
#include <string.h>

#define PEM_MAX (64u << 10)

static const struct {
    const char *key, *file;
    bool secret;
} parts[] = {{"key", "client-key.pem", true}, {"cert", "client-cert.pem", false}, {"ca", "ca-cert.pem", false}}; /* the key first */

static int read_part(const char *dir, const char *file, struct gr_buf *ret, struct gr_err *err)
{
    gr_auto_free char *path = gr_asprintf("%s/%s", dir, file);
    return path ? gr_file_read(path, PEM_MAX, ret, err) : gr_fail(err, -ENOMEM, "out of memory");
}

/* A host's name is what it says it is: never a path. */
static char *folder_of(const char *pki_dir, const char *host)
{
    char name[32];
    unsigned n = 0;
    for (; n < sizeof(name) - 1 && host[n]; n++)
        name[n] = strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", host[n]) ? host[n] : '_';
    name[n] = 0;
    return gr_asprintf("%s/hosts/%s-%08x", pki_dir, name, gr_crc32c(0, host, strlen(host)));
}

static bool same_ca(const char *pki_dir, const char *dir)
{
    gr_auto_buf struct gr_buf ours = {0};
    gr_auto_buf struct gr_buf lent = {0};
    return read_part(pki_dir, "ca-cert.pem", &ours, NULL) == 0 && read_part(dir, "ca-cert.pem", &lent, NULL) == 0 && ours.len == lent.len &&
           memcmp(ours.data, lent.data, ours.len) == 0;
}

int mover_lend(const char *pki_dir, const char *host, json_t **ret, struct gr_err *err)
{
    gr_auto_free char *dir = folder_of(pki_dir, host);
    if (!dir)
        return gr_fail(err, -ENOMEM, "out of memory");
    int r = same_ca(pki_dir, dir) ? 0 : mover_pki_make_client(pki_dir, host, dir, err);
    json_t *o = json_object();
    for (size_t i = 0; i < GR_ARRAY_LEN(parts) && r == 0; i++) {
        gr_auto_buf struct gr_buf pem = {0};
        r = read_part(dir, parts[i].file, &pem, err);
        if (r == 0 && json_object_set_new(o, parts[i].key, json_stringn(pem.data, pem.len)) < 0)
            r = gr_fail(err, -ENOMEM, "out of memory");
        if (pem.len)
            explicit_bzero(pem.data, pem.len);
    }
    if (r < 0)
        json_decref(o);
    else
        *ret = o;
    return r;
}

static int keep_part(const char *dir, const char *file, const char *text, bool secret, struct gr_err *err)
{
    gr_auto_buf struct gr_buf is = {0};
    gr_auto_free char *path = gr_asprintf("%s/%s", dir, file);
    size_t n = strlen(text);
    if (!path)
        return gr_fail(err, -ENOMEM, "out of memory");
    if (gr_file_read(path, PEM_MAX, &is, NULL) == 0 && is.len == n && memcmp(is.data, text, n) == 0)
        return 0;
    return gr_file_replace(path, text, n, secret ? 0600 : 0644, err);
}

int mover_keep_lent(const char *dir, json_t *lent, struct gr_err *err)
{
    const char *text[GR_ARRAY_LEN(parts)];
    for (size_t i = 0; i < GR_ARRAY_LEN(parts); i++) {
        text[i] = json_string_value(json_object_get(lent, parts[i].key));
        if (!text[i] || strncmp(text[i], "-----BEGIN ", 11) != 0 || strlen(text[i]) > PEM_MAX)
            return gr_fail(err, -GR_EFORMAT, "what another host lent for its data mover is no certificate");
    }
    int r = gr_mkdirs(dir, 0700, err);
    for (size_t i = 0; i < GR_ARRAY_LEN(parts) && r >= 0; i++)
        r = keep_part(dir, parts[i].file, text[i], parts[i].secret, err);
    return GR_MIN(r, 0);
}
