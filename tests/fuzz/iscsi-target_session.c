/* A logged-in session against a memory disk: any PDUs in any order. Input: records of {control, 48-byte header, 8-bit data
 * length, data}; the control byte says which fields are put right, so that the input gets past the sequence numbers. */
#include "common/bdev.h"
#include "common/cleanup.h"
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
    return tgt_lu_acquire(&b->server, "d/disk", "iqn.f", &lu, redirect, NULL);
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
    if (!b->mem || gr_bdev_mem_open(b->loop, b->mem, &b->bdev) < 0 || tgt_access_open(NULL, &b->server.access, NULL) < 0)
        abort();
    b->server.loop = b->loop;
    b->server.dir = (struct tgt_directory){.arg = b, .lookup = lookup, .list = list};
    return b;
}

static void turn(struct bench *b, int peer)
{
    uint8_t sink[65536];
    for (int i = 0; i < 4; i++) {
        gr_loop_turn(b->loop, 0);
        while (recv(peer, sink, sizeof sink, MSG_DONTWAIT) > 0)
            continue;
    }
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
    int pair[2];
    if (!b)
        b = bench_new();
    if (gr_fiber_run(b->loop, acquire, b) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    struct tgt_sess_start start = {.fd = pair[0], .lu = b->server.lus, .initiator = "iqn.f", .address = "-", .cmdsn = 5, .flags = 0x87};
    tgt_params_default(&start.params);
    start.params.initial_r2t = size && data[0] & 1;
    start.params.header_digest = 0;
    if (tgt_sess_new(&b->server, &start) < 0)
        abort();
    while (size > 1 + TGT_BHS_LEN + 1 && b->server.sessions) {
        uint8_t bhs[TGT_BHS_LEN], control = data[0], zeros[4] = {0};
        uint32_t len = data[1 + TGT_BHS_LEN];
        memcpy(bhs, data + 1, TGT_BHS_LEN);
        data += 2 + TGT_BHS_LEN;
        size -= 2 + TGT_BHS_LEN;
        len = (uint32_t)GR_MIN((size_t)len, size);
        put_right(b->server.sessions, bhs, control, len);
        if (send(pair[1], bhs, sizeof bhs, MSG_NOSIGNAL) < 0 || send(pair[1], data, len, MSG_NOSIGNAL) < 0 ||
            send(pair[1], zeros, tgt_pad4(len), MSG_NOSIGNAL) < 0)
            break;
        data += len;
        size -= len;
        if (control & 32)
            turn(b, pair[1]);
    }
    turn(b, pair[1]);
    close(pair[1]);
    while (b->server.sessions)
        gr_loop_turn(b->loop, 0);
    gr_fiber_run(b->loop, drained, b);
    if (b->server.pool.used || b->server.lus->users)
        abort(); /* a buffer or a session was lost */
    return 0;
}
