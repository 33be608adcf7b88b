/* Reads a network source of the backup proxy, for tests:
 *
 *   source_cat copy URL OUT [OPTIONS]     every byte to the file OUT (holes are left out), with a deep queue
 *   source_cat map URL [OPTIONS]          "OFFSET LENGTH data|zero[,changed]" lines
 *
 * OPTIONS: --certs DIR  --psk FILE  --psk-user NAME  --tls  --base TOKEN  --connections N      (NBD)
 *          --initiator IQN  --user NAME  --secret FILE                     (iSCSI)      --timeout MS */
#include "backup-proxy/source.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <fcntl.h>
#include <string.h>

#define DEPTH 32
#define PIECE (256u << 10)

struct job {
    struct gr_loop *loop;
    const char *verb, *url, *out;
    struct bp_nbd_opts nbd;
    struct bp_iscsi_opts iscsi;
    struct gr_bookmark base;
    struct gr_err err;
    int fd;
    struct gr_chan *ch;
    uint64_t size, next;
    unsigned busy;
    int status;
    struct gr_fiber *fiber;
};
struct slot {
    struct job *job;
    struct gr_bio bio;
    struct iovec iov;
    char *buf;
};

static void on_read(struct gr_bio *bio);

static void next_read(struct slot *s)
{
    struct job *j = s->job;
    if (j->status < 0 || j->next >= j->size) {
        if (!--j->busy)
            gr_fiber_wake(j->fiber);
        return;
    }
    s->iov = (struct iovec){s->buf, (size_t)GR_MIN((uint64_t)PIECE, j->size - j->next)};
    s->bio = (struct gr_bio){.op = GR_OP_READ, .off = j->next, .len = s->iov.iov_len, .iov = &s->iov, .iovcnt = 1, .done = on_read, .arg = s};
    j->next += s->iov.iov_len;
    gr_submit(j->ch, &s->bio);
}

static void on_read(struct gr_bio *bio)
{
    struct slot *s = bio->arg;
    if (bio->status < 0)
        s->job->status = bio->status;
    else if (pwrite(s->job->fd, s->buf, bio->len, (off_t)bio->off) != (ssize_t)bio->len)
        s->job->status = -EIO;
    next_read(s);
}

static int copy(struct job *j)
{
    struct slot slots[DEPTH];
    j->fd = open(j->out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (j->fd < 0 || (ftruncate(j->fd, (off_t)j->size) < 0 && errno != EINVAL)) /* a device has its size */
        return gr_fail(&j->err, -errno, "%s: cannot be written", j->out);
    j->busy = DEPTH;
    for (int i = 0; i < DEPTH; i++) {
        slots[i] = (struct slot){.job = j, .buf = gr_alloc(PIECE)};
        if (!slots[i].buf)
            return -ENOMEM;
    }
    for (int i = 0; i < DEPTH; i++)
        next_read(&slots[i]);
    while (j->busy)
        gr_fiber_suspend();
    for (int i = 0; i < DEPTH; i++)
        free(slots[i].buf);
    close(j->fd);
    return j->status < 0 ? gr_fail(&j->err, j->status, "reading failed: %s", gr_code_text(j->status)) : 0;
}

static int map(struct job *j)
{
    struct gr_extent e[64];
    unsigned n = 0;
    for (uint64_t at = 0; at < j->size; at = e[n - 1].off + e[n - 1].len) {
        int r = gr_extents(j->ch, at, j->size - at, j->nbd.base, e, 64, &n);
        if (r < 0)
            return gr_fail(&j->err, r, "no extents at %lu: %s", (unsigned long)at, gr_code_text(r));
        for (unsigned i = 0; i < n; i++)
            printf("%lu %lu %s%s\n", (unsigned long)e[i].off, (unsigned long)e[i].len, e[i].flags & (GR_EXTENT_ZERO | GR_EXTENT_HOLE) ? "zero" : "data",
                   j->nbd.base && e[i].changed ? ",changed" : "");
    }
    return 0;
}

static int run(void *arg)
{
    struct job *j = arg;
    struct gr_bdev *b = NULL;
    struct gr_geometry g;
    j->fiber = gr_fiber_self();
    int r = !strncmp(j->url, "iscsi", 5) ? bp_source_iscsi_open(j->loop, &j->iscsi, &b, &j->err) : bp_source_nbd_open(j->loop, &j->nbd, &b, &j->err);
    if (r < 0)
        return r;
    r = gr_bdev_geometry(b, &g);
    if (r >= 0)
        r = gr_chan_open(b, j->loop, &j->ch);
    j->size = g.size;
    if (r >= 0)
        r = !strcmp(j->verb, "copy") ? copy(j) : map(j);
    gr_chan_close(j->ch);
    gr_bdev_put(b);
    return r;
}

static int option(struct job *j, const char *name, const char *value)
{
    uint64_t n = 0;
    if (!strcmp(name, "--certs"))
        j->nbd.cert_dir = value;
    else if (!strcmp(name, "--psk"))
        j->nbd.psk_file = value;
    else if (!strcmp(name, "--psk-user"))
        j->nbd.psk_user = value;
    else if (!strcmp(name, "--initiator"))
        j->iscsi.initiator = value;
    else if (!strcmp(name, "--user"))
        j->iscsi.chap_user = value;
    else if (!strcmp(name, "--secret"))
        j->iscsi.chap_secret_file = value;
    else if (!strcmp(name, "--base") && gr_bookmark_parse(value, &j->base) >= 0)
        j->nbd.base = &j->base;
    else if (!strcmp(name, "--connections") && gr_parse_u64(value, 1, 16, &n, &j->err) >= 0)
        j->nbd.connections = (unsigned)n;
    else if (!strcmp(name, "--timeout") && gr_parse_u64(value, 1, 600000, &n, &j->err) >= 0)
        j->nbd.timeout_ms = j->iscsi.timeout_ms = n;
    else
        return gr_fail(&j->err, -GR_EUSAGE, "%s %s: no such option or value", name, value);
    return 0;
}

int main(int argc, char **argv)
{
    struct job j = {0};
    const char *words[3] = {0};
    int n = 0, r = 0;
    for (int i = 1; i < argc && r >= 0; i++) {
        if (!strcmp(argv[i], "--tls"))
            j.nbd.require_tls = true;
        else if (argv[i][0] == '-' && i + 1 < argc) {
            r = option(&j, argv[i], argv[i + 1]);
            i++;
        } else if (n < 3)
            words[n++] = argv[i];
    }
    j.verb = words[0];
    j.url = j.nbd.uri = j.iscsi.url = words[1];
    j.out = words[2];
    if (r >= 0 && (n < 2 || (n < 3 && !strcmp(j.verb, "copy"))))
        r = gr_fail(&j.err, -GR_EUSAGE, "usage: source_cat copy URL OUT | map URL");
    if (r >= 0)
        r = gr_loop_new(NULL, &j.loop, &j.err);
    if (r >= 0)
        r = gr_fiber_run(j.loop, run, &j);
    if (r < 0)
        fprintf(stderr, "source_cat: %s\n", gr_err_text(&j.err, r));
    gr_loop_free(j.loop);
    return r < 0 ? gr_code_exit(r) : 0;
}
