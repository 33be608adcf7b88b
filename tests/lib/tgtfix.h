/* A target served from a thread of its own, for tests that talk to it over loopback. The test program's main() must call
 * tgt_login_main() first. With GRANARY_LOOPS=N in the environment, N loops share the sessions. */
#ifndef TEST_TGTFIX_H
#define TEST_TGTFIX_H
#include "iscsi-target/target.h"
#include "tests/lib/ini.h"
#include "tests/lib/test.h"

#define TGTFIX_TARGET "iqn.2026-11.local.granary:t:disk"
#define TGTFIX_ELSEWHERE "iqn.2026-11.local.granary:t:elsewhere"
#define TGTFIX_SLOW "iqn.2026-11.local.granary:t:slow" /* the same bytes, writes take TGTFIX_SLOW_MS */
#define TGTFIX_SLOW_MS 400u
#define TGTFIX_SIZE (64u << 20)
struct tgtfix {
    char port[8], port2[8], port3[8]; /* IPv4, IPv6, one that never redirects */
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *fault;      /* over the memory: rules may be added through tgtfix_call() */
    struct tgt_server *server;
    char *access_path;
    unsigned max_half_open, per_address, login_timeout_ms;
    bool store;                 /* "t/disk" and "t/slow" keep what targets keep through power loss (in memory) */
    unsigned store_ms;          /* so long it takes; may be changed at any time */
    bool store_fails;           /* it then fails. The same */
    bool store_held;            /* and lasts until this has gone */
    unsigned storing;           /* writes to it under way, seen through tgtfix_call() */
    unsigned limit_iops;        /* of disks with a store, for whom they tell their geometry anew (GR_EVENT_PRESENTED) */
    bool slow_reads;            /* those of "t/slow" take as long as its writes */
    const char *host, *boot;    /* which machine it is, and which start of it; NULL: none, and the real one */
    const char *redirect;       /* "t/elsewhere" is owned there, by group 3; this host is group 7 */
    struct { /* changed through tgtfix_call() */
        bool here, gone;        /* it is owned here now (the bytes of "t/disk"); it was deleted */
        bool mute;              /* its owner does not answer; else it is this server, and the disk is "t/disk" */
        unsigned lost;          /* so many of its answers are, from now on */
        bool dies;              /* with the first of them it is gone: "here" */
        unsigned lookups;
        uint64_t size;          /* 0: as "t/disk" */
        unsigned look_ms;       /* so long it takes to hear that it is elsewhere, of whoever was asked before that changed */
    } elsewhere;
    unsigned sessions;
    void *priv;
};
/* Zero the fixture, set what is wanted, start. "t/disk" is served at TGTFIX_TARGET. */
void tgtfix_start(struct tgtfix *f);
/* A case with a target of its own: the program has a static fixture `fix`, initialised with what is wanted. After the case it serves. */
#define TGTFIX_CASE(f) {#f, f, tgtfix_setup, tgtfix_teardown, &fix}
int tgtfix_setup(void **state);
int tgtfix_teardown(void **state);
/* The program's main(); functions for the group, or NULL, and its cases. TEST_FILTER in the environment chooses among them. */
#define TGTFIX_MAIN(setup_, teardown_, ...)                                                                     \
    int main(int argc, char **argv)                                                                             \
    {                                                                                                           \
        const struct CMUnitTest test_list[] = {__VA_ARGS__};                                                    \
        int r = tgtfix_main(argc, argv);                                                                        \
        return r >= 0 ? r : cmocka_run_group_tests(test_list, setup_, teardown_);                               \
    }
int tgtfix_main(int argc, char **argv);
void tgtfix_stop(struct tgtfix *f);
/* One more server of the same disks, without portals; on the loop. */
int tgtfix_server(struct tgtfix *f, struct tgt_server **ret, struct gr_err *err);
/* Run fn(arg) as a fiber on the target's loop and wait for its result. */
int tgtfix_call(struct tgtfix *f, int (*fn)(struct tgtfix *f, void *arg), void *arg);
/* A session that is logged in; fails the test otherwise. */
void tgtfix_login(struct tgtfix *f, struct ini *i, const char *initiator);
/* The target still serves: a fresh session writes and reads back. */
void tgtfix_alive(struct tgtfix *f);
/* Wait until the number of sessions is @n; fails the test after five seconds. */
void tgtfix_wait_sessions(struct tgtfix *f, unsigned n);
#endif
