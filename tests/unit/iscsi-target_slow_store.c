/* Logins that take long, while something of the disk is being written to its store (which start of a VM is the latest, reservations that are kept), or because
 * the initiator does. */
#include "iscsi-target/pr.h"
#include "tests/lib/inisess.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define STORE_MS 400u
#define VM "iqn.2026-11.local.granary:vm-00000000-0000-4000-8000-00000000000"
#define ELSEWHERE "10.1.2.3:3260"
static struct tgtfix fix = {.store = true, .redirect = ELSEWHERE};

/* ---- a login that is not waited for ---- */
struct login {
    const char *initiator, *target;
    struct ini i;
    pthread_t thread;
    int r;
};

static void *login_thread(void *arg)
{
    struct login *l = arg;
    l->i.timeout_ms = 20000;
    l->r = ini_login(&l->i, l->initiator, l->target, NULL, 0);
    return NULL;
}

static void begin_at(struct login *l, const char *initiator, const char *target, const char *port)
{
    l->initiator = initiator;
    l->target = target;
    assert_int_equal(ini_connect(&l->i, "127.0.0.1", port), 0);
    assert_int_equal(pthread_create(&l->thread, NULL, login_thread, l), 0);
}

static void begin(struct login *l, const char *initiator)
{
    begin_at(l, initiator, TGTFIX_TARGET, fix.port);
}

static unsigned status(struct login *l)
{
    pthread_join(l->thread, NULL);
    assert_int_equal(l->r, 0);
    return l->i.login_status;
}

static unsigned alone(const char *initiator)
{
    struct login l;
    begin(&l, initiator);
    unsigned s = status(&l);
    ini_close(&l.i);
    return s;
}

static int set_store(struct tgtfix *f, void *arg)
{
    const int *ms = arg; /* negative: it fails after that time */
    f->store_ms = (unsigned)(*ms < 0 ? -*ms : *ms);
    f->store_fails = *ms < 0;
    return 0;
}

static void store(int ms)
{
    tgtfix_call(&fix, set_store, &ms);
}

static int storing(struct tgtfix *f, void *arg)
{
    return (int)f->storing;
}

static int looked(struct tgtfix *f, void *arg)
{
    return (int)f->elsewhere.lookups;
}

static void until(int (*fn)(struct tgtfix *f, void *arg))
{
    for (int k = 0; !tgtfix_call(&fix, fn, NULL); k++) {
        assert_true(k < 5000);
        usleep(2000);
    }
}

static int hold(struct tgtfix *f, void *arg)
{
    f->store_held = arg != NULL;
    return 0;
}

/* What is kept is not thrown away. */
static void next_process(void)
{
    fix.store = false;
    tgtfix_stop(&fix);
    fix = (struct tgtfix){.store = true, .host = "a", .boot = "1", .redirect = ELSEWHERE};
    tgtfix_start(&fix);
}

/* ---- starts of VMs ---- */
static void older_start_comes_second(void **state)
{
    struct login newer, older;
    store(STORE_MS);
    begin(&newer, VM "1:6");
    until(storing);
    begin(&older, VM "1:5");
    assert_int_equal(status(&newer), 0);
    assert_int_equal(status(&older), TGT_LOGIN_FORBIDDEN);
    inix_ready(&newer.i);
    ini_close(&older.i);
    ini_close(&newer.i);
    store(0);
    assert_int_equal(alone(VM "1:5"), TGT_LOGIN_FORBIDDEN);
    next_process();
    assert_int_equal(alone(VM "1:5"), TGT_LOGIN_FORBIDDEN);
    assert_int_equal(alone(VM "1:6"), 0);
}

static void starts_of_two_vms(void **state)
{
    struct login a, b;
    store(STORE_MS);
    begin(&a, VM "1:2");
    until(storing);
    begin(&b, VM "2:2");
    assert_int_equal(status(&a), 0);
    assert_int_equal(status(&b), 0);
    ini_close(&a.i);
    ini_close(&b.i);
    store(0);
    assert_int_equal(alone(VM "1:1"), TGT_LOGIN_FORBIDDEN);
    assert_int_equal(alone(VM "2:1"), TGT_LOGIN_FORBIDDEN);
    next_process();
    assert_int_equal(alone(VM "1:1"), TGT_LOGIN_FORBIDDEN);
    assert_int_equal(alone(VM "2:1"), TGT_LOGIN_FORBIDDEN);
}

/* ---- the disk goes away meanwhile ---- */
static atomic_bool released;

static void release_fiber(void *arg)
{
    struct tgtfix *f = arg;
    struct gr_err err;
    (void)tgt_server_release(f->server, "t/disk", false, &err);
    atomic_store(&released, true);
}

static int release(struct tgtfix *f, void *arg)
{
    (void)arg;
    return gr_fiber_start(f->loop, release_fiber, f);
}

static void release_ends(void **state)
{
    struct login l;
    tgtfix_call(&fix, hold, &fix);
    atomic_store(&released, false);
    begin(&l, VM "1:1");
    until(storing);
    assert_int_equal(tgtfix_call(&fix, release, NULL), 0);
    tgtfix_call(&fix, hold, NULL);
    assert_int_equal(status(&l), TGT_LOGIN_UNAVAILABLE);
    for (unsigned k = 0; k < 500 && !atomic_load(&released); k++)
        usleep(10000);
    assert_true(atomic_load(&released));
    ini_close(&l.i);
}

/* A stranger who stops half way holds nothing up, and is refused if he goes on. */
static void half_way(void **state)
{
    static const char keys[] = "InitiatorName=" INISESS_NAME ":stranger\0TargetName=" TGTFIX_TARGET "\0SessionType=Normal\0AuthMethod=None";
    struct ini i;
    atomic_store(&released, false);
    assert_int_equal(ini_connect(&i, "127.0.0.1", fix.port), 0);
    assert_true(ini_login_request(&i, 0, 1, 0, keys, sizeof keys) >= 0);
    assert_int_equal(i.login_status, 0);
    assert_int_equal(tgtfix_call(&fix, release, NULL), 0);
    for (unsigned k = 0; k < 500 && !atomic_load(&released); k++) /* a third of the time that a login may take */
        usleep(10000);
    assert_true(atomic_load(&released));
    assert_true(ini_login_request(&i, 0, 3, 1, NULL, 0) >= 0);
    assert_int_equal(i.login_status, TGT_LOGIN_UNAVAILABLE);
    ini_close(&i);
}

/* ---- it is being opened: who held it last is stored anew ---- */
static void registered(void)
{
    const uint8_t cdb[10] = {0x5f, PR_REGISTER_IGNORE, [8] = 24};
    uint8_t list[24] = {0};
    struct ini i;
    struct ini_result res;
    tgtfix_login(&fix, &i, INISESS_NAME ":holder");
    gr_put_be64(list + 8, 0xa1);
    assert_int_equal(ini_cmd(&i, cdb, 10, list, 24, NULL, 0, &res), 0);
    assert_int_equal(res.status, 0);
    ini_close(&i);
}

static void two_open_it(void **state)
{
    struct login first, second;
    uint8_t in[512];
    const uint8_t read10[10] = {0x28, [8] = 1};
    struct ini_result res;
    registered();
    next_process();
    store(-(int)STORE_MS);
    begin(&first, INISESS_NAME ":first");
    until(storing);
    begin(&second, INISESS_NAME ":second");
    assert_int_not_equal(status(&first), 0);
    assert_int_not_equal(status(&second), 0); /* nothing is served of a disk that cannot be opened */
    ini_close(&first.i);
    ini_close(&second.i);
    store(STORE_MS);
    begin(&first, INISESS_NAME ":first");
    until(storing);
    begin(&second, INISESS_NAME ":second");
    assert_int_equal(status(&first), 0);
    assert_int_equal(status(&second), 0);
    inix_ready(&second.i);
    assert_int_equal(ini_cmd(&second.i, read10, 10, NULL, 0, in, sizeof in, &res), 0);
    assert_int_equal(res.status, 0);
    ini_close(&first.i);
    ini_close(&second.i);
    store(0);
}

static int set_here(struct tgtfix *f, void *arg)
{
    f->elsewhere.here = arg != NULL;
    return 0;
}

static unsigned log_in_elsewhere(struct ini *i, const char *initiator)
{
    assert_int_equal(ini_connect(i, "127.0.0.1", fix.port3), 0);
    assert_int_equal(ini_login(i, initiator, TGTFIX_ELSEWHERE, NULL, 0), 0);
    return i->login_status;
}

/* A unit in standby becomes ours, and cannot be opened: it stays in standby, and a VM logs in there. */
static void stays_in_standby(void **state)
{
    const uint8_t rtpg[12] = {0xa3, 0x0a, [9] = 255};
    uint8_t in[255];
    struct ini i, vm;
    struct ini_result res;
    registered();
    next_process();
    assert_int_equal(log_in_elsewhere(&i, INISESS_NAME ":a"), 0);
    store(-1);
    tgtfix_call(&fix, set_here, &fix);
    assert_int_equal(ini_cmd(&i, rtpg, 12, NULL, 0, in, sizeof in, &res), 0);
    assert_int_equal(res.status, 0);
    assert_int_equal(in[4] & 15, 2);
    tgtfix_call(&fix, set_here, NULL);
    assert_int_equal(log_in_elsewhere(&vm, VM "1:1"), 0);
    ini_close(&vm);
    ini_close(&i);
    store(0);
}

/* It is still being tried when a VM, which named it before, is about to be let in: which start of it is the latest is stored where it stays. */
static void let_in_while_opened(void **state)
{
    static const char keys[] = "InitiatorName=" VM "1:2\0TargetName=" TGTFIX_ELSEWHERE "\0SessionType=Normal\0AuthMethod=None";
    const uint8_t rtpg[12] = {0xa3, 0x0a, [9] = 255};
    uint8_t b[TGT_BHS_LEN];
    struct ini i, vm;
    registered();
    next_process();
    assert_int_equal(log_in_elsewhere(&i, INISESS_NAME ":a"), 0);
    assert_int_equal(ini_connect(&vm, "127.0.0.1", fix.port3), 0);
    assert_true(ini_login_request(&vm, 0, 1, 0, keys, sizeof keys) >= 0);
    assert_int_equal(vm.login_status, 0);
    store(-(int)STORE_MS);
    tgtfix_call(&fix, set_here, &fix);
    ini_cmd_bhs(&i, b, rtpg, 12, TGT_FINAL | TGT_CMD_READ, 255);
    assert_int_equal(ini_send(&i, b, NULL, 0), 0);
    until(storing);
    assert_true(ini_login_request(&vm, 0, 3, 1, NULL, 0) >= 0);
    assert_int_equal(vm.login_status, 0);
    ini_close(&vm);
    ini_close(&i);
    store(0);
}

static int set_look_ms(struct tgtfix *f, void *arg)
{
    f->elsewhere.look_ms = arg ? STORE_MS * 3 / 4 : 0;
    return 0;
}

/* Two log in while it changes hands: one is told that it is elsewhere, the other that it is here, where it cannot be opened. */
static void told_two_things(void **state)
{
    const uint8_t read10[10] = {0x28, [8] = 1};
    struct login there, here;
    uint8_t in[512];
    struct ini_result res;
    registered();
    next_process();
    tgtfix_call(&fix, set_look_ms, &fix);
    begin_at(&there, INISESS_NAME ":there", TGTFIX_ELSEWHERE, fix.port3);
    until(looked);
    store(-(int)STORE_MS);
    tgtfix_call(&fix, set_look_ms, NULL);
    tgtfix_call(&fix, set_here, &fix);
    begin_at(&here, INISESS_NAME ":here", TGTFIX_ELSEWHERE, fix.port3);
    assert_int_not_equal(status(&here), 0);
    tgtfix_call(&fix, set_here, NULL);
    assert_int_equal(status(&there), 0);
    assert_int_equal(ini_cmd(&there.i, read10, 10, NULL, 0, in, sizeof in, &res), 0);
    assert_int_equal(res.status, 2);
    ini_close(&there.i);
    ini_close(&here.i);
    store(0);
}

TGTFIX_MAIN(NULL, NULL, TGTFIX_CASE(older_start_comes_second), TGTFIX_CASE(starts_of_two_vms), TGTFIX_CASE(release_ends), TGTFIX_CASE(half_way), TGTFIX_CASE(two_open_it),
            TGTFIX_CASE(stays_in_standby), TGTFIX_CASE(let_in_while_opened), TGTFIX_CASE(told_two_things))
