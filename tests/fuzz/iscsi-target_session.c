/* A logged-in session of two connections against a memory disk: any PDUs in any order. Input: a byte of what was negotiated, then
 * records of {control, 48-byte header, 8-bit data length, data}; the control byte says which fields are put right, so that the
 * input gets past the sequence numbers, and which connection the PDU takes. A connection that has ended is made again. */
#include "common/bdev.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "iscsi-target/scsi.h"
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define DISK_BYTES (4u << 20)

struct bench {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *bdev;
    struct tgt_server server;
};

static int lookup(void *arg, const char *disk, const char *initiator, struct tgt_place *ret, struct gr_err *err)
{
    struct bench *b = arg;
    (void)disk;
    (void)initiator;
    (void)err;
    ret->bdev = gr_bdev_get(b->bdev);
    return 0;
}

static int list(void *arg, int (*each)(void *each_arg, const char *disk), void *each_arg, struct gr_err *err)
{
    (void)arg;
    (void)err;
    return each(each_arg, "d/disk");
}

static int acquire(void *arg)
{
    struct bench *b = arg;
    struct tgt_lu *lu = NULL;
    char redirect[300];
    return tgt_lu_acquire(&b->server, "d/disk", "iqn.f", false, &lu, redirect, NULL);
}

static int drained(void *arg)
{
    struct bench *b = arg;
    while (b->server.busy_fibers)
        gr_fqueue_wait(&b->server.changed);
    return 0;
}

/* Made once and kept: the disk's content is the only state that stays, and nothing depends on it. */
static struct bench *bench_new(void)
{
    struct bench *b = calloc(1, sizeof *b);
    if (!b || gr_loop_new(&(struct gr_loop_opts){.engine = GR_ENGINE_SYNC}, &b->loop, NULL) < 0)
        abort();
    b->mem = gr_mem_new(DISK_BYTES);
    if (!b->mem || gr_bdev_mem_open(b->loop, b->mem, &b->bdev) < 0 || tgt_access_open(NULL, NULL, &b->server.access, NULL) < 0)
        abort();
    b->server.loop = b->loop;
    b->server.dir = (struct tgt_directory){.arg = b, .lookup = lookup, .list = list};
    return b;
}

static void turn(struct bench *b, const int peer[2])
{
    uint8_t sink[65536];
    for (int i = 0; i < 4; i++) {
        gr_loop_turn(b->loop, 0);
        for (int k = 0; k < 2; k++)
            while (peer[k] >= 0 && recv(peer[k], sink, sizeof sink, MSG_DONTWAIT) > 0)
                continue;
    }
}

/* Log in: the first connection of a session, or a further one. The initiator's end, or -1: refused. */
static int log_in(struct bench *b, uint16_t cid, uint8_t negotiated)
{
    int pair[2];
    if (gr_fiber_run(b->loop, acquire, b) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    struct tgt_sess_start start = {.fd = pair[0], .lu = b->server.lus, .initiator = "iqn.f", .address = "-", .cmdsn = 5, .flags = 0x87, .cid = cid,
                                   .tsih = b->server.sessions ? b->server.sessions->tsih : 0};
    tgt_params_default(&start.params);
    start.params.initial_r2t = negotiated & 1;
    start.params.error_recovery_level = (negotiated >> 1 & 3) % 3;
    start.params.data_digest = negotiated >> 3 & 1;
    start.params.max_send_dsl = negotiated & 16 ? 512 : 8192;
    start.params.max_connections = 2;
    start.params.time2retain = 5;
    if (start.tsih && tgt_sess_joinable(&b->server, &start)) {
        tgt_lu_user_put(start.lu);
        close(pair[0]);
        close(pair[1]);
        return -1;
    }
    if (tgt_sess_login(&b->server, &start) < 0)
        abort();
    return pair[1];
}

static bool put(int fd, const void *p, size_t len)
{
    return !len || send(fd, p, len, MSG_NOSIGNAL) == (ssize_t)len;
}

static void put_right(struct tgt_sess *s, uint8_t *bhs, uint8_t control, uint32_t len)
{
    bhs[4] = 0;
    gr_put_be24(bhs + 5, len);
    if (control & 1)
        gr_put_be32(bhs + 24, s->expcmdsn);
    if (control & 2)
        memset(bhs + 8, 0, 8);
    if (control & 4)
        gr_put_be32(bhs + 16, gr_get_be32(bhs + 16) & 3);
    if (control & 8) { /* a tag and an offset that some write waits for */
        for (unsigned i = 0; i < TGT_TASKS; i++) {
            const struct tgt_task *t = &s->tasks[i];
            if (t->state != TASK_COLLECT)
                continue;
            gr_put_be32(bhs + 16, t->itt);
            gr_put_be32(bhs + 20, t->n_r2t ? t->r2t[0].ttt : TGT_TAG_NONE);
            gr_put_be32(bhs + 40, t->out_got);
            break;
        }
    }
    if (control & 16) /* blocks that exist */
        memset(bhs + 34, 0, 6);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bench *b;
    int peer[2] = {-1, -1};
    if (!size)
        return 0;
    if (!b)
        b = bench_new();
    uint8_t negotiated = data[0];
    data++;
    size--;
    peer[0] = log_in(b, 0, negotiated);
    while (size > 1 + TGT_BHS_LEN + 1 && b->server.sessions) {
        uint8_t bhs[TGT_BHS_LEN], control = data[0], zeros[4] = {0}, digest[4];
        unsigned k = control >> 6 & 1;
        if (control & 128) {
            close(peer[k]);
            peer[k] = -1;
            turn(b, peer);
        }
        if (peer[k] < 0 && b->server.sessions)
            peer[k] = log_in(b, (uint16_t)k, negotiated);
        if (peer[k] < 0)
            break;
        uint32_t len = data[1 + TGT_BHS_LEN];
        memcpy(bhs, data + 1, TGT_BHS_LEN);
        data += 2 + TGT_BHS_LEN;
        size -= 2 + TGT_BHS_LEN;
        len = (uint32_t)GR_MIN((size_t)len, size);
        put_right(b->server.sessions, bhs, control, len);
        tgt_digest_put(digest, gr_crc32c(gr_crc32c(0, data, len), zeros, tgt_pad4(len)) ^ (len & 64)); /* some are wrong */
        bool out = put(peer[k], bhs, sizeof bhs) && put(peer[k], data, len) && put(peer[k], zeros, tgt_pad4(len)) &&
                   (!len || !(negotiated & 8) || put(peer[k], digest, 4));
        data += len;
        size -= len;
        if (control & 32 || !out)
            turn(b, peer);
        if (!out) {
            close(peer[k]);
            peer[k] = -1;
        }
    }
    turn(b, peer);
    for (int k = 0; k < 2; k++)
        if (peer[k] >= 0)
            close(peer[k]);
    turn(b, (const int[2]){-1, -1});
    while (b->server.sessions)
        tgt_sess_close(b->server.sessions, "the end");
    gr_fiber_run(b->loop, drained, b);
    if (b->server.pool.used || b->server.lus->users)
        abort(); /* a buffer or a session was lost */
    return 0;
}
