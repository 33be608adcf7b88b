/* The parent's side of the login process: starts it, answers its questions, takes over logged-in sockets. Everything it says
 * is checked: it talks to strangers. What decides (names, CHAP, addresses) is decided here, from our own knowledge. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/handover.h"
#include "iscsi-target/login_parent.h"
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOGINS_NS UINT64_C(2000000000) /* what logins under way get to end in before another process takes our place */

_Static_assert(sizeof(struct tgt_slot) + sizeof(struct tgt_job) <= TGT_LOGIN_PARENT_BYTES, "of a connection that is not logged in");

static void slot_clear(struct tgt_slot *sl)
{
    if (sl->lu)
        tgt_lu_user_put(sl->lu);
    gr_buf_done(&sl->listing);
    memset(sl, 0, sizeof *sl);
}

void tgt_login_answer(struct tgt_login_parent *p, uint32_t slot, uint32_t gen, enum tgt_msg_type type)
{
    p->out.slot = slot;
    p->out.gen = gen;
    if (p->process.sock >= 0)
        tgt_msg_send(p->process.sock, &p->out, type, -1, MSG_DONTWAIT); /* a full queue: that login times out */
}

/* ---- the process ---- */

static void config(struct tgt_login_parent *p)
{
    const struct tgt_server_opts *o = &p->s->opts;
    p->out.u.config.max_half_open = o->max_half_open ? GR_MIN(o->max_half_open, TGT_SLOTS_MAX) : TGT_SLOTS_MAX;
    p->out.u.config.per_address = o->max_half_open_per_address ? o->max_half_open_per_address : 64;
    p->out.u.config.timeout_ms = o->login_timeout_ms ? o->login_timeout_ms : 15000;
    tgt_login_answer(p, 0, 0, TGT_MSG_CONFIG);
}

int tgt_login_listen(struct tgt_server *s, const struct tgt_portal *portal)
{
    struct tgt_login_parent *p = s->login;
    p->out.u.listen.portal = portal->id;
    if (p->process.sock < 0 || s->deaf)
        return 0; /* it is told when it has started again, or may hear again */
    return tgt_msg_send(p->process.sock, &p->out, TGT_MSG_LISTEN, portal->fd, MSG_DONTWAIT);
}

void tgt_login_unlisten(struct tgt_server *s, uint32_t portal)
{
    struct tgt_login_parent *p = s->login;
    p->out.u.listen.portal = portal;
    if (p->process.sock >= 0 && tgt_msg_send(p->process.sock, &p->out, TGT_MSG_UNLISTEN, -1, MSG_DONTWAIT) < 0)
        gr_helper_lose(&p->process, "it cannot be told that a portal is closed");
}

static int begin(void *arg)
{
    struct tgt_login_parent *p = arg;
    config(p);
    for (unsigned i = 0; i < p->s->n_portals; i++)
        tgt_login_listen(p->s, &p->s->portals[i]);
    return 0;
}

static void ping(void *arg)
{
    tgt_login_answer(arg, 0, 0, TGT_MSG_PING);
}

/* All logins under way went with it. */
static void lost(void *arg)
{
    struct tgt_login_parent *p = arg;
    for (unsigned i = 0; i < TGT_SLOTS_MAX; i++)
        slot_clear(&p->slots[i]);
    p->quiet = true;
}

static void ended(void *arg)
{
    struct tgt_login_parent *p = arg;
    gr_fqueue_wake_all(&p->s->changed);
}

static void process_note(void *arg, int level, const char *text)
{
    struct tgt_login_parent *p = arg;
    tgt_note(p->s, level, "%s", text);
}

static void from_child(void *arg);

int tgt_login_start(struct tgt_server *s, struct gr_err *err)
{
    struct tgt_login_parent *p = gr_zalloc(sizeof *p);
    if (!p)
        return gr_fail(err, -ENOMEM, "login process: out of memory");
    s->login = p;
    p->s = s;
    const struct gr_world *w = gr_loop_world(s->loop);
    w->random(w->arg, p->guesses.key, sizeof p->guesses.key);
    const struct gr_helper_opts o = {.loop = s->loop, .what = "login process", .name = "granary-login", .flag = TGT_LOGIN_FLAG,
                                      .exe = s->opts.login_exe, .arg = p, .begin = begin, .readable = from_child, .ping = ping,
                                      .lost = lost, .ended = ended, .note = process_note};
    return gr_helper_start(&p->process, &o, err);
}

void tgt_server_deafen(struct tgt_server *s)
{
    struct tgt_login_parent *p = s->login;
    if (!s->deaf) {
        s->deaf = true;
        p->deaf_until_ns = gr_loop_now_ns(s->loop) + LOGINS_NS;
        p->out.u.deaf.turn = ++p->turn;
        p->quiet = p->process.sock < 0; /* the next one gets no portals */
        if (!p->quiet && tgt_msg_send(p->process.sock, &p->out, TGT_MSG_DEAF, -1, MSG_DONTWAIT) < 0)
            gr_helper_lose(&p->process, "it cannot be told to let nobody in");
    }
    while ((!p->quiet || s->n_logins) && gr_loop_now_ns(s->loop) < p->deaf_until_ns)
        gr_fiber_sleep_ms(1);
}

void tgt_server_hear(struct tgt_server *s)
{
    if (!s->deaf)
        return;
    s->deaf = false;
    for (unsigned i = 0; i < s->n_portals; i++)
        if (tgt_login_listen(s, &s->portals[i]) < 0) {
            gr_helper_lose(&s->login->process, "it cannot be told to let others in again"); /* its successor is */
            return;
        }
}

void tgt_login_stop(struct tgt_server *s)
{
    if (s->login && !s->login->process.stopping)
        gr_helper_stop(&s->login->process);
}

void tgt_login_let_go(struct tgt_server *s, const struct tgt_lu *lu)
{
    struct tgt_login_parent *p = s->login;
    for (unsigned i = 0; p && i < TGT_SLOTS_MAX; i++)
        if (p->slots[i].lu == lu)
            tgt_lu_user_put(gr_take(p->slots[i].lu));
}

void tgt_login_free(struct tgt_server *s)
{
    struct tgt_login_parent *p = s->login;
    if (!p)
        return;
    tgt_login_stop(s);
    while (p->process.pid > 0) /* reaped by the loop */
        gr_fqueue_wait(&s->changed);
    free(p);
    s->login = NULL;
}

/* ---- jobs in fibers ---- */

struct tgt_slot *tgt_job_slot(const struct tgt_job *j)
{
    struct tgt_login_parent *p = j->s->login;
    struct tgt_slot *sl = p ? &p->slots[j->slot] : NULL;
    return sl && p->process.spawn == j->spawn && sl->used && sl->gen == j->gen ? sl : NULL;
}

void tgt_job_end(struct tgt_job *j)
{
    struct tgt_server *s = j->s;
    struct tgt_slot *sl = tgt_job_slot(j);
    if (sl)
        sl->busy = false;
    if (j->fd >= 0)
        close(j->fd);
    slot_clear(&j->taken);
    s->busy_fibers--;
    s->n_logins--;
    free(j);
    gr_fqueue_wake_all(&s->changed);
}

struct tgt_job *tgt_job_new(struct tgt_login_parent *p, uint32_t slot, int fd, bool take)
{
    struct tgt_job *j = gr_zalloc(sizeof *j);
    if (!j) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    *j = (struct tgt_job){.s = p->s, .slot = slot, .gen = p->slots[slot].gen, .spawn = p->process.spawn, .fd = fd, .msg = p->in};
    p->s->busy_fibers++;
    p->s->n_logins++;
    if (take) {
        j->taken = p->slots[slot];
        memset(&p->slots[slot], 0, sizeof p->slots[slot]);
    } else {
        p->slots[slot].busy = true;
    }
    return j;
}

void tgt_job_run(struct tgt_job *j, void (*fn)(void *))
{
    if (gr_fiber_start(j->s->loop, fn, j) < 0)
        tgt_job_end(j);
}

/* Without memory nothing is started: that login times out. */
static void job_start(struct tgt_login_parent *p, uint32_t slot, void (*fn)(void *), int fd, bool take)
{
    struct tgt_job *j = tgt_job_new(p, slot, fd, take);
    if (j)
        tgt_job_run(j, fn);
}

/* The disk behind a target name; hashed names are looked for in the listing. */
struct seek {
    const char *target;
    char disk[1024];
    bool found;
};

static int seek_each(void *arg, const char *disk)
{
    struct seek *k = arg;
    char name[TGT_NAME_MAX + 1];
    if (tgt_name_of(disk, name) < 0 || strcmp(name, k->target) != 0 || strlen(disk) >= sizeof k->disk)
        return 0;
    memcpy(k->disk, disk, strlen(disk) + 1);
    k->found = true;
    return -ECANCELED;
}

static int disk_of_target(struct tgt_server *s, const char *target, char ret[1024])
{
    int r = tgt_disk_of(target, ret, 1024);
    if (r != -GR_ERANGE)
        return r;
    struct seek k = {.target = target};
    s->dir.list(s->dir.arg, seek_each, &k, NULL);
    if (k.found)
        memcpy(ret, k.disk, sizeof k.disk);
    return k.found ? 0 : -ENOENT;
}

static unsigned login_status(int r)
{
    switch (r) {
    case -EREMCHG:
        return TGT_LOGIN_MOVED;
    case -ENOENT:
    case -EINVAL:
        return TGT_LOGIN_NOT_FOUND;
    case -GR_ELOCKED:
    case -EBUSY:
    case -EAGAIN:
        return TGT_LOGIN_UNAVAILABLE;
    case -GR_EFENCED:
    case -GR_EAUTH:
        return TGT_LOGIN_FORBIDDEN;
    case -ENOMEM:
        return TGT_LOGIN_RESOURCES;
    default:
        return TGT_LOGIN_TARGET;
    }
}

static void send_asked(struct tgt_login_parent *p, const struct tgt_job *j, unsigned status, bool need_chap, unsigned group, const char *alias, const char *address)
{
    struct tgt_msg *m = &p->out;
    memset(&m->u.asked, 0, sizeof m->u.asked);
    m->u.asked.status = status;
    m->u.asked.need_chap = need_chap;
    m->u.asked.group = group;
    snprintf(m->u.asked.alias, sizeof m->u.asked.alias, "%s", alias);
    snprintf(m->u.asked.address, sizeof m->u.asked.address, "%s", address);
    tgt_login_answer(p, j->slot, j->gen, TGT_MSG_ASKED);
}

/* May this initiator use that target, must it prove itself, is it served here? */
static void ask_fiber(void *arg)
{
    struct tgt_job *j = arg;
    struct tgt_server *s = j->s;
    struct tgt_slot *sl = tgt_job_slot(j);
    struct tgt_lu *lu = NULL;
    struct tgt_chap_secrets secrets;
    struct gr_err err = {0};
    char disk[1024] = "", redirect[300] = "", initiator[TGT_NAME_MAX + 1];
    if (!sl) {
        tgt_job_end(j);
        return;
    }
    memcpy(initiator, sl->initiator, sizeof initiator);
    bool open = sl->open, multipath = sl->portal_flags & TGT_PORTAL_MULTIPATH;
    int r = disk_of_target(s, sl->target, disk);
    if (!r)
        r = tgt_access_refresh(s->access, disk, &err);
    if (!r && tgt_access_masked(s->access, disk))
        r = gr_fail(&err, -ENOENT, "disk '%s' is masked", disk);
    else if (!r && !tgt_access_admits(s->access, disk, initiator, open))
        r = gr_fail(&err, -GR_EAUTH, "disk '%s': initiator %s is not in its access list", disk, initiator);
    if (!r)
        r = tgt_lu_acquire(s, disk, initiator, multipath, &lu, redirect, &err);
    sl = tgt_job_slot(j); /* the wait may have outlived it */
    if (!sl || (r < 0 && r != -EREMCHG)) {
        if (lu)
            tgt_lu_user_put(lu);
        if (sl) {
            tgt_note(s, 5, "login of %s (%s) to '%s' refused: %s", initiator, sl->address, disk[0] ? disk : sl->target, gr_err_text(&err, r));
            send_asked(s->login, j, login_status(r), false, 0, "", "");
        }
        tgt_job_end(j);
        return;
    }
    if (r == -EREMCHG) {
        send_asked(s->login, j, TGT_LOGIN_MOVED, false, 0, "", redirect);
        tgt_job_end(j);
        return;
    }
    sl->lu = lu;
    memcpy(sl->disk, disk, sizeof disk);
    sl->need_chap = tgt_access_chap(s->access, disk, &secrets);
    sl->approved = true;
    send_asked(s->login, j, TGT_LOGIN_OK, sl->need_chap, lu->group, lu->disk, "");
    tgt_job_end(j);
}

static bool is_loopback(const struct sockaddr_storage *ss)
{
    if (ss->ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)ss)->sin_addr.s_addr) >> 24 == 127;
    return ss->ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)ss)->sin6_addr);
}

/* The socket is what it should be, and the rules, as they are now, let it in where it really is. (fiber) */
static bool socket_ok(const struct tgt_server *s, const struct tgt_slot *sl, int fd)
{
    struct tgt_chap_secrets secrets;
    struct sockaddr_storage local;
    socklen_t len = sizeof local;
    int type = 0;
    socklen_t type_len = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 || type != SOCK_STREAM)
        return false;
    if (getsockname(fd, (struct sockaddr *)&local, &len) < 0 || (local.ss_family != AF_INET && local.ss_family != AF_INET6))
        return false;
    bool open = is_loopback(&local) || (sl->portal_flags & TGT_PORTAL_INSECURE);
    if (tgt_access_refresh(s->access, sl->disk, NULL) < 0 || (tgt_access_chap(s->access, sl->disk, &secrets) && !sl->authenticated))
        return false;
    return tgt_access_admits(s->access, sl->disk, sl->initiator, open);
}

static void refuse_login(const struct tgt_job *j, unsigned status)
{
    uint8_t b[TGT_BHS_LEN];
    tgt_bhs_start(b, TGT_OP_LOGIN_RSP, 0, j->msg.u.hand_over.itt, 0);
    memcpy(b + 8, j->msg.u.hand_over.isid, TGT_ISID_LEN);
    tgt_bhs_sns(b, j->msg.u.hand_over.statsn, j->msg.u.hand_over.cmdsn, j->msg.u.hand_over.cmdsn);
    gr_put_be16(b + 36, (uint16_t)status);
    if (send(j->fd, b, sizeof b, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return; /* the peer sees the connection close */
}

static int room_for(const struct tgt_server *s, const struct tgt_lu *lu, bool joins, struct gr_err *err)
{
    unsigned max = s->opts.max_sessions ? s->opts.max_sessions : 256;
    if (s->stopping || !lu || lu->releasing)
        return gr_fail(err, -GR_ELOCKED, "shutting down");
    return !joins && s->n_sessions >= max ? gr_fail(err, -ENOMEM, "%u sessions are logged in, no more are allowed", s->n_sessions) : 0;
}

static void hand_over_fiber(void *arg)
{
    struct tgt_job *j = arg;
    struct tgt_server *s = j->s;
    struct gr_err err = {0};
    const char *initiator = j->taken.initiator;
    if (!socket_ok(s, &j->taken, j->fd)) {
        tgt_job_end(j);
        return;
    }
    struct tgt_lu *lu = gr_take(j->taken.lu);
    int r = room_for(s, lu, j->taken.tsih, &err);
    if (!r)
        r = tgt_lu_incarnation(lu, initiator, &err);
    if (!r) /* that may have waited, and whoever has begun to release the disk asks nobody again */
        r = room_for(s, lu, j->taken.tsih, &err);
    if (r < 0) {
        tgt_note(s, 4, "login of %s to '%s' refused: %s", initiator, j->taken.disk, gr_err_text(&err, r));
        refuse_login(j, login_status(r));
        if (lu)
            tgt_lu_user_put(lu);
        tgt_job_end(j);
        return;
    }
    struct tgt_sess_start st = {.fd = gr_take_fd(&j->fd), .lu = lu, .initiator = initiator, .address = j->msg.u.hand_over.address,
                                .text = j->msg.u.hand_over.text, .text_len = j->msg.u.hand_over.text_len, .params = j->msg.u.hand_over.params,
                                .stands_by = j->taken.portal_flags & TGT_PORTAL_MULTIPATH, .flags = (uint8_t)j->msg.u.hand_over.flags, .cid = j->taken.cid, .tsih = j->taken.tsih, .itt = j->msg.u.hand_over.itt,
                                .cmdsn = j->msg.u.hand_over.cmdsn, .statsn = j->msg.u.hand_over.statsn, .acked = j->msg.u.hand_over.statsn};
    memcpy(st.isid, j->taken.isid, TGT_ISID_LEN);
    unsigned status = st.tsih ? tgt_sess_joinable(s, &st) : TGT_LOGIN_OK; /* asked of the authenticated only: it tells what sessions there are */
    if (status) {
        j->fd = st.fd;
        refuse_login(j, status);
        tgt_lu_user_put(lu);
    } else {
        tgt_sess_login(s, &st);
    }
    tgt_job_end(j);
}

/* ---- listings ---- */

struct listing {
    struct tgt_server *s;
    const char *initiator, *which, *address;
    bool open;
    struct gr_buf *out;
};

static int list_each(void *arg, const char *disk)
{
    struct listing *l = arg;
    char name[TGT_NAME_MAX + 1];
    if (tgt_access_refresh(l->s->access, disk, NULL) < 0 || !tgt_access_admits(l->s->access, disk, l->initiator, l->open) || tgt_name_of(disk, name) < 0)
        return 0;
    if (strcmp(l->which, "All") != 0 && strcmp(l->which, name) != 0)
        return 0;
    if (l->out->len > 8u << 20)
        return -ENOSPC;
    int r = gr_buf_printf(l->out, "TargetName=%s", name);
    if (!r)
        r = gr_buf_zero(l->out, 1);
    if (!r)
        r = gr_buf_printf(l->out, "TargetAddress=%s,%u", l->address, tgt_group_of(l->s, disk));
    return r ? r : gr_buf_zero(l->out, 1);
}

int tgt_list_targets(struct tgt_server *s, const char *initiator, const char *which, bool open, const char *address, struct gr_buf *ret)
{
    struct listing l = {s, initiator, which, address, open, ret};
    return s->dir.list(s->dir.arg, list_each, &l, NULL);
}

static void send_piece(struct tgt_login_parent *p, const struct tgt_slot *sl, uint32_t slot, uint32_t off, uint32_t room)
{
    struct tgt_msg *m = &p->out;
    if (off > sl->listing.len)
        off = (uint32_t)sl->listing.len;
    uint32_t left = (uint32_t)sl->listing.len - off, len = GR_MIN(GR_MIN(left, room), TGT_LIST_PIECE);
    if (len)
        memcpy(m->u.listed.text, sl->listing.data + off, len);
    m->u.listed.len = len;
    m->u.listed.more = len < left;
    tgt_login_answer(p, slot, sl->gen, TGT_MSG_LISTED);
}

static void list_fiber(void *arg)
{
    struct tgt_job *j = arg;
    struct tgt_slot *sl = tgt_job_slot(j);
    struct gr_buf text = {0};
    if (sl) {
        struct tgt_slot copy = *sl;
        tgt_list_targets(j->s, copy.initiator, j->msg.u.list.target, copy.open, copy.local, &text);
        sl = tgt_job_slot(j);
    }
    if (sl) {
        gr_buf_done(&sl->listing);
        sl->listing = text;
        sl->listed = true;
        send_piece(j->s->login, sl, j->slot, 0, j->msg.u.list.room);
    } else {
        gr_buf_done(&text);
    }
    tgt_job_end(j);
}

/* ---- messages: each returns false when the login process broke the protocol ---- */

static bool on_ask(struct tgt_login_parent *p, struct tgt_slot *sl)
{
    const struct tgt_msg *m = &p->in;
    if (!tgt_msg_str_ok(m->u.ask.initiator, sizeof m->u.ask.initiator) || !tgt_msg_str_ok(m->u.ask.target, sizeof m->u.ask.target) ||
        !tgt_msg_str_ok(m->u.ask.address, sizeof m->u.ask.address) || !tgt_msg_str_ok(m->u.ask.local, sizeof m->u.ask.local) ||
        m->u.ask.portal >= p->s->next_portal || sl->used)
        return false;
    const struct tgt_portal *portal = tgt_portal_of(p->s, m->u.ask.portal);
    if (!portal)
        return true; /* closed meanwhile: the login process is about to drop it */
    memset(sl, 0, sizeof *sl);
    sl->used = true;
    sl->gen = m->gen;
    sl->discovery = m->u.ask.discovery;
    sl->portal_flags = portal->flags;
    sl->open = m->u.ask.loopback || (sl->portal_flags & TGT_PORTAL_INSECURE);
    sl->tsih = m->u.ask.tsih;
    sl->cid = m->u.ask.cid;
    memcpy(sl->isid, m->u.ask.isid, TGT_ISID_LEN);
    memcpy(sl->initiator, m->u.ask.initiator, sizeof sl->initiator);
    memcpy(sl->target, m->u.ask.target, sizeof sl->target);
    memcpy(sl->address, m->u.ask.address, sizeof sl->address);
    memcpy(sl->local, m->u.ask.local, sizeof sl->local);
    if (!sl->discovery) {
        job_start(p, m->slot, ask_fiber, -1, false); /* without memory that login times out */
        return true;
    }
    struct tgt_job j = {.slot = m->slot, .gen = m->gen};
    struct tgt_chap_secrets secrets;
    snprintf(sl->disk, sizeof sl->disk, "%s", TGT_ACCESS_DISCOVERY);
    sl->need_chap = tgt_access_chap(p->s->access, sl->disk, &secrets);
    sl->approved = true;
    send_asked(p, &j, TGT_LOGIN_OK, sl->need_chap, 0, "", "");
    return true;
}

static bool on_list(struct tgt_login_parent *p, struct tgt_slot *sl)
{
    const struct tgt_msg *m = &p->in;
    if (!sl->discovery || (sl->need_chap && !sl->authenticated) || !tgt_msg_str_ok(m->u.list.target, sizeof m->u.list.target) || sl->busy)
        return false;
    if (m->u.list.off && sl->listed)
        send_piece(p, sl, m->slot, m->u.list.off, m->u.list.room);
    else
        job_start(p, m->slot, list_fiber, -1, false);
    return true;
}

static bool on_hand_over(struct tgt_login_parent *p, struct tgt_slot *sl, int *fd)
{
    const struct tgt_msg *m = &p->in;
    if (*fd < 0 || sl->busy || sl->discovery || !sl->approved || (sl->need_chap && !sl->authenticated) ||
        !tgt_params_ok(&m->u.hand_over.params) || !tgt_msg_str_ok(m->u.hand_over.address, sizeof m->u.hand_over.address) ||
        m->u.hand_over.text_len > sizeof m->u.hand_over.text)
        return false;
    job_start(p, m->slot, hand_over_fiber, gr_take_fd(fd), true);
    return true;
}

static bool message(struct tgt_login_parent *p, int *fd)
{
    const struct tgt_msg *m = &p->in;
    if (m->slot >= TGT_SLOTS_MAX)
        return false;
    struct tgt_slot *sl = &p->slots[m->slot];
    if (m->type == TGT_MSG_PONG) {
        gr_helper_pong(&p->process);
        return true;
    }
    if (m->type == TGT_MSG_QUIET) {
        p->quiet |= m->u.deaf.turn == p->turn;
        return true;
    }
    if (m->type == TGT_MSG_GONE) {
        if (sl->used && sl->gen == m->gen)
            slot_clear(sl);
        return true;
    }
    if (m->type == TGT_MSG_ASK)
        return on_ask(p, sl);
    if (!sl->used || sl->gen != m->gen)
        return false;
    switch (m->type) {
    case TGT_MSG_CHAP_START:
        return tgt_on_chap_start(p, sl);
    case TGT_MSG_CHAP_VERIFY:
        return tgt_on_chap_verify(p, sl);
    case TGT_MSG_LIST:
        return on_list(p, sl);
    case TGT_MSG_HAND_OVER:
        return on_hand_over(p, sl, fd);
    default:
        return false;
    }
}

static void from_child(void *arg)
{
    struct tgt_login_parent *p = arg;
    for (int i = 0; i < 64 && p->process.sock >= 0; i++) {
        gr_auto_close int fd = -1;
        int r = tgt_msg_recv(p->process.sock, &p->in, &fd);
        if (r == -EAGAIN)
            return;
        if (r <= 0 || !message(p, &fd)) {
            gr_helper_lose(&p->process, r == 0 ? "it is gone" : "it broke the protocol");
            return;
        }
    }
}
