/* Answers that are ready are sent before more commands are read: the initiator waits for them, and the commands may take long. */
#include "common/cleanup.h"
#include "iscsi-target/target_int.h"
#include "tests/lib/inisess.h"
#include <poll.h>
#include <semaphore.h>
#include <sys/ioctl.h>

static struct tgtfix fix;
struct two {
    struct ini *ini;
    struct tgt_conn *conn;
    sem_t over;
    int failed;
    int before, between, after; /* bytes that have come: when one is read, a second one was sent, that one is read, too */
};

static int ping(struct ini *i)
{
    uint8_t b[TGT_BHS_LEN] = {TGT_OP_NOP_OUT | 0x40, TGT_FINAL};
    gr_put_be32(b + 16, i->itt++);
    gr_put_be32(b + 20, TGT_TAG_NONE);
    gr_put_be32(b + 24, i->cmdsn);
    gr_put_be32(b + 28, i->expstatsn);
    return ini_send(i, b, NULL, 0);
}

static int there(const struct ini *i)
{
    int n = -1;
    return ioctl(i->fd, FIONREAD, &n) == 0 ? n : -1;
}

/* The loop does nothing else meanwhile: all that it had to do in this turn came at once. */
static void in_one_turn(void *arg)
{
    struct two *t = arg;
    t->failed = ping(t->ini);
    t->conn->watch.fn(t->conn->watch.arg, POLLIN);
    t->before = there(t->ini);
    t->failed |= ping(t->ini);
    t->between = there(t->ini);
    t->conn->watch.fn(t->conn->watch.arg, POLLIN);
    t->after = there(t->ini);
    sem_post(&t->over);
}

static int begin(struct tgtfix *f, void *arg)
{
    struct two *t = arg;
    t->conn = f->server->sessions->conns;
    return gr_loop_post(t->conn->sess->loop, in_one_turn, t); /* its own thread, where there are several */
}

static void answers_go_first(void **state)
{
    (void)state;
    struct ini i;
    struct two t = {.ini = &i};
    uint8_t b[TGT_BHS_LEN];
    inisess_lead(&fix, &i, TGTFIX_TARGET, NULL, 0);
    sem_init(&t.over, 0, 0);
    assert_int_equal(tgtfix_call(&fix, begin, &t), 0);
    sem_wait(&t.over);
    assert_int_equal(t.failed, 0);
    assert_int_equal(t.before, 0); /* read, not answered: more may come to be sent with it */
    assert_int_equal(t.between, 0);
    assert_int_equal(t.after, TGT_BHS_LEN); /* the first answer, before the second ping was looked at */
    for (int k = 0; k < 2; k++) {
        assert_true(ini_recv(&i, b, inix_seg, sizeof inix_seg) >= 0);
        assert_int_equal(b[0] & 0x3f, TGT_OP_NOP_IN);
    }
    sem_destroy(&t.over);
    ini_close(&i);
}

TGTFIX_MAIN(NULL, NULL, TGTFIX_CASE(answers_go_first))
