#include "iscsi-target/portals.h"
#include "common/fiber.h"
#include "iscsi-target/handover.h"
#include <stdio.h>
#include <string.h>

#define PORTALS "state/portals.json" /* {"portals":[{"portal","multipath","any-port"}]} */
#define PORTS "state/ports.json"     /* {"mover":PORT} */
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

/* ---- portals at the start ---- */
static int listen_patiently(struct tgt_server *s, const char *portal, unsigned flags, struct gr_err *err)
{
    unsigned tries = 0;
    int r;
    do
        r = tgt_server_listen(s, portal, flags, NULL, err);
    while (ghost_may_go(r, &tries));
    return r;
}

/* "HOST:0" of a portal whose port may be any. */
static bool host_of_any(json_t *row, char ret[TGT_SHOWN])
{
    const char *name = json_string_value(json_object_get(row, "portal")), *colon = name ? strrchr(name, ':') : NULL;
    if (!colon || !json_is_true(json_object_get(row, "any-port")) || strlen(name) >= TGT_SHOWN - 2)
        return false;
    snprintf(ret, TGT_SHOWN, "%.*s:0", (int)(colon - name), name);
    return true;
}

static bool of_kind(json_t *row, unsigned flags)
{
    return json_is_true(json_object_get(row, "multipath")) == !!(flags & TGT_PORTAL_MULTIPATH);
}

/* The portal of last time; one whose port was any takes another when that is taken. */
static int open_again(const struct tgt_portals *p, json_t *row, unsigned flags, struct gr_err *err)
{
    char any[TGT_SHOWN];
    const char *name = json_string_value(json_object_get(row, "portal"));
    bool is_any = host_of_any(row, any);
    if (!name)
        return gr_fail(err, -GR_EFORMAT, "%s: an entry has no portal", PORTALS);
    int r = listen_patiently(p->server, name, flags | (is_any ? TGT_PORTAL_ANY_PORT : 0), err);
    return (r == -EADDRINUSE || r == -EEXIST) && is_any ? tgt_server_listen(p->server, any, flags, NULL, err) : r;
}

/* The portal asked for; "HOST:0" is the first such one of last time that is not open yet. */
static int open_asked(const struct tgt_portals *p, const char *asked, json_t *before, unsigned flags, struct gr_err *err)
{
    char any[TGT_SHOWN];
    json_t *row;
    size_t i;
    json_array_foreach(before, i, row)
    {
        if (!of_kind(row, flags) || !host_of_any(row, any) || strcmp(any, asked) != 0)
            continue;
        int r = open_again(p, row, flags, err);
        json_array_remove(before, i);
        return r;
    }
    return listen_patiently(p->server, asked, flags, err);
}

static int open_kind(const struct tgt_portals *p, const struct tgt_portal_names *asked, json_t *before, unsigned kind, struct gr_err *err)
{
    unsigned flags = kind | (p->insecure ? TGT_PORTAL_INSECURE : 0), n = 0;
    json_t *row;
    size_t k;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < asked->n; i++)
        r = open_asked(p, asked->name[i], before, flags, err);
    if (r < 0 || asked->n)
        return r;
    json_array_foreach(before, k, row)
    {
        if (!of_kind(row, flags))
            continue;
        r = open_again(p, row, flags, err);
        if (r < 0)
            return r;
        n++;
    }
    return n || kind ? 0 : listen_patiently(p->server, TGT_PORTAL_DEFAULT, flags, err);
}

int tgt_portals_open(const struct tgt_portals *p, const struct tgt_portal_names *redirecting, const struct tgt_portal_names *multipath,
                     struct gr_err *err)
{
    json_t *doc = NULL;
    int r = gr_home_load(p->home, PORTALS, &doc, err);
    if (r == 0)
        r = open_kind(p, redirecting, json_object_get(doc, "portals"), 0, err);
    if (r == 0)
        r = open_kind(p, multipath, json_object_get(doc, "portals"), TGT_PORTAL_MULTIPATH, err);
    json_decref(doc);
    return r;
}

int tgt_portals_save(const struct tgt_portals *p, struct gr_err *err)
{
    json_t *list = json_array();
    struct tgt_portal_info info;
    for (unsigned i = 0; tgt_server_portal_at(p->server, i, &info); i++)
        json_array_append_new(list, json_pack("{s:s,s:b,s:b}", "portal", info.name, "multipath", (info.flags & TGT_PORTAL_MULTIPATH) != 0,
                                              "any-port", (info.flags & TGT_PORTAL_ANY_PORT) != 0));
    json_t *doc = json_pack("{s:o}", "portals", list);
    int r = doc ? gr_home_save(p->home, PORTALS, doc, err) : gr_fail(err, -ENOMEM, "out of memory");
    json_decref(doc);
    return r;
}

/* ---- portals of a daemon that runs ---- */
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

bool tgt_portals_beyond(const struct tgt_portals *p)
{
    struct tgt_portal_info info;
    for (unsigned i = 0; tgt_server_portal_at(p->server, i, &info); i++)
        if (!info.loopback)
            return true;
    return false;
}

json_t *tgt_portals_names(const struct tgt_portals *p, bool multipath)
{
    json_t *list = json_array();
    struct tgt_portal_info info;
    for (unsigned i = 0; tgt_server_portal_at(p->server, i, &info); i++)
        if (!!(info.flags & TGT_PORTAL_MULTIPATH) == multipath)
            json_array_append_new(list, json_string(info.name));
    return list;
}

static json_t *row_of(const struct tgt_portal_info *info)
{
    return json_pack("{s:s,s:b,s:i}", "portal", info->name, "multipath", (info->flags & TGT_PORTAL_MULTIPATH) != 0, "sessions", (int)info->sessions);
}

static int op_list(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const struct tgt_portals *p = arg;
    struct tgt_portal_info info;
    json_t *rows = json_array();
    for (unsigned i = 0; tgt_server_portal_at(p->server, i, &info); i++)
        json_array_append_new(rows, row_of(&info));
    *ret = rows;
    return 0;
}

/* The change is done; what is told of it may fail. */
static int tell(const struct tgt_portals *p, struct gr_err *err)
{
    int r = tgt_portals_save(p, err);
    if (r == 0)
        r = p->changed(p->arg, err);
    return r < 0 ? gr_prefix(err, -GR_EPARTIAL, "the portals are changed, but not everybody is told") : 0;
}

static int op_add(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const struct tgt_portals *p = arg;
    const char *portal = NULL;
    bool multipath = false;
    int r = gr_json_str(params, "portal", &portal, err);
    if (r == 0)
        r = gr_json_opt_bool(params, "multipath", &multipath, err);
    unsigned flags = (multipath ? TGT_PORTAL_MULTIPATH : 0) | (p->insecure ? TGT_PORTAL_INSECURE : 0);
    struct tgt_portal_info info = {0};
    if (r == 0)
        r = tgt_server_listen(p->server, portal, flags, NULL, err);
    for (unsigned i = 0; r == 0 && tgt_server_portal_at(p->server, i, &info); i++)
        ; /* the new one is the last */
    /* asked now: where a name leads is known when it is bound, and what others may see may have changed meanwhile; nobody is let in yet */
    if (r == 0 && !p->insecure && !info.loopback && (r = p->admit(p->arg, err)) < 0)
        tgt_server_unlisten(p->server, info.name, NULL, NULL);
    *ret = r == 0 ? row_of(&info) : NULL;
    return r == 0 ? tell(p, err) : r;
}

static int op_remove(void *arg, struct gr_rpc_call *call, json_t *params, json_t **ret, struct gr_err *err)
{
    const struct tgt_portals *p = arg;
    const char *portal = NULL;
    unsigned sessions = 0;
    int r = gr_json_str(params, "portal", &portal, err);
    if (r == 0)
        r = tgt_server_unlisten(p->server, portal, &sessions, err);
    if (r < 0)
        return r;
    *ret = json_pack("{s:s,s:i}", "portal", portal, "sessions", (int)sessions);
    return tell(p, err);
}

const struct gr_rpc_method tgt_portal_methods[] = {{"portal.list", op_list, true}, {"portal.add", op_add}, {"portal.remove", op_remove}, {NULL, NULL}};

/* ---- the mover's address ---- */
static unsigned remembered(struct gr_home *home)
{
    json_t *doc = NULL;
    if (gr_home_load(home, PORTS, &doc, NULL) < 0)
        return 0;
    json_int_t port = json_integer_value(json_object_get(doc, "mover"));
    json_decref(doc);
    return port > 0 && port < 65536 ? (unsigned)port : 0;
}

static int remember(struct gr_home *home, unsigned port, struct gr_err *err)
{
    json_t *doc = NULL;
    if (remembered(home) == port)
        return 0;
    int r = gr_home_load(home, PORTS, &doc, err);
    if (r < 0)
        return r;
    json_object_set_new(doc, "mover", json_integer(port));
    r = gr_home_save(home, PORTS, doc, err);
    json_decref(doc);
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

/* @host with the port of last time, else any. */
static int mover_any(struct mover_server *s, struct gr_home *home, const char *host, char shown[TGT_SHOWN], struct gr_err *err)
{
    char text[TGT_SHOWN];
    int r = -EADDRINUSE;
    unsigned last = remembered(home);
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
    return remember(home, mover_server_port(s), err);
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

int tgt_mover_bequeath(struct mover_server *s, const char *shown, struct tgt_heritage *h)
{
    int fd, r = 0;
    for (unsigned i = 0; r == 0 && (fd = mover_server_listener(s, i)) >= 0; i++)
        r = tgt_heritage_add(h, "mover", fd);
    json_object_set_new(h->doc, "mover-address", json_string(shown));
    return r < 0 ? r : mover_server_bequeath(s, h);
}

int tgt_mover_inherit(struct mover_server *s, struct tgt_heritage *h, char ret_shown[TGT_SHOWN], struct gr_err *err)
{
    const char *address = json_string_value(json_object_get(h->doc, "mover-address"));
    int fd, r = 0;
    unsigned n = 0;
    while (address && r == 0 && (fd = tgt_heritage_take(h, "mover", n)) >= 0) {
        r = mover_server_listen_fd(s, fd, err);
        n++;
    }
    if (n)
        snprintf(ret_shown, TGT_SHOWN, "%s", address);
    if (r >= 0)
        mover_server_inherit(s, h);
    return r < 0 ? r : n > 0;
}
