/* Fuzz target: whole conversations with the data mover, plain text, over memory. The first byte chooses where the input begins:
 * in the negotiation, or behind a negotiation done rightly (simple replies, or structured ones with a context). */
#include "iscsi-target/mover_int.h"
#include "common/cleanup.h"
#include <assert.h>
#include <string.h>
#include <unistd.h>

#define SIZE (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *disk;
    struct mover_server *server;
};

static int dir_open(void *arg, const char *name, struct mover_export *ret, struct gr_err *err)
{
    if (strcmp(name, "a") && strcmp(name, "a@b"))
        return gr_fail(err, -ENOENT, "no export \"%s\"", name);
    *ret = (struct mover_export){.bdev = gr_bdev_get(arg), .writable = !name[1]};
    return 0;
}

static int dir_list(void *arg, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    return fn(ctx, "a", "b");
}

static int dir_bases(void *arg, const char *export_name, mover_name_fn fn, void *ctx, struct gr_err *err)
{
    return fn(ctx, "b", NULL);
}

static void set_up(struct world *w)
{
    int r = gr_loop_new(NULL, &w->loop, NULL);
    w->mem = gr_mem_new(SIZE);
    assert(r >= 0 && w->mem);
    r = gr_bdev_mem_open(w->loop, w->mem, &w->disk);
    assert(r >= 0);
    memset(gr_mem_page(w->mem, 8192, true), 7, 4096);
    struct mover_opts o = {.security = MOVER_PLAIN_LOOPBACK,
                           .dir = {.arg = w->disk, .open = dir_open, .list = dir_list, .list_bases = dir_bases}};
    r = mover_server_new(w->loop, &o, &w->server, NULL);
    assert(r >= 0);
}

static void say(int fd, const void *p, size_t len)
{
    ssize_t n = send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)n;
}

static const char flags[] = "\0\0\0\3";
static const char structured[] = "IHAVEOPT\0\0\0\x08\0\0\0\0";
static const char context[] = "IHAVEOPT\0\0\0\x0a\0\0\0\x1c\0\0\0\1a\0\0\0\1\0\0\0\x0f" "base:allocation";
static const char go[] = "IHAVEOPT\0\0\0\7\0\0\0\7\0\0\0\1a\0\0";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world w; /* of the fuzzing process: made once */
    int sv[2];
    uint8_t sink[65536];
    if (!w.loop)
        set_up(&w);
    if (size < 1 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0 || mover_server_adopt(w.server, sv[0], NULL) < 0)
        return 0;
    if (data[0] % 4 < 3)
        say(sv[1], flags, 4);
    if (data[0] % 4 == 1) {
        say(sv[1], structured, sizeof(structured) - 1);
        say(sv[1], context, sizeof(context) - 1);
    }
    if (data[0] % 4 == 1 || data[0] % 4 == 2)
        say(sv[1], go, sizeof(go) - 1);
    say(sv[1], data + 1, size - 1);
    shutdown(sv[1], SHUT_WR);
    struct mover_stats st;
    for (int i = 0; i < 100000; i++) {
        while (recv(sv[1], sink, sizeof(sink), MSG_DONTWAIT) > 0) {
        }
        mover_server_stats(w.server, &st);
        if (!st.connections)
            break;
        gr_loop_turn(w.loop, 0);
    }
    close(sv[1]);
    assert(!st.connections && w.disk->refs == 1);
    return 0;
}
