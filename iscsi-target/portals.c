#include "iscsi-target/portals.h"
#include "common/fiber.h"
#include <stdio.h>
#include <string.h>

#define PORTS "state/ports.json"
#define GHOST_MS 1000
#define GHOST_STEP_MS 20

/* The part before ":0" of "HOST:0" in @host; false: the port is another. */
static bool any_port(const char *portal, char host[TGT_SHOWN])
{
    const char *colon = strrchr(portal, ':');
    if (!colon || strcmp(colon, ":0") != 0 || colon - portal > TGT_SHOWN - 10)
        return false;
    memcpy(host, portal, (size_t)(colon - portal));
    host[colon - portal] = 0;
    return true;
}

static unsigned remembered(struct gr_home *home, const char *key)
{
    json_t *doc = NULL;
    if (gr_home_load(home, PORTS, &doc, NULL) < 0)
        return 0;
    json_int_t port = json_integer_value(json_object_get(doc, key));
    json_decref(doc);
    return port > 0 && port < 65536 ? (unsigned)port : 0;
}

static int remember(struct gr_home *home, const char *key, unsigned port, struct gr_err *err)
{
    json_t *doc = NULL;
    if (remembered(home, key) == port)
        return 0;
    int r = gr_home_load(home, PORTS, &doc, err);
    if (r < 0)
        return r;
    json_object_set_new(doc, key, json_integer(port));
    r = gr_home_save(home, PORTS, doc, err);
    json_decref(doc);
    return r;
}

/* A daemon that was killed may hold its port for a moment after its death (what its io_uring had in flight keeps the socket until
 * the kernel has cancelled that): its successor waits for it. False: that was long enough. */
static bool ghost_may_go(int r, unsigned *tries)
{
    if (r != -EADDRINUSE || *tries == GHOST_MS / GHOST_STEP_MS)
        return false;
    gr_fiber_sleep_ms(GHOST_STEP_MS);
    ++*tries;
    return true;
}

static int target_listen(struct tgt_server *s, const char *portal, unsigned flags, uint16_t *ret_port, struct gr_err *err)
{
    unsigned tries = 0;
    int r;
    do
        r = tgt_server_listen(s, portal, flags, ret_port, err);
    while (ghost_may_go(r, &tries));
    return r;
}

static int mover_listen(struct mover_server *s, const char *portal, struct gr_err *err)
{
    unsigned tries = 0;
    int r;
    do
        r = mover_server_listen(s, portal, err);
    while (ghost_may_go(r, &tries));
    return r;
}

int tgt_portal_open(struct tgt_server *s, struct gr_home *home, const char *key, const char *portal, unsigned flags, char ret_shown[TGT_SHOWN],
                    struct gr_err *err)
{
    char host[TGT_SHOWN], again[TGT_SHOWN];
    uint16_t port = 0;
    int r = -EADDRINUSE;
    bool any = any_port(portal, host);
    unsigned last = any ? remembered(home, key) : 0;
    if (last) {
        snprintf(again, sizeof(again), "%.280s:%u", host, last);
        r = target_listen(s, again, flags, &port, NULL);
    }
    if (r < 0)
        r = target_listen(s, portal, flags, &port, err);
    if (r == 0 && any)
        r = remember(home, key, port, err);
    if (r < 0)
        return r;
    if (any)
        snprintf(ret_shown, TGT_SHOWN, "%.280s:%u", host, port);
    else
        snprintf(ret_shown, TGT_SHOWN, "%s", portal);
    return 0;
}

/* @host with the port of last time, else any. */
static int mover_any(struct mover_server *s, struct gr_home *home, const char *host, char shown[TGT_SHOWN], struct gr_err *err)
{
    char text[TGT_SHOWN];
    int r = -EADDRINUSE;
    unsigned last = remembered(home, "mover");
    if (last) {
        snprintf(text, sizeof(text), "%.280s:%u", host, last);
        r = mover_listen(s, text, NULL);
    }
    if (r < 0) {
        snprintf(text, sizeof(text), "%.280s:0", host);
        r = mover_listen(s, text, err);
    }
    if (r < 0)
        return r;
    snprintf(shown, TGT_SHOWN, "%.280s:%u", host, mover_server_port(s));
    return remember(home, "mover", mover_server_port(s), err);
}

int tgt_mover_open(struct mover_server *s, struct gr_home *home, const char *wanted, char ret_shown[TGT_SHOWN], struct gr_err *err)
{
    char host[TGT_SHOWN];
    if (wanted && any_port(wanted, host))
        return mover_any(s, home, host, ret_shown, err);
    int r = mover_listen(s, wanted ? wanted : TGT_MOVER_DEFAULT, err);
    if (r == -EADDRINUSE && !wanted)
        return mover_any(s, home, "127.0.0.1", ret_shown, err);
    if (r == 0)
        snprintf(ret_shown, TGT_SHOWN, "%s", wanted ? wanted : TGT_MOVER_DEFAULT);
    return r;
}

void tgt_portal_host(const char *portal, char ret[TGT_SHOWN])
{
    const char *colon = strrchr(portal, ':');
    size_t n = colon ? (size_t)(colon - portal) : 0;
    ret[0] = 0;
    if (n >= TGT_SHOWN)
        return;
    if (n > 2 && portal[0] == '[' && portal[n - 1] == ']') {
        portal++;
        n -= 2;
    }
    memcpy(ret, portal, n);
    ret[n] = 0;
    if (strcmp(ret, "0.0.0.0") == 0 || strcmp(ret, "::") == 0)
        ret[0] = 0;
}

bool tgt_portal_local(const char *portal)
{
    char host[TGT_SHOWN];
    tgt_portal_host(portal, host);
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0;
}
