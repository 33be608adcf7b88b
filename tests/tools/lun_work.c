/* A logical unit as a device, for scripts:
 *   lun_work URL write SECONDS [USER SECRET-FILE]   random verified reads, writes, zeroes, compare-and-writes (where there are) and flushes
 *   lun_work URL probe OFFSET                       can it be shared? The unit of 4 KiB at OFFSET is tried on and put back */
#include "common/bdev_iscsi.h"
#include "common/bdev_probe.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include "tests/lib/test.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 32, LANE = 256 << 10 };
struct job {
    const char *url, *verb;
    uint64_t number;
    struct gr_iscsi_opts opts;
    struct gr_chan *ch;
    bool compares;
    uint64_t until_ns, done, seed;
    unsigned running;
    int status;
    struct gr_err err;
};
struct lane {
    struct job *j;
    uint64_t off, rng;
    uint8_t *want, *got;
};

static int step(struct lane *l)
{
    struct gr_chan *ch = l->j->ch;
    uint64_t what = test_rand(&l->rng), at = what % (LANE / 4096) * 4096, len = GR_MIN(((what >> 20) % 24 + 1) * 4096, LANE - at);
    switch ((what >> 40) % 8) {
    case 0:
        return gr_flush(ch);
    case 1:
        memset(l->want + at, 0, len);
        return gr_write_zeroes(ch, l->off + at, len, what >> 50 & 1 ? GR_BIO_MAY_UNMAP : 0);
    case 2:
        if (l->j->compares) {
            memset(l->got, (int)(what >> 56), 4096);
            int r = gr_compare_write(ch, l->off + at, l->want + at, l->got, 4096, NULL);
            memcpy(l->want + at, l->got, 4096);
            return r;
        }
        __attribute__((fallthrough));
    case 3:
    case 4: {
        int r = gr_pread(ch, l->got, len, l->off + at);
        return r < 0 || !memcmp(l->got, l->want + at, len) ? r : -GR_ECORRUPT;
    }
    default:
        for (uint64_t i = 0; i < len; i += 8)
            memcpy(l->want + at + i, &(uint64_t){test_rand(&l->rng)}, 8);
        return gr_pwrite(ch, l->want + at, len, l->off + at, what >> 50 & 1 ? GR_BIO_FUA : 0);
    }
}

static void work(void *arg)
{
    struct lane *l = arg;
    struct job *j = l->j;
    int r = gr_write_zeroes(j->ch, l->off, LANE, 0);
    while (r >= 0 && j->status >= 0 && gr_loop_now_ns(j->ch->loop) < j->until_ns) {
        r = step(l);
        j->done++;
    }
    if (r >= 0)
        r = gr_pread(j->ch, l->got, LANE, l->off);
    if (r >= 0 && memcmp(l->got, l->want, LANE) != 0)
        r = -GR_ECORRUPT;
    if (r < 0)
        j->status = r;
    free(l->want);
    free(l->got);
    j->running--;
}

static int write_all(struct job *j)
{
    struct lane lanes[LANES];
    uint8_t zero[4096] = {0};
    struct gr_loop *loop = j->ch->loop;
    int r = gr_write_zeroes(j->ch, 0, 4096, 0);
    if (r >= 0)
        r = gr_compare_write(j->ch, 0, zero, zero, 4096, NULL);
    j->compares = r >= 0;
    if (r < 0 && r != -EOPNOTSUPP && r != -EINVAL)
        return gr_fail(&j->err, r, "compare-and-write: %s", gr_code_text(r));
    j->until_ns = gr_loop_now_ns(loop) + j->number * 1000000000;
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i] = (struct lane){j, i * (uint64_t)LANE, j->seed + i, calloc(1, LANE), calloc(1, LANE)};
        j->running++;
        if (!lanes[i].want || !lanes[i].got || gr_fiber_start(loop, work, &lanes[i]) < 0)
            abort();
    }
    while (j->running)
        gr_fiber_sleep_ms(10);
    r = j->status < 0 ? j->status : gr_flush(j->ch);
    if (r < 0)
        return gr_fail(&j->err, r, "%s: %s", j->url, gr_code_text(r));
    printf("%lu operations, compare-and-write %s\n", (unsigned long)j->done, j->compares ? "too" : "is not there");
    return 0;
}

static int probe(struct job *j)
{
    struct gr_bdev *b = NULL;
    struct gr_probe seen;
    struct gr_iscsi_opts o = j->opts;
    o.initiator = "iqn.2026-11.local.granary:second";
    int r = gr_bdev_iscsi_open(j->ch->loop, j->url, &o, &b, &j->err);
    if (r >= 0)
        r = gr_bdev_probe(j->ch->bdev, b, &(struct gr_probe_opts){.off = j->number}, &seen, &j->err);
    gr_bdev_put(b);
    if (r >= 0)
        printf("can be shared\n");
    return r;
}

static int run(void *arg)
{
    struct job *j = arg;
    struct gr_bdev *b = NULL;
    int r = gr_bdev_iscsi_open(gr_fiber_loop(), j->url, &j->opts, &b, &j->err);
    if (r >= 0)
        r = gr_chan_open(b, gr_fiber_loop(), &j->ch);
    gr_bdev_put(b);
    if (r < 0)
        return r;
    r = !strcmp(j->verb, "probe") ? probe(j) : write_all(j);
    gr_chan_close(j->ch);
    return r;
}

int main(int argc, char **argv)
{
    struct job j = {.opts = {.timeout_ms = 5000}};
    struct gr_loop *loop = NULL;
    if ((argc != 4 && argc != 6) || gr_parse_u64(argv[3], 0, UINT64_MAX, &j.number, &j.err) < 0) {
        fprintf(stderr, "usage: lun_work URL write SECONDS [USER SECRET-FILE] | lun_work URL probe OFFSET\n");
        return 2;
    }
    j.url = argv[1];
    j.verb = argv[2];
    if (argc == 6) {
        j.opts.chap_user = argv[4];
        j.opts.chap_secret_file = argv[5];
    }
    j.seed = test_seed();
    signal(SIGPIPE, SIG_IGN);
    int r = gr_loop_new(NULL, &loop, &j.err);
    if (r >= 0)
        r = gr_fiber_run(loop, run, &j);
    gr_loop_free(loop);
    if (r < 0)
        fprintf(stderr, "lun_work: %s\n", gr_err_text(&j.err, r));
    return r < 0 ? 1 : 0;
}
