/* Fuzz target: the other end of a link between hosts is hostile. First its proof: a right one, changed by the first 120 bytes, is believed only when
 * they change nothing. Then what comes over the stream that was adopted: pieces, each with a byte that says how (FRAMED: in a frame of the right
 * length; TURN: the server runs before the next one; DRAIN: its answers are read; END: the stream ends here) and two of length. Whatever it says, each
 * call ends, what is tied to the connection comes loose once, and nothing is left. */
#include "common/cleanup.h"
#include "common/endian.h"
#include "common/link_key.h"
#include "common/rpc.h"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FRAMED = 1, TURN = 2, DRAIN = 4, END = 8 };
#define PARTS_MAX 200u

struct bench {
    struct gr_loop *loop;
    struct gr_link_key *ours, *theirs;
    struct gr_link_proof proof; /* theirs, to us */
    uint8_t channel[GR_LINK_CHANNEL_LEN];
    unsigned tied, loose, peers, calls;
};

/* ---- methods of the kinds there are ---- */
static int tell(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const char *text = NULL;
    uint64_t n = 0;
    bool b = false;
    json_t *list = NULL;
    ((struct bench *)arg)->calls++;
    int r = gr_json_str(params, "text", &text, err);
    if (r == 0)
        r = gr_json_opt_u64(params, "n", &n, err);
    if (r == 0)
        r = gr_json_opt_bool(params, "b", &b, err);
    if (r == 0 && json_object_get(params, "list"))
        r = gr_json_array(params, "list", &list, err);
    if (r == 0)
        *ret = json_incref(params);
    return r;
}

static int parts(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    uint64_t n = 0;
    ((struct bench *)arg)->calls++;
    int r = gr_json_u64(params, "n", &n, err);
    for (uint64_t i = 0; r == 0 && i < GR_MIN(n, (uint64_t)PARTS_MAX) && !gr_rpc_gone(call); i++)
        r = gr_rpc_part(call, json_integer((json_int_t)i));
    return r;
}

static void comes_loose(void *arg)
{
    ((struct bench *)arg)->loose++;
}

static int tie(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    struct bench *b = arg;
    b->calls++;
    int r = gr_rpc_on_close(call, comes_loose, b);
    b->tied += r == 0;
    return r;
}

static int wait_long(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    ((struct bench *)arg)->calls++;
    while (!gr_rpc_gone(call))
        gr_fiber_sleep_ms(1);
    return gr_fail(err, -ECANCELED, "nobody waits for it");
}

static int forbidden(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    abort(); /* the guard has let it in */
}

static const struct gr_rpc_method methods[] = {{"tell", tell, .asks = true}, {"parts", parts, .asks = true}, {"tie", tie, .asks = false},
                                               {"wait", wait_long, .asks = false}, {"own.forbidden", forbidden, .asks = false}, {NULL}};

static int guard(void *arg, struct gr_rpc_peer *peer, const char *method, json_t *params, struct gr_err *err)
{
    if (strcmp(peer->host, "peer") != 0)
        abort();
    return strncmp(method, "own.", 4) == 0 ? gr_fail(err, -GR_EAUTH, "%s is not for others: %s", method, json_is_object(params) ? "" : "?") : 0;
}

struct peer {
    struct gr_rpc_peer base;
    struct bench *b;
};
static void peer_free(struct gr_rpc_peer *p)
{
    ((struct peer *)p)->b->peers--;
    free(p);
}

/* ---- */
static struct gr_link_key *key_new(void)
{
    char dir[] = "/tmp/granary-fuzz.XXXXXX", path[64];
    struct gr_link_key *k = NULL;
    if (!mkdtemp(dir))
        abort();
    snprintf(path, sizeof path, "%s/key", dir);
    if (gr_link_key_open(path, &k, NULL) < 0 || unlink(path) < 0 || rmdir(dir) < 0)
        abort();
    return k;
}

static struct bench *bench_new(void)
{
    static const uint8_t volume[16] = "a volume";
    struct bench *b = calloc(1, sizeof *b);
    if (!b || gr_loop_new(&(struct gr_loop_opts){.engine = GR_ENGINE_SYNC}, &b->loop, NULL) < 0)
        abort();
    b->ours = key_new();
    b->theirs = key_new();
    memset(b->channel, 7, sizeof b->channel);
    if (gr_link_prove(b->theirs, true, volume, b->channel, gr_link_key_public(b->ours), &b->proof) < 0)
        abort();
    return b;
}

static void turn(struct bench *b, int fd, bool drain)
{
    uint8_t sink[65536];
    for (int i = 0; i < 4; i++) {
        gr_loop_turn(b->loop, 0);
        while (drain && recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0)
            continue;
    }
}

static void prove(const struct bench *b, const uint8_t *data, size_t size)
{
    struct gr_link_proof p = b->proof;
    bool same = true;
    for (size_t i = 0; i < GR_MIN(size, sizeof p); i++) {
        ((uint8_t *)&p)[i] ^= data[i];
        same &= data[i] == 0;
    }
    if (gr_link_proves(&p, true, b->channel, gr_link_key_public(b->ours)) != same)
        abort();
    if (gr_link_proves(&p, false, b->channel, gr_link_key_public(b->ours)) || gr_link_proves(&p, true, b->channel, gr_link_key_public(b->theirs)))
        abort(); /* of another role, for another host */
}

static void say_all(struct bench *b, int fd, const uint8_t *data, size_t size)
{
    while (size >= 3) {
        uint8_t how = data[0], head[8] = "GRP1";
        size_t len = GR_MIN((size_t)gr_get_be16(data + 1), size - 3);
        gr_put_be32(head + 4, (uint32_t)len);
        bool out = (!(how & FRAMED) || send(fd, head, sizeof head, MSG_NOSIGNAL) == sizeof head) &&
                   (!len || send(fd, data + 3, len, MSG_NOSIGNAL) == (ssize_t)len);
        data += 3 + len;
        size -= 3 + len;
        if ((how & TURN) || !out)
            turn(b, fd, how & DRAIN);
        if ((how & END) || !out)
            return;
    }
}

static int server_free(void *arg)
{
    gr_rpc_server_free(arg);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bench *b;
    struct gr_rpc_server *s;
    struct peer *peer = calloc(1, sizeof *peer);
    int pair[2];
    if (!b)
        b = bench_new();
    if (!peer || gr_rpc_server_new(b->loop, &s) < 0 || gr_rpc_server_add(s, methods, b) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    prove(b, data, size);
    gr_rpc_server_guard(s, guard, b);
    *peer = (struct peer){.base = {.host = "peer", .from = "10.0.0.1", .free = peer_free}, .b = b};
    b->tied = b->loose = b->calls = 0;
    b->peers = 1;
    gr_rpc_server_adopt(s, pair[0], &peer->base);
    size_t skip = GR_MIN(size, sizeof(struct gr_link_proof));
    say_all(b, pair[1], data + skip, size - skip);
    turn(b, pair[1], true);
    close(pair[1]);
    if (gr_fiber_run(b->loop, server_free, s) < 0 || b->peers || b->tied != b->loose)
        abort();
    return 0;
}
