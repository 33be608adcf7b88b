/* disk_poke {--file RAW | DS/PATH}: apply changes read from standard input to a raw file, or to a disk of a home without a daemon:
 *     w OFFSET LENGTH SEED     bytes that follow from SEED, half of them compressible
 *     z OFFSET LENGTH          zeros (unmapped where that is possible)
 * The same input gives the same bytes, so that a raw file serves as the oracle of a disk. */
#include "common/cleanup.h"
#include "common/fiber.h"
#include "snapshot/client.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct poke {
    struct gr_loop *loop;
    const char *file, *disk;
};
static void fill(uint8_t *p, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        if (i % 4096 == 0)
            seed = seed * 6364136223846793005u + 1442695040888963407u;
        if (i & 8192)
            p[i] = (uint8_t)(seed >> 33 ^ i / 64);
        else
            p[i] = (uint8_t)((seed = seed * 6364136223846793005u + 1442695040888963407u) >> 56);
    }
}
static int one(struct gr_chan *ch, const char *line)
{
    uint64_t off = 0, len = 0, seed = 0;
    char op = 0;
    int n = sscanf(line, "%c %" SCNu64 " %" SCNu64 " %" SCNu64, &op, &off, &len, &seed);
    if (op == 'z' && n >= 3)
        return gr_unmap(ch, off, len, 0);
    if (op != 'w' || n != 4 || len == 0 || len > (256u << 20))
        return -EINVAL;
    uint8_t *p = gr_alloc_aligned(4096, len);
    if (!p)
        return -ENOMEM;
    fill(p, len, seed);
    int r = gr_pwrite(ch, p, len, off, 0);
    free(p);
    return r;
}
static int apply(struct poke *k, struct gr_bdev *b)
{
    struct gr_chan *ch = NULL;
    char line[256];
    int r = gr_chan_open(b, k->loop, &ch);
    while (r == 0 && fgets(line, sizeof line, stdin))
        if ((r = one(ch, line)) < 0)
            fprintf(stderr, "%s: %s", gr_code_text(r), line);
    if (r == 0)
        r = gr_flush(ch);
    gr_chan_close(ch);
    return r;
}
static int run(void *arg)
{
    struct poke *k = arg;
    struct gr_err err = {0};
    struct gr_home *home = NULL;
    struct snap_client *c = NULL;
    struct snap_place place = {.bdev = NULL};
    int r;
    if (k->file) {
        struct gr_file_opts o = {.read_only = false};
        r = gr_bdev_file_open(k->loop, k->file, &o, &place.bdev, &err);
    } else {
        r = gr_home_open(0, &home, &err);
        if (r == 0)
            r = snap_client_open(k->loop, home, NULL, &c, &err);
        if (r == 0 && !snap_client_local(c))
            r = gr_fail(&err, -GR_ELOCKED, "a daemon runs; write through it");
        if (r == 0)
            r = snap_svc_find(snap_client_local(c), k->disk, "test", 10000, &place, &err);
    }
    if (r == 0)
        r = apply(k, place.bdev);
    gr_bdev_put(place.bdev);
    snap_client_close(c);
    gr_home_free(home);
    if (r < 0)
        fprintf(stderr, "%s\n", gr_err_text(&err, r));
    return r;
}
int main(int argc, char **argv)
{
    struct poke k = {.loop = NULL};
    if (argc == 3 && !strcmp(argv[1], "--file"))
        k.file = argv[2];
    else if (argc == 2)
        k.disk = argv[1];
    else
        return 2;
    if (gr_loop_new(NULL, &k.loop, NULL) < 0)
        return 1;
    int r = gr_fiber_run(k.loop, run, &k);
    gr_loop_free(k.loop);
    return gr_code_exit(r);
}
