/* {"version":1, "rest-ns":when coming to rest began (CLOCK_MONOTONIC),
 *  "portals":[{"fd","flags","name"?}],
 *  "units":[{"disk","standby","reservations"?:{as stored, "aptpl"},"write-protected","descriptor-sense","ejected"}],
 *  "sessions":[{"disk","initiator","address","isid","tsih","age-ms","cmdsn","attentions":[…],"prevents","reserves","params":[…],
 *               "connections":[{"fd","cid","address","statsn","acked","header-digest","data-digest","segment","pings","unread"?:base64}]}]}
 * params: the fields of struct tgt_params in their order; later versions append. Statistics begin anew, as after a start. */
#include "iscsi-target/handover.h"
#include "common/packet.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/scsi.h"
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define VERSION 1
#define SETTLE_NS 1000000000ull
#define TAKE_OVER_MS 60000 /* what the one before us gets to bring its sessions to rest */
#define HERITAGE_MAX (1ll << 30)
#define N_PARAMS (sizeof(struct tgt_params) / sizeof(uint32_t))
_Static_assert(N_PARAMS == 15, "a new parameter goes to the end, and is absent in what older programs say");

void tgt_heritage_free(struct tgt_heritage *h)
{
    for (unsigned i = 0; i < h->n_fds; i++)
        if (h->fds[i] >= 0)
            close(h->fds[i]);
    free(h->fds);
    json_decref(h->doc);
    *h = (struct tgt_heritage){0};
}

/* ---- describing ---- */

static int keep_fd(struct tgt_heritage *h, int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -errno;
    if (h->n_fds == TGT_HERITAGE_FDS) {
        close(copy);
        return -EMFILE;
    }
    h->fds[h->n_fds] = copy;
    return (int)h->n_fds++;
}

static void hex(const uint8_t *p, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++)
        snprintf(ret + 2 * i, 3, "%02x", p[i]);
}

static json_t *describe_conn(struct tgt_heritage *h, struct tgt_conn *c)
{
    int fd = tgt_conn_unread(c) < 0 ? -ENOMEM : keep_fd(h, c->fd);
    if (fd < 0)
        return NULL;
    json_t *o = json_pack("{s:i,s:i,s:s,s:I,s:I,s:i,s:i,s:I,s:i}", "fd", fd, "cid", (int)c->cid, "address", c->address, "statsn",
                          (json_int_t)c->statsn, "acked", (json_int_t)c->acked,
                          "header-digest", (int)c->params.header_digest, "data-digest", (int)c->params.data_digest, "segment",
                          (json_int_t)c->params.max_send_dsl, "pings", (int)c->nop_outstanding);
    gr_auto_free char *unread = c->replay.len ? gr_b64_encode(c->replay.data, c->replay.len) : NULL;
    if (o && unread)
        json_object_set_new(o, "unread", json_string(unread));
    return o;
}

static json_t *describe_params(const struct tgt_params *p)
{
    uint32_t values[N_PARAMS];
    json_t *a = json_array();
    memcpy(values, p, sizeof values);
    for (size_t i = 0; i < N_PARAMS; i++)
        json_array_append_new(a, json_integer(values[i]));
    return a;
}

static json_t *describe_sess(struct tgt_heritage *h, struct tgt_sess *o)
{
    char isid[2 * TGT_ISID_LEN + 1];
    hex(o->isid, TGT_ISID_LEN, isid);
    json_t *conns = json_array(), *attentions = json_array();
    for (struct tgt_conn *c = o->conns; c; c = c->next)
        if (json_array_append_new(conns, describe_conn(h, c)) < 0)
            json_array_append_new(conns, json_null()); /* that one is lost */
    for (unsigned i = 0; i < o->n_ua; i++)
        json_array_append_new(attentions, json_integer(o->ua[i]));
    return json_pack("{s:s,s:s,s:s,s:s,s:i,s:I,s:I,s:b,s:b,s:o,s:o,s:o}", "disk", o->lu->disk, "initiator", o->initiator, "address", o->address, "isid",
                     isid, "tsih", (int)o->tsih, "age-ms", (json_int_t)((gr_loop_now_ns(o->server->loop) - o->started_ns) / 1000000), "cmdsn",
                     (json_int_t)o->expcmdsn, "prevents", o->prevents, "reserves", o->lu->reserved == o, "attentions", attentions, "params",
                     describe_params(&o->params), "connections", conns);
}

static json_t *describe_unit(const struct tgt_lu *lu)
{
    return json_pack("{s:s,s:b,s:o*,s:b,s:b,s:b}", "disk", lu->disk, "standby", lu->standby, "reservations", tgt_pr_describe(lu), "write-protected",
                     lu->swp, "descriptor-sense", lu->d_sense, "ejected", lu->ejected);
}

static json_t *describe(struct tgt_server *s, struct tgt_heritage *h)
{
    json_t *portals = json_array(), *units = json_array(), *sessions = json_array();
    for (unsigned i = 0; i < s->n_portals; i++) {
        int fd = keep_fd(h, s->portals[i].fd);
        if (fd >= 0)
            json_array_append_new(portals, json_pack("{s:i,s:i,s:s}", "fd", fd, "flags", (int)s->portals[i].flags, "name", s->portals[i].name));
    }
    for (const struct tgt_lu *lu = s->lus; lu; lu = lu->next)
        if (lu->n_sessions)
            json_array_append_new(units, describe_unit(lu));
    for (struct tgt_sess *o = s->sessions; o; o = o->next)
        json_array_append_new(sessions, describe_sess(h, o));
    return json_pack("{s:i,s:I,s:o,s:o,s:o}", "version", VERSION, "rest-ns", (json_int_t)s->rest_ns, "portals", portals, "units", units, "sessions", sessions);
}

int tgt_server_bequeath(struct tgt_server *s, struct tgt_heritage *ret, struct gr_err *err)
{
    struct tgt_heritage h = {.fds = calloc(TGT_HERITAGE_FDS, sizeof(int))};
    uint64_t deadline = gr_loop_now_ns(s->loop) + SETTLE_NS;
    tgt_login_stop(s);
    while (tgt_server_restless(s) && gr_loop_now_ns(s->loop) < deadline) /* the thread of another loop may be receiving: see that it has */
        gr_fiber_sleep_ms(1);
    h.doc = h.fds ? describe(s, &h) : NULL;
    if (!h.doc) {
        tgt_heritage_free(&h);
        return gr_fail(err, -ENOMEM, "out of memory for what sessions there are");
    }
    while (s->sessions) /* the copies keep the connections */
        tgt_sess_close(s->sessions, "handed over");
    *ret = h;
    return 0;
}

/* ---- going on ---- */

static int take_fd(struct tgt_heritage *h, json_t *o)
{
    json_int_t i = json_is_integer(json_object_get(o, "fd")) ? json_integer_value(json_object_get(o, "fd")) : -1;
    if (i < 0 || i >= (json_int_t)h->n_fds)
        return -1;
    return gr_take_fd(&h->fds[i]);
}

int tgt_server_inherit_portals(struct tgt_server *s, struct tgt_heritage *h, struct gr_err *err)
{
    json_t *portals = json_object_get(h->doc, "portals"), *o;
    size_t i;
    if (json_integer_value(json_object_get(h->doc, "version")) != VERSION || !json_array_size(portals))
        return gr_fail(err, -GR_EFORMAT, "what the other process hands over is not understood");
    json_array_foreach(portals, i, o)
    {
        int fd = take_fd(h, o);
        int r = fd < 0 ? -EBADF : tgt_server_adopt(s, fd, (unsigned)json_integer_value(json_object_get(o, "flags")),
                                                      json_string_value(json_object_get(o, "name")), err);
        if (r < 0)
            return gr_fail(err, r, "a portal that was handed over cannot be used: %s", gr_code_text(r));
    }
    return 0;
}

static bool bytes(const char *text, uint8_t *ret, size_t n)
{
    for (size_t i = 0; text && i < n; i++) {
        char two[3] = {text[2 * i], text[2 * i] ? text[2 * i + 1] : 0, 0};
        if (strspn(two, "0123456789abcdef") != 2)
            return false;
        ret[i] = (uint8_t)strtoul(two, NULL, 16);
    }
    return text && !text[2 * n];
}

static bool params(json_t *a, struct tgt_params *ret)
{
    uint32_t values[N_PARAMS];
    json_t *v;
    size_t i;
    tgt_params_default(ret);
    memcpy(values, ret, sizeof values);
    json_array_foreach(a, i, v)
        if (i < N_PARAMS)
            values[i] = (uint32_t)json_integer_value(v);
    memcpy(ret, values, sizeof values);
    return tgt_params_ok(ret);
}

static int conn(struct tgt_sess *sess, struct tgt_sess_start *start, json_t *o, int fd)
{
    struct tgt_conn *c = NULL;
    const char *address = json_string_value(json_object_get(o, "address")), *unread = json_string_value(json_object_get(o, "unread"));
    start->fd = fd;
    start->address = address ? address : "?";
    start->cid = (uint16_t)json_integer_value(json_object_get(o, "cid"));
    start->statsn = (uint32_t)json_integer_value(json_object_get(o, "statsn"));
    json_t *acked = json_object_get(o, "acked"); /* older programs do not say */
    start->acked = acked ? (uint32_t)json_integer_value(acked) : start->statsn;
    start->params.header_digest = json_integer_value(json_object_get(o, "header-digest")) != 0;
    start->params.data_digest = json_integer_value(json_object_get(o, "data-digest")) != 0;
    start->params.max_send_dsl = (uint32_t)json_integer_value(json_object_get(o, "segment"));
    if (!tgt_params_ok(&start->params))
        return -GR_EFORMAT;
    int r = tgt_conn_new(sess, start, &c);
    if (r < 0)
        return r;
    c->nop_outstanding = (unsigned)json_integer_value(json_object_get(o, "pings"));
    if (unread && gr_b64_decode(unread, strlen(unread), &c->replay) < 0)
        tgt_conn_lost(c, "what was not read yet cannot be read");
    return 0;
}

static void conns(struct tgt_heritage *h, struct tgt_sess *sess, struct tgt_sess_start *start, json_t *list)
{
    json_t *o;
    size_t i;
    sess->holds++; /* whatever happens to its connections */
    json_array_foreach(list, i, o)
    {
        int fd = take_fd(h, o);
        if (fd >= 0 && conn(sess, start, o, fd) < 0)
            close(fd);
    }
    if (!sess->conns && !sess->ended)
        tgt_sess_close(sess, "none of its connections could be taken over");
    struct tgt_conn *next;
    for (struct tgt_conn *c = sess->conns; c; c = next) { /* what came meanwhile */
        next = c->next;
        tgt_rx_ready(c);
    }
    tgt_sess_unhold(sess);
}

static bool session(struct tgt_server *s, struct tgt_heritage *h, json_t *o)
{
    struct gr_err err = {0};
    struct tgt_lu *lu = NULL;
    char redirect[300];
    const char *disk = json_string_value(json_object_get(o, "disk")), *initiator = json_string_value(json_object_get(o, "initiator"));
    const char *address = json_string_value(json_object_get(o, "address"));
    struct tgt_sess_start start = {.initiator = initiator, .address = address, .tsih = (uint16_t)json_integer_value(json_object_get(o, "tsih")),
                                   .cmdsn = (uint32_t)json_integer_value(json_object_get(o, "cmdsn"))};
    if (!disk || !initiator || !address || !bytes(json_string_value(json_object_get(o, "isid")), start.isid, TGT_ISID_LEN) ||
        !params(json_object_get(o, "params"), &start.params))
        return false;
    int r = tgt_lu_acquire(s, disk, initiator, true, &lu, redirect, &err);
    start.lu = lu;
    struct tgt_sess *sess = r < 0 ? NULL : tgt_sess_make(s, &start);
    if (!sess) {
        tgt_note(s, 4, "session of %s (%s) on '%s' is not taken over: %s", initiator, address, disk, r < 0 ? gr_err_text(&err, r) : "out of memory");
        if (lu)
            tgt_lu_user_put(lu);
        return false;
    }
    s->next_tsih = GR_MAX(s->next_tsih, sess->tsih);
    sess->started_ns -= (uint64_t)json_integer_value(json_object_get(o, "age-ms")) * 1000000;
    sess->prevents = json_is_true(json_object_get(o, "prevents"));
    if (json_is_true(json_object_get(o, "reserves")))
        lu->reserved = sess;
    json_t *list = json_object_get(o, "attentions"), *v;
    size_t i;
    json_array_foreach(list, i, v)
        tgt_sess_ua(sess, (uint16_t)json_integer_value(v));
    conns(h, sess, &start, json_object_get(o, "connections"));
    return true;
}

/* What a unit knew beside the disk's store. Sessions hold it open by now, but nothing of them was read yet. */
static void unit(struct tgt_server *s, json_t *o)
{
    const char *disk = json_string_value(json_object_get(o, "disk"));
    json_t *pr = json_object_get(o, "reservations");
    struct tgt_lu *lu = NULL;
    char redirect[300];
    if (!disk || tgt_lu_acquire(s, disk, "", true, &lu, redirect, NULL) < 0)
        return;
    if (pr && tgt_pr_adopt(lu, pr) < 0)
        tgt_note(s, 3, "disk '%s': its reservations cannot be taken over", disk);
    lu->swp = json_is_true(json_object_get(o, "write-protected"));
    lu->d_sense = json_is_true(json_object_get(o, "descriptor-sense"));
    lu->ejected = json_is_true(json_object_get(o, "ejected"));
}

int tgt_server_inherit_sessions(struct tgt_server *s, struct tgt_heritage *h)
{
    json_t *units = json_object_get(h->doc, "units"), *sessions = json_object_get(h->doc, "sessions"), *o;
    int lost = 0;
    size_t i;
    json_array_foreach(units, i, o)
        unit(s, o);
    json_array_foreach(sessions, i, o)
        lost += !session(s, h, o);
    json_array_foreach(units, i, o) /* held open until its sessions hold it */
    {
        const char *disk = json_string_value(json_object_get(o, "disk"));
        struct tgt_lu *lu = disk ? tgt_lu_find(s, disk) : NULL;
        if (lu && lu->users)
            tgt_lu_user_put(lu);
    }
    uint64_t silent = gr_loop_now_ns(s->loop) - (uint64_t)json_integer_value(json_object_get(h->doc, "rest-ns"));
    tgt_note(s, 5, "%u sessions taken over, %d lost; they were silent for %llu ms", s->n_sessions, lost, (unsigned long long)silent / 1000000);
    return lost;
}

int tgt_heritage_add(struct tgt_heritage *h, const char *key, int fd)
{
    json_t *list = json_object_get(h->doc, key);
    if (!list && json_object_set_new(h->doc, key, list = json_array()) < 0)
        return -ENOMEM;
    int i = keep_fd(h, fd);
    return i < 0 ? i : json_array_append_new(list, json_pack("{s:i}", "fd", i)) < 0 ? -ENOMEM : 0;
}

int tgt_heritage_take(struct tgt_heritage *h, const char *key, size_t i)
{
    return take_fd(h, json_array_get(json_object_get(h->doc, key), i));
}

/* ---- sending ---- */

struct packet {
    uint32_t n_fds, index; /* index of the descriptor that goes along; the first packet brings the text in a file */
};

static int wait_for(struct gr_loop *loop, int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    for (int ms = 0; ms < 30000; ms++) {
        int r = poll(&p, 1, 0);
        if (r)
            return r < 0 ? -errno : 0;
        gr_fiber_sleep_ms(1);
    }
    (void)loop;
    return -ETIMEDOUT;
}

static int send_packet(struct gr_loop *loop, int sock, struct packet p, int fd)
{
    int r = wait_for(loop, sock, POLLOUT);
    return r < 0 ? r : gr_packet_send(sock, &p, sizeof p, fd, MSG_DONTWAIT);
}

static int recv_packet(struct gr_loop *loop, int sock, struct packet *p, int *ret_fd)
{
    int r = wait_for(loop, sock, POLLIN);
    if (r < 0)
        return r;
    size_t n = 0;
    gr_auto_close int fd = -1;
    r = gr_packet_recv(sock, p, sizeof *p, &n, &fd);
    if (r <= 0 || n != sizeof *p || fd < 0)
        return r < 0 ? r : -EPIPE;
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int tgt_heritage_send(struct gr_loop *loop, int sock, const struct tgt_heritage *h, struct gr_err *err)
{
    gr_auto_free char *text = json_dumps(h->doc, JSON_COMPACT);
    gr_auto_close int file = memfd_create("granary-heritage", MFD_CLOEXEC);
    size_t len = text ? strlen(text) : 0;
    int r = !text || file < 0 || write(file, text, len) != (ssize_t)len ? -ENOMEM : send_packet(loop, sock, (struct packet){h->n_fds, 0}, file);
    for (unsigned i = 0; !r && i < h->n_fds; i++)
        r = send_packet(loop, sock, (struct packet){h->n_fds, i}, h->fds[i]);
    return r < 0 ? gr_fail(err, r, "sessions cannot be handed over: %s", gr_code_text(r)) : 0;
}

static int read_doc(int file, json_t **ret)
{
    json_error_t je;
    struct stat st;
    if (fstat(file, &st) < 0 || st.st_size <= 0 || st.st_size > HERITAGE_MAX)
        return -GR_EFORMAT;
    void *text = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, file, 0); /* json_loadfd() would read it byte by byte */
    if (text == MAP_FAILED)
        return -errno;
    *ret = json_loadb(text, (size_t)st.st_size, 0, &je);
    munmap(text, (size_t)st.st_size);
    return *ret ? 0 : -GR_EFORMAT;
}

int tgt_heritage_recv(struct gr_loop *loop, int sock, struct tgt_heritage *ret, struct gr_err *err)
{
    struct tgt_heritage h = {.fds = calloc(TGT_HERITAGE_FDS, sizeof(int))};
    gr_auto_close int file = -1;
    struct packet p = {0};
    int r = h.fds ? recv_packet(loop, sock, &p, &file) : -ENOMEM;
    if (!r)
        r = p.n_fds > TGT_HERITAGE_FDS ? -GR_EFORMAT : read_doc(file, &h.doc);
    for (unsigned want = p.n_fds; !r && h.n_fds < want;) {
        r = recv_packet(loop, sock, &p, &h.fds[h.n_fds]);
        h.n_fds += !r;
    }
    if (r < 0) {
        tgt_heritage_free(&h);
        return gr_fail(err, r, "sessions cannot be taken over: %s", r == -EPIPE ? "the other process ended" : gr_code_text(r));
    }
    *ret = h;
    return 0;
}

int tgt_heritage_ask(struct gr_loop *loop, const struct gr_home *home, struct tgt_heritage *ret, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(home, "run/hand-over.sock"), *socket = gr_home_path(home, "run/storaged.sock");
    gr_auto_close int listener = -1, from = -1;
    struct gr_rpc_client *before = NULL;
    int r = path && socket ? gr_unix_listen(path, 0600, &listener, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = gr_rpc_connect(loop, socket, &before, err);
    if (r == 0)
        r = gr_rpc_call(before, "daemon.hand-over", json_pack("{s:s}", "socket", path), NULL, NULL, TAKE_OVER_MS, NULL, err);
    gr_rpc_client_free(before);
    if (r == 0) {
        from = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        r = from < 0 ? gr_fail(err, -errno, "%s: nobody came", path) : tgt_heritage_recv(loop, from, ret, err);
    }
    if (path)
        unlink(path);
    return r;
}
