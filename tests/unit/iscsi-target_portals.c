/* Portals are opened and closed while initiators work: nothing of theirs is lost, nobody new comes in by a closed one, also when the login
 * process is lost meanwhile or said something of a portal that is not there any more. */
#include "iscsi-target/login_parent.h"
#include "tests/lib/inisess.h"
#include "tests/lib/test.h"
#include "tests/lib/witness.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct tgtfix fix;

struct change {
    const char *portal;
    unsigned flags, sessions;
    uint16_t port;
    struct gr_err err;
};

static int listen_on_loop(struct tgtfix *f, void *arg)
{
    struct change *c = arg;
    return tgt_server_listen(f->server, c->portal, c->flags, &c->port, &c->err);
}

static int unlisten_on_loop(struct tgtfix *f, void *arg)
{
    struct change *c = arg;
    return tgt_server_unlisten(f->server, c->portal, &c->sessions, &c->err);
}

/* A new portal; "address:port" and its port. */
static void add(unsigned flags, char ret_portal[32], char ret_port[8])
{
    struct change c = {.portal = "127.0.0.1:0", .flags = flags};
    assert_int_equal(tgtfix_call(&fix, listen_on_loop, &c), 0);
    snprintf(ret_portal, 32, "127.0.0.1:%u", c.port);
    snprintf(ret_port, 8, "%u", c.port);
}

static unsigned removed(const char *portal)
{
    struct change c = {.portal = portal};
    assert_int_equal(tgtfix_call(&fix, unlisten_on_loop, &c), 0);
    return c.sessions;
}

/* Refused with @code, in a sentence that says @text. */
static void refused(int (*fn)(struct tgtfix *, void *), const char *portal, int code, const char *text)
{
    struct change c = {.portal = portal};
    assert_int_equal(tgtfix_call(&fix, fn, &c), code);
    if (!strstr(c.err.text, text))
        fail_msg("'%s' does not say '%s'", c.err.text, text);
}

static void log_in_at(struct ini *i, const char *port, const char *name)
{
    assert_int_equal(ini_connect(i, "127.0.0.1", port), 0);
    assert_int_equal(ini_login(i, name, TGTFIX_TARGET, NULL, 0), 0);
    assert_int_equal(i->login_status, 0);
    inix_ready(i);
}

/* The TargetAddress that a session is told. */
static void told(struct ini *i, char ret[64])
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_TEXT, TGT_FINAL, 900, 0);
    b[0] |= TGT_IMMEDIATE;
    gr_put_be32(b + 20, TGT_TAG_NONE);
    assert_int_equal(ini_send(i, b, "SendTargets=", 13), 0);
    memset(inix_seg, 0, 512);
    assert_true(inix_expect(i, b, TGT_OP_TEXT_RSP) > 0);
    const char *name = (char *)inix_seg, *at = name + strlen(name) + 1;
    assert_int_equal(strncmp(at, "TargetAddress=", 14), 0);
    snprintf(ret, 64, "%.*s", (int)strcspn(at + 14, ","), at + 14);
}

static bool ended(struct ini *i)
{
    uint8_t byte;
    return recv(i->fd, &byte, 1, 0) <= 0;
}

static void added_and_removed(void **state)
{
    static const char half[] = "InitiatorName=" INISESS_NAME ":c\0SessionType=Discovery";
    char b[32], port[8], own[64], at[64];
    struct ini a, over_b, idle, discovery, late;
    struct witness *w = witness_start(&fix);
    log_in_at(&a, fix.port, INISESS_NAME ":a");
    add(0, b, port);
    log_in_at(&over_b, port, INISESS_NAME ":b");
    told(&over_b, at);
    assert_string_equal(at, b);
    assert_int_equal(ini_connect(&idle, "127.0.0.1", port), 0);
    assert_int_equal(ini_connect(&discovery, "127.0.0.1", port), 0);
    assert_true(ini_login_request(&discovery, 1, 3, 1, half, sizeof half) >= 0);
    assert_int_equal(discovery.login_status, 0);
    assert_int_equal(removed(b), 1);
    assert_true(ini_connect(&late, "127.0.0.1", port) < 0);
    assert_true(ended(&idle));
    assert_true(ended(&discovery));
    inix_ready(&over_b);
    told(&a, own);
    told(&over_b, at); /* where it came in nobody listens */
    assert_string_equal(at, own);
    add(0, b, port); /* another is none of those before */
    log_in_at(&late, port, INISESS_NAME ":d");
    inix_ready(&over_b);
    assert_int_equal(removed(b), 1);
    witness_stop(w);
    ini_close(&a);
    ini_close(&over_b);
    ini_close(&idle);
    ini_close(&discovery);
    ini_close(&late);
    tgtfix_wait_sessions(&fix, 0);
}

static void refusals(void **state)
{
    char first[32], second[32];
    snprintf(first, sizeof first, "127.0.0.1:%s", fix.port);
    snprintf(second, sizeof second, "[::1]:%s", fix.port2);
    refused(listen_on_loop, first, -EEXIST, first);
    refused(listen_on_loop, "127.0.0.1:70000", -EINVAL, "not a port");
    refused(listen_on_loop, "[::1", -EINVAL, "is not HOST:PORT");
    refused(listen_on_loop, "0.0.0.0:0", -GR_EAUTH, "--insecure");
    refused(listen_on_loop, "203.0.113.9:3260", -EADDRNOTAVAIL, "cannot listen");
    refused(unlisten_on_loop, "127.0.0.1:1", -ENOENT, "not open");
    refused(unlisten_on_loop, "127.0.0.1:x", -EINVAL, "not a port");
    assert_int_equal(removed(second), 0);
    refused(unlisten_on_loop, first, -EBUSY, first); /* the third never redirects */
}

static int fill_up(struct tgtfix *f, void *arg)
{
    int n = 0;
    while (tgt_server_listen(f->server, "127.0.0.1:0", 0, NULL, arg) == 0)
        n++;
    return n;
}

/* There are as many as there can be, and room again when some have gone, more often than there are places. */
static void all_places(void **state)
{
    struct gr_err err = {0};
    struct ini i;
    char b[32], port[8];
    assert_int_equal(tgtfix_call(&fix, fill_up, &err), TGT_PORTALS - 3);
    assert_non_null(strstr(err.text, "no more are allowed"));
    snprintf(b, sizeof b, "127.0.0.1:%s", fix.port3);
    for (unsigned k = 0; k < 3 * TGT_PORTALS; k++) {
        removed(b);
        add(0, b, port);
        log_in_at(&i, port, INISESS_NAME);
        ini_close(&i);
    }
}

static int kill_login_process(struct tgtfix *f, void *arg)
{
    return kill(f->server->login->process.pid, SIGKILL);
}

static void login_process_lost(void **state)
{
    char b[32], port_b[8], c[32], port_c[8];
    struct ini i;
    add(0, b, port_b);
    add(0, c, port_c);
    removed(b);
    assert_int_equal(tgtfix_call(&fix, kill_login_process, NULL), 0);
    log_in_at(&i, port_c, INISESS_NAME); /* it waits in the socket until the next one is there */
    ini_close(&i);
    assert_true(ini_connect(&i, "127.0.0.1", port_b) < 0);
}

/* As if the login process asked for a login through that portal. Does it live on? */
static int ask(struct tgtfix *f, void *arg)
{
    const uint32_t *portal = arg;
    struct tgt_login_parent *p = f->server->login;
    struct tgt_msg m = {.slot = TGT_SLOTS_MAX - 1, .gen = 1};
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    m.u.ask.portal = *portal;
    assert_int_equal(tgt_msg_send(pair[1], &m, TGT_MSG_ASK, -1, 0), 0);
    int real = p->process.sock;
    p->process.sock = pair[0];
    p->process.watch.fn(p->process.watch.arg, 0);
    bool kept = p->process.sock == pair[0], used = p->slots[TGT_SLOTS_MAX - 1].used;
    if (kept) {
        p->process.sock = real;
        close(pair[0]);
    } else {
        close(real);
    }
    close(pair[1]);
    return kept && !used;
}

/* What it says of a portal that was closed before it heard of that is no offence, and no login. */
static void late_question(void **state)
{
    char b[32], port[8];
    add(TGT_PORTAL_INSECURE, b, port);
    uint32_t late = 3, never = 5; /* the fixture has three */
    removed(b);
    add(TGT_PORTAL_INSECURE, b, port); /* it is not taken for that one */
    assert_true(tgtfix_call(&fix, ask, &late));
    assert_false(tgtfix_call(&fix, ask, &never));
}

TGTFIX_MAIN(NULL, NULL,
    TGTFIX_CASE(added_and_removed), TGTFIX_CASE(refusals), TGTFIX_CASE(all_places), TGTFIX_CASE(login_process_lost),
    TGTFIX_CASE(late_question))
