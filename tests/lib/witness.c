#include "tests/lib/witness.h"
#include "common/cleanup.h"
#include "tests/lib/inix.h"
#include "tests/lib/test.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCKS 8u
#define AREA 256u /* blocks at the end of the disk */

struct witness {
    pthread_t thread;
    struct ini ini;
    atomic_bool stop;
    const char *failed;
    unsigned rounds;
};

/* Unit attentions are news of what others changed, not failures. */
static bool done(struct witness *w, const uint8_t *cdb, const void *out, uint32_t out_len, void *in, uint32_t in_len)
{
    struct ini_result r;
    int rc;
    do
        rc = ini_cmd(&w->ini, cdb, 10, out, out_len, in, in_len, &r);
    while (!rc && r.status == 2 && INI_KEY(r) == 6);
    return !rc && !r.status;
}

static const char *round_trip(struct witness *w)
{
    uint8_t out[BLOCKS * INIX_BLOCK], in[sizeof out], cdb[10];
    uint32_t lba = TGTFIX_SIZE / INIX_BLOCK - AREA + w->rounds * BLOCKS % AREA;
    memset(out, (int)(w->rounds * 7 + 1), sizeof out);
    inix_rw_cdb(cdb, true, lba, BLOCKS);
    if (!done(w, cdb, out, sizeof out, NULL, 0))
        return "a write";
    inix_rw_cdb(cdb, false, lba, BLOCKS);
    if (!done(w, cdb, NULL, 0, in, sizeof in))
        return "a read";
    return memcmp(in, out, sizeof in) ? "what was read" : NULL;
}

static void *work(void *arg)
{
    struct witness *w = arg;
    do { /* once at least, however short the test */
        w->failed = round_trip(w);
        w->rounds++;
        usleep(500);
    } while (!atomic_load(&w->stop) && !w->failed);
    return NULL;
}

struct witness *witness_start(struct tgtfix *f)
{
    struct witness *w = calloc(1, sizeof *w);
    assert_non_null(w);
    tgtfix_login(f, &w->ini, "iqn.2026-11.local.granary:witness");
    inix_ready(&w->ini);
    w->ini.timeout_ms = 2000;
    assert_int_equal(pthread_create(&w->thread, NULL, work, w), 0);
    return w;
}

void witness_stop(struct witness *w)
{
    atomic_store(&w->stop, true);
    pthread_join(w->thread, NULL);
    if (w->failed)
        fail_msg("another session noticed: %s failed in round %u", w->failed, w->rounds);
    ini_close(&w->ini);
    free(w);
}
