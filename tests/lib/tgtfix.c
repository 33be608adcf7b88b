#include "tests/lib/tgtfix.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STORED 4
struct stored { /* of one disk, by key */
    struct gr_bdev *of;
    const struct gr_bdev_ops *below;
    struct tgtfix *f;
    struct {
        char key[33];
        void *val;
        size_t len;
    } v[STORED];
};
struct priv {
    pthread_t thread;
    sem_t ready, called;
    struct tgtfix *f;
    struct gr_bdev *mem_dev, *slow;
    struct gr_bdev_ops with_store[2];
    struct gr_gang *gang;
    struct gr_fqueue stopped;
    bool stop;
    int (*fn)(struct tgtfix *f, void *arg);
    void *arg;
    int result;
};

static int lookup(void *arg, const char *disk, const char *initiator, struct tgt_place *ret, struct gr_err *err)
{
    struct tgtfix *f = arg;
    (void)initiator;
    if (!strcmp(disk, "t/disk")) {
        ret->bdev = gr_bdev_get(f->fault);
        return 0;
    }
    if (!strcmp(disk, "t/slow")) {
        ret->bdev = gr_bdev_get(((struct priv *)f->priv)->slow);
        return 0;
    }
    if (f->redirect && !strcmp(disk, "t/elsewhere") && !f->elsewhere.gone) {
        f->elsewhere.lookups++;
        if (f->elsewhere.here) {
            ret->bdev = gr_bdev_get(f->fault);
            return 0;
        }
        snprintf(ret->redirect, sizeof ret->redirect, "%s", f->redirect);
        int r = gr_bdev_geometry(f->fault, &ret->geometry);
        if (f->elsewhere.size)
            ret->geometry.size = f->elsewhere.size;
        if (f->elsewhere.look_ms)
            gr_fiber_sleep_ms(f->elsewhere.look_ms);
        return r;
    }
    return gr_fail(err, -ENOENT, "no disk '%s'", disk);
}

static uint16_t group(void *arg, const char *disk)
{
    (void)arg;
    return strcmp(disk, "t/elsewhere") ? 1 : 7;
}

static int groups(void *arg, const char *disk, struct tgt_group *ret, unsigned max)
{
    struct tgtfix *f = arg;
    assert_true(max >= 2);
    ret[0] = (struct tgt_group){.id = group(f, disk), .active = strcmp(disk, "t/elsewhere") || f->elsewhere.here};
    ret[1] = (struct tgt_group){.id = 3, .active = !ret[0].active};
    return strcmp(disk, "t/elsewhere") ? 1 : 2;
}

/* What concerns "t/elsewhere" there concerns "t/disk" here, and the other way round: of the server that there is now. */
static int to_the_other(struct tgtfix *f, const char *disk, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct gr_rpc_server *rpc = NULL;
    assert_int_equal(gr_rpc_server_new(f->loop, &rpc), 0);
    assert_int_equal(gr_rpc_server_add(rpc, tgt_host_methods, f->server), 0);
    json_object_set_new(params, "disk", json_string(disk));
    int r = gr_rpc_local(rpc, method, params, NULL, NULL, ret, err);
    gr_rpc_server_free(rpc);
    return r;
}

static int ask_owner(void *arg, const char *disk, const char *method, json_t *params, json_t **ret, struct gr_err *err)
{
    struct tgtfix *f = arg;
    if (!f->elsewhere.mute && !f->elsewhere.lost)
        return to_the_other(f, "t/disk", method, params, ret, err);
    if (f->elsewhere.lost) {
        f->elsewhere.lost--;
        assert_int_equal(to_the_other(f, "t/disk", method, json_incref(params), ret, err), 0);
        json_decref(gr_take(*ret));
        f->elsewhere.here |= f->elsewhere.dies;
    }
    json_decref(params);
    return gr_fail(err, -ETIMEDOUT, "the owner does not answer");
}

static int tell_hosts(void *arg, const char *disk, const char *method, json_t *params, struct gr_err *err)
{
    return to_the_other(arg, "t/elsewhere", method, params, NULL, err);
}

static int list(void *arg, int (*each)(void *each_arg, const char *disk), void *each_arg, struct gr_err *err)
{
    struct tgtfix *f = arg;
    (void)err;
    int r = each(each_arg, "t/disk");
    return r < 0 || !f->redirect ? r : each(each_arg, "t/elsewhere");
}

/* The target's log lines, with TGTFIX_VERBOSE in the environment. */
static void note(void *arg, int level, const char *text)
{
    (void)arg;
    if (getenv("TGTFIX_VERBOSE"))
        fprintf(stderr, "# <%d> %s\n", level, text);
}

int tgtfix_server(struct tgtfix *f, struct tgt_server **ret, struct gr_err *err)
{
    struct tgt_server_opts o = {.loop = f->loop, .gang = ((struct priv *)f->priv)->gang, .dir = {.arg = f, .lookup = lookup, .list = list, .group = group, .groups = groups, .ask_owner = ask_owner, .tell_hosts = tell_hosts}, .access_path = f->access_path, .note = note,
                                .host = f->host, .boot = f->boot,
                                .max_half_open = f->max_half_open, .max_half_open_per_address = f->per_address,
                                .login_timeout_ms = f->login_timeout_ms};
    return tgt_server_new(&o, ret, err);
}

/* ---- a durable store, as disks of a datastore have ---- */
static struct stored store[2]; /* bdevs know no context; one fixture with a store at a time */

static struct stored *stored_of(const struct gr_bdev *b)
{
    return &store[b != store[0].of];
}

/* Its place, or a free one. */
static int place_of(const struct stored *s, const char *key)
{
    int i = 0;
    while (i < STORED && s->v[i].key[0] && strcmp(s->v[i].key, key) != 0)
        i++;
    assert_true(i < STORED);
    return i;
}

static int attr_get(struct gr_bdev *b, const char *key, void **ret, struct gr_err *err)
{
    const struct stored *s = stored_of(b);
    int i = place_of(s, key);
    if (!s->v[i].len)
        return gr_fail(err, -ENOENT, "nothing is kept under '%s'", key);
    *ret = malloc(s->v[i].len);
    assert_non_null(*ret);
    memcpy(*ret, s->v[i].val, s->v[i].len);
    return (int)s->v[i].len;
}

/* As a disk of a datastore: whoever reads sees it at once, and it is answered when it is durable. */
static int attr_set(struct gr_bdev *b, const char *key, const void *val, size_t len, struct gr_err *err)
{
    struct stored *s = stored_of(b);
    unsigned ms = s->f->store_ms;
    bool fails = s->f->store_fails;
    int i = place_of(s, key);
    snprintf(s->v[i].key, sizeof s->v[i].key, "%s", key);
    free(s->v[i].val);
    s->v[i].val = len ? malloc(len) : NULL;
    s->v[i].len = len;
    if (len)
        memcpy(s->v[i].val, val, len);
    s->f->storing++;
    if (ms)
        gr_fiber_sleep_ms(ms);
    while (s->f->store_held)
        gr_fiber_sleep_ms(5);
    s->f->storing--;
    return fails ? gr_fail(err, -EIO, "'%s' cannot be kept", key) : 0;
}

static int limited_geometry(struct gr_bdev *b, struct gr_geometry *ret)
{
    const struct stored *s = stored_of(b);
    int r = s->below->geometry(b, ret);
    ret->limit_iops = s->f->limit_iops;
    return r;
}

static void give_store(struct priv *p, int i, struct gr_bdev *b)
{
    store[i].f = p->f;
    store[i].below = b->ops;
    p->with_store[i] = *b->ops;
    p->with_store[i].geometry = limited_geometry;
    p->with_store[i].attr_get = attr_get;
    p->with_store[i].attr_set = attr_set;
    b->ops = &p->with_store[i];
    store[i].of = b;
}

static int body(void *arg)
{
    struct priv *p = arg;
    struct tgtfix *f = p->f;
    struct gr_err err = {0};
    uint16_t port = 0;
    const char *loops = getenv("GRANARY_LOOPS");
    int r = loops ? gr_gang_start(f->loop, (unsigned)strtoul(loops, NULL, 10) - 1, &p->gang, &err) : 0;
    if (!r)
        r = gr_bdev_mem_open(f->loop, f->mem, &p->mem_dev);
    if (!r)
        r = gr_bdev_fault_open(f->loop, p->mem_dev, &f->fault);
    if (!r)
        r = gr_bdev_delay_open(f->loop, p->mem_dev, f->slow_reads ? TGTFIX_SLOW_MS * 1000000ull : 0, TGTFIX_SLOW_MS * 1000000ull, 0, &p->slow);
    if (!r && f->store) {
        give_store(p, 0, f->fault);
        give_store(p, 1, p->slow);
    }
    if (!r)
        r = tgtfix_server(f, &f->server, &err);
    if (!r)
        r = tgt_server_listen(f->server, "127.0.0.1:0", 0, &port, &err);
    snprintf(f->port, sizeof f->port, "%u", port);
    if (!r)
        r = tgt_server_listen(f->server, "[::1]:0", 0, &port, &err);
    snprintf(f->port2, sizeof f->port2, "%u", port);
    if (!r)
        r = tgt_server_listen(f->server, "127.0.0.1:0", TGT_PORTAL_MULTIPATH, &port, &err);
    snprintf(f->port3, sizeof f->port3, "%u", port);
    if (r < 0)
        fprintf(stderr, "tgtfix: %s\n", gr_err_text(&err, r));
    p->result = r;
    sem_post(&p->ready);
    while (!r && !p->stop)
        gr_fqueue_wait(&p->stopped);
    gr_bdev_fault_clear(f->fault);
    tgt_server_free(f->server);
    gr_bdev_put(f->fault);
    gr_bdev_put(p->slow);
    gr_bdev_put(p->mem_dev);
    gr_gang_stop(p->gang);
    return 0;
}

static void *thread(void *arg)
{
    struct priv *p = arg;
    struct gr_err err = {0};
    if (gr_loop_new(NULL, &p->f->loop, &err) < 0) {
        p->result = -1;
        sem_post(&p->ready);
        return NULL;
    }
    gr_fiber_run(p->f->loop, body, p);
    gr_loop_free(p->f->loop);
    return NULL;
}

void tgtfix_start(struct tgtfix *f)
{
    struct priv *p = calloc(1, sizeof *p);
    assert_non_null(p);
    f->priv = p;
    p->f = f;
    f->mem = gr_mem_new(TGTFIX_SIZE);
    sem_init(&p->ready, 0, 0);
    sem_init(&p->called, 0, 0);
    assert_int_equal(pthread_create(&p->thread, NULL, thread, p), 0);
    sem_wait(&p->ready);
    assert_int_equal(p->result, 0);
}

int tgtfix_setup(void **state)
{
    struct tgtfix *f = *state;
    *f = (struct tgtfix){.max_half_open = f->max_half_open, .per_address = f->per_address, .login_timeout_ms = f->login_timeout_ms, .redirect = f->redirect, .store = f->store};
    tgtfix_start(f);
    return 0;
}

int tgtfix_teardown(void **state)
{
    tgtfix_alive(*state);
    tgtfix_stop(*state);
    return 0;
}

int tgtfix_main(int argc, char **argv)
{
    const char *filter = getenv("TEST_FILTER");
    if (filter)
        cmocka_set_test_filter(filter);
    return tgt_login_main(argc, argv);
}

static void stop_on_loop(void *arg)
{
    struct priv *p = arg;
    p->stop = true;
    gr_fqueue_wake_all(&p->stopped);
}

void tgtfix_stop(struct tgtfix *f)
{
    struct priv *p = f->priv;
    gr_loop_post(f->loop, stop_on_loop, p);
    pthread_join(p->thread, NULL);
    gr_mem_free(f->mem);
    for (int i = 0; i < 2 && f->store; i++) {
        for (int k = 0; k < STORED; k++)
            free(store[i].v[k].val);
        store[i] = (struct stored){0};
    }
    sem_destroy(&p->ready);
    sem_destroy(&p->called);
    free(p);
}

static void call_fiber(void *arg)
{
    struct priv *p = arg;
    p->result = p->fn(p->f, p->arg);
    sem_post(&p->called);
}

static void call_on_loop(void *arg)
{
    struct priv *p = arg;
    if (gr_fiber_start(p->f->loop, call_fiber, p) < 0) {
        p->result = -ENOMEM;
        sem_post(&p->called);
    }
}

int tgtfix_call(struct tgtfix *f, int (*fn)(struct tgtfix *f, void *arg), void *arg)
{
    struct priv *p = f->priv;
    p->fn = fn;
    p->arg = arg;
    gr_loop_post(f->loop, call_on_loop, p);
    sem_wait(&p->called);
    return p->result;
}

void tgtfix_login(struct tgtfix *f, struct ini *i, const char *initiator)
{
    static const char keys[] = "InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=262144\0MaxBurstLength=262144\0"
                               "FirstBurstLength=65536\0MaxOutstandingR2T=4";
    assert_int_equal(ini_connect(i, "127.0.0.1", f->port), 0);
    assert_int_equal(ini_login(i, initiator, TGTFIX_TARGET, keys, sizeof keys), 0);
    assert_int_equal(i->login_status, 0);
}

void tgtfix_alive(struct tgtfix *f)
{
    static uint8_t out[8192], in[8192];
    uint8_t wr[10] = {0x2a, 0, 0, 0, 0, 200, 0, 0, 16, 0}, rd[10] = {0x28, 0, 0, 0, 0, 200, 0, 0, 16, 0};
    struct ini i;
    struct ini_result r;
    tgtfix_login(f, &i, "iqn.2026-11.local.granary:alive");
    for (unsigned k = 0; k < sizeof out; k++)
        out[k] = (uint8_t)(k * 7 + out[0] + 1);
    int rc;
    do
        rc = ini_cmd(&i, wr, 10, out, sizeof out, NULL, 0, &r);
    while (!rc && r.status == 2 && INI_KEY(r) == 6);
    assert_int_equal(rc, 0);
    assert_int_equal(r.status, 0);
    assert_int_equal(ini_cmd(&i, rd, 10, NULL, 0, in, sizeof in, &r), 0);
    assert_int_equal(r.status, 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(ini_logout(&i), 0);
    ini_close(&i);
}

static int count(struct tgtfix *f, void *arg)
{
    (void)arg;
    return (int)tgt_server_sessions(f->server, NULL);
}

void tgtfix_wait_sessions(struct tgtfix *f, unsigned n)
{
    for (int k = 0; k < 500; k++) {
        if ((unsigned)tgtfix_call(f, count, NULL) == n)
            return;
        usleep(10000);
    }
    fail_msg("%d sessions, expected %u", tgtfix_call(f, count, NULL), n);
}
