#include "tests/lib/cluster_oracle.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S 1000000000ull
/* ---- what a host does ---- */
struct io {
    struct cl_host *inc;
    struct gr_bio bio;
    struct iovec iov;
    uint8_t *buf;
    struct cl_write *wr;
    struct work *work;
};
struct work { /* a visit to a disk */
    struct cl_host *h;
    unsigned disk, session, under_way;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    bool busy[CL_PIECES];
    int failed[CL_PIECES]; /* writes of which that has not been looked at */
    struct gr_fqueue q;
};
static uint64_t offset_of(unsigned piece) { return (uint64_t)piece * 4096 * 5; }

static void io_done(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    struct work *w = io->work;
    w->busy[io->wr->piece] = false;
    w->failed[io->wr->piece] = bio->status;
    w->under_way--;
    cl_answered(io->inc->t, io->wr, bio->status);
    gr_fqueue_wake_all(&w->q);
    free(io->buf);
    free(io);
}

static void send_write(struct work *w, unsigned piece)
{
    struct io *io = calloc(1, sizeof *io);
    *io = (struct io){ .inc = w->h, .buf = aligned_alloc(4096, 4096), .wr = cl_sent(w->h->t, w->disk, piece, w->session), .work = w };
    cl_fill(io->buf, w->disk, piece, io->wr->number);
    io->iov = (struct iovec){ io->buf, 4096 };
    io->bio = (struct gr_bio){ .op = GR_OP_WRITE, .off = offset_of(piece), .len = 4096, .iov = &io->iov, .iovcnt = 1, .done = io_done, .arg = io };
    w->busy[piece] = true;
    w->under_way++;
    gr_submit(w->ch, &io->bio);
}

/* Does it lie on the device that this host has lost, or is about to? */
static bool lies_on_lost(const struct work *w, unsigned piece)
{
    struct vobj *o = w->d->o;
    struct mnode *leaf = NULL;
    uint64_t at = offset_of(piece) / VMFS_PIECE;
    if (!(w->h->without || w->h->loses) || mtree_load(o, &o->live, at, NULL) < 0 || !w->d->o || mtree_peek(&o->live, at, &leaf) < 0 || !leaf)
        return false;
    struct mpiece p = ment_piece(&leaf->ent[at % VMFS_LEAF_PIECES / VMFS_BLOCK_PIECES], (unsigned)(at % VMFS_BLOCK_PIECES));
    return p.state == VMFS_P_DATA && vmfs_addr_dev(p.addr) == CL_MAY_GO;
}

/* A request of a host that nothing else is wrong with ended with @r: for nothing but what is lost. */
static void excuse(const struct work *w, int r, unsigned piece, const char *what)
{
    const struct cl_host *h = w->h;
    if (r == 0 || h->disturbed || h->v->fenced || !w->d->o)
        return;
    if (w->d->o->lost && what[0] != 'r') /* it refuses all but reads until somebody accepts that */
        return;
    bool lost = piece < CL_PIECES && !(what[0] == 'w' && h->without) && lies_on_lost(w, piece); /* whole pieces go elsewhere then */
    if (!lost && !h->v->fenced)
        fail_msg("host %u: a %s of disk %u piece %u failed, and nothing of that is lost: %s", h->host, what, w->disk, piece, gr_code_text(r));
    h->t->unread += lost;
}

static void look_at_failed(struct work *w)
{
    for (unsigned i = 0; i < CL_PIECES; i++) {
        int r = w->failed[i];
        w->failed[i] = 0;
        excuse(w, r, i, "write");
    }
}

static int read_piece(const struct work *w, unsigned piece, uint64_t *ret)
{
    uint8_t *b = aligned_alloc(4096, 4096);
    int r = gr_pread(w->ch, b, 4096, offset_of(piece));
    if (r == 0)
        *ret = cl_number_of(b, w->disk, piece);
    w->h->t->reads += r == 0;
    excuse(w, r, piece, "read");
    free(b);
    return r;
}

/* Read everything as the new owner; what is found is what the disk holds from now on. */
static int take_over(struct work *w)
{
    struct cl_site *t = w->h->t;
    uint64_t found[CL_PIECES];
    bool unread[CL_PIECES] = { false };
    unsigned before = t->disk[w->disk].session;
    for (unsigned i = 0; i < CL_PIECES; i++) {
        int r = read_piece(w, i, &found[i]);
        unread[i] = r < 0;
        if (r < 0 && (!w->h->without || !w->d->o || w->h->v->fenced || w->h->disturbed))
            return r;
    }
    if (t->disk[w->disk].session != before) /* slept through all of that: it was ours, and is another's */
        return -GR_EFENCED;
    if (t->conform && conform_ejected(t->conform, w->h->sim)) { /* what was never written is read from memory: it does not know yet */
        t->unaware++;
        return -GR_EFENCED;
    }
    if (w->d->o->lost != t->disk[w->disk].lost_writes)
        fail_msg("disk %u %s that it has lost writes", w->disk, w->d->o->lost ? "says wrongly" : "has forgotten");
    t->takeovers += before != 0;
    t->disk[w->disk].session = w->session;
    for (unsigned i = 0; i < CL_PIECES; i++)
        if (!unread[i])
            cl_found(t, w->disk, i, found[i]);
    return 0;
}

/* Somebody takes notice. */
static int accept(struct work *w)
{
    struct gr_err err = { 0 };
    int r = w->d->o && w->d->o->lost ? vmfs_accept_loss(w->d, &err) : 0;
    excuse(w, r, CL_PIECES, "accepting");
    if (r == 0 && w->h->t->disk[w->disk].session == w->session)
        w->h->t->disk[w->disk].lost_writes = false;
    return r;
}

static int work_on(struct work *w)
{
    struct cl_site *t = w->h->t;
    unsigned depth = 1 + (unsigned)sim_below(t->sim, 16), n = (unsigned)sim_below(t->sim, t->burst);
    int r = 0;
    for (unsigned i = 0; i < n && r == 0 && !t->stopping && !w->h->again; i++) {
        unsigned piece = (unsigned)sim_below(t->sim, CL_PIECES);
        while (w->under_way >= depth || w->busy[piece])
            gr_fqueue_wait(&w->q);
        look_at_failed(w);
        switch (sim_below(t->sim, 12)) {
        case 0: {
            uint64_t is, want = t->disk[w->disk].piece[piece].is;
            bool ours = t->disk[w->disk].session == w->session && !t->disk[w->disk].piece[piece].maybe;
            r = read_piece(w, piece, &is);
            if (r == 0 && ours && t->disk[w->disk].session == w->session && is != want)
                fail_msg("disk %u piece %u: its owner reads write %llu, and wrote %llu", w->disk, piece, (unsigned long long)is, (unsigned long long)want);
            break;
        }
        case 1: {
            uint64_t acked = t->acked;
            r = gr_flush(w->ch);
            excuse(w, r, CL_PIECES, "flush");
            if (r == 0 && t->disk[w->disk].session == w->session)
                cl_flushed(t, w->disk, acked);
            break;
        }
        case 2:
            gr_fiber_sleep_ms(sim_below(t->sim, 300));
            break;
        default:
            send_write(w, piece);
        }
    }
    while (w->under_way)
        gr_fqueue_wait(&w->q);
    look_at_failed(w);
    return r;
}

/* Where three devices are, a third of the disks goes to the one that may be lost, and a third does not. */
static void aim(struct vmfs *v, unsigned kind)
{
    unsigned dev = kind ? CL_MAY_GO - kind : CL_MAY_GO;
    const struct vdevinfo *d = &v->sb.dev[dev];
    if (vdev_missing(v, dev) || vdev_stale(v, dev))
        return;
    for (unsigned tries = 0; tries < 2; tries++) {
        for (struct vregion *r = v->sp.regions; r; r = r->next)
            if (vmfs_addr_dev(r->first) == dev && !r->closed && !r->giving) {
                v->sp.current = r;
                return;
            }
        for (uint32_t i = d->first_region; i < d->first_region + d->regions && !v->sp.by_index[i] && !v->fenced; i++)
            if (space_lease(v, i, NULL) == 0)
                break;
    }
}

static void one_visit(struct cl_host *h)
{
    struct cl_site *t = h->t;
    struct work w = { .h = h, .disk = (unsigned)sim_below(t->sim, t->n_disks), .session = h->session_base };
    char path[16];
    snprintf(path, sizeof path, "d%u", w.disk);
    struct gr_err err = { 0 };
    int r = vmfs_open(h->v, path, &w.d, NULL, &err);
    if (r < 0) {
        if (r == -EIO && !h->disturbed && !h->v->fenced)
            fail_msg("host %u: disk %u cannot be opened: %s", h->host, w.disk, err.text);
        gr_fiber_sleep_ms(20 + sim_below(t->sim, 500));
        return;
    }
    assert_int_equal(gr_chan_open(vmfs_bdev(w.d), sim_host_loop(h->sim), &w.ch), 0);
    if (t->disk[w.disk].session != w.session)
        r = take_over(&w);
    if (t->n_devices > CL_MAY_GO && r == 0)
        aim(h->v, w.disk % 3);
    if (r == 0 && sim_below(t->sim, 2))
        r = accept(&w);
    h->at_work = r == 0;
    if (r == 0)
        work_on(&w);
    h->at_work = false;
    gr_chan_close(w.ch);
    vmfs_close(w.d);
    if (sim_below(t->sim, 3) == 0) /* a planned hand-over: whoever wants it may have it */
        vmfs_release(h->v, path, NULL);
    if (sim_below(t->sim, 3) == 0) { /* it has more regions than it needs, and another host asks for them */
        space_lease_any(h->v, NULL);
        vmfs_regions_recall(h->v, NULL);
    }
}

void cl_loud(const struct cl_host *h, const char *what)
{
    if (getenv("GRANARY_LOUD"))
        print_message("%8.3f host %u start %u: %s\n", (double)sim_now_ns(h->t->sim) / 1e9, h->host, h->session_base, what);
}

static void warn(void *arg, const char *text)
{
    struct cl_host *h = arg;
    cl_loud(h, text);
    h->t->ejected += strstr(text, "did not answer") != NULL;
    h->t->recovered += strstr(text, "recovered slot") != NULL;
}

static void ejected(void *arg)
{
    ((struct cl_host *)arg)->told = true;
}

/* The volume is given up, and is joined again without the device. */
static void device_lost(void *arg)
{
    struct cl_host *h = arg;
    h->lost = true;
    h->t->losses++;
    if (!h->loses)
        fail_msg("host %u has lost a device that works", h->host);
    for (unsigned i = 0; h->v && i < h->v->lost.n; i++)
        cl_poisoned(h->t, h->session_base, h->v->lost.objects[i]);
}

/* What the join of the next start needs is written down. */
static void leave_lost(struct cl_host *h)
{
    h->t->without[h->host] = true;
    assert_true(vmfs_leave(h->v, NULL) < 0);
}

static void inc_fiber(void *arg)
{
    struct cl_host *h = arg;
    struct cl_site *t = h->t;
    char name[32], address[32];
    struct gr_err err = { 0 };
    struct vmfs_info info = { 0 };
    snprintf(name, sizeof name, "host%u", h->host);
    snprintf(address, sizeof address, "/home/%u/%u", h->host, h->home);
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .address = address, .warn = warn, .warn_arg = h, .ejected = ejected, .device_lost = device_lost,
                                .degraded = h->without };
    memset(o.host_uuid, (int)h->host + 1, 16);
    cl_loud(h, h->without ? "joins without the device it lost" : "joins");
    int r = vmfs_join(sim_host_loop(h->sim), h->path, h->without ? CL_MAY_GO : t->n_devices, &o, &h->v, &err);
    cl_loud(h, r < 0 ? err.text : "has joined");
    if (r < 0 && !h->disturbed && !t->stopping)
        fail_msg("host %u cannot join: %s", h->host, gr_err_text(&err, r));
    while (r == 0 && !t->stopping && !info.fenced && !h->again) {
        one_visit(h);
        vmfs_info(h->v, &info);
    }
    struct vmfs_stats st = { 0 };
    if (r == 0) {
        vmfs_info(h->v, &info);
        vmfs_stats(h->v, &st);
    }
    t->given_back += st.regions_given_back;
    h->fenced = r < 0 || info.fenced;
    if (r == 0)
        assert_true((h->told || h->lost) == info.fenced);
    if (info.fenced && !h->lost && !h->disturbed)
        fail_msg("host %u did answer, and was ejected: %s", h->host, info.fence_reason);
    if (r == 0 && h->lost)
        leave_lost(h);
    else if (r == 0 && (info.fenced || vmfs_leave(h->v, &err) < 0)) {
        if (!info.fenced && !h->disturbed)
            fail_msg("host %u cannot leave: %s", h->host, err.text);
        if (info.fenced)
            vmfs_abandon(h->v);
    }
    for (unsigned i = 0; i < t->n_devices; i++)
        gr_bdev_put(h->path[i]);
    h->over = true;
    cl_loud(h, "is over");
    t->running--;
    if (!t->stopping && !h->dead)
        cl_host_start(t, h->host);
}

void cl_host_start(struct cl_site *t, unsigned host)
{
    struct cl_host *h = calloc(1, sizeof *h);
    *h = (struct cl_host){ .t = t, .host = host, .session_base = ++t->sessions, .home = t->homes[host], .sim = sim_host_new(t->sim), .next = t->incs };
    t->incs = h;
    t->running++;
    h->without = t->without[host];
    for (unsigned i = 0; i < (h->without ? CL_MAY_GO : t->n_devices); i++) {
        struct gr_bdev *nexus;
        assert_int_equal(gr_bdev_mem_open_shared(sim_net(t->sim), t->mem[i], &nexus), 0);
        assert_int_equal(sim_path_open(h->sim, nexus, 20000, t->slowest_ns, &h->path[i]), 0);
        gr_bdev_put(nexus);
        sim_path_lose(h->path[i], 4);
        sim_path_cut(h->path[i], t->stalled);
    }
    char home[32];
    snprintf(home, sizeof home, "%u/%u", host, h->home);
    if (t->conform)
        conform_host(t->conform, h->sim, h->path, home);
    assert_int_equal(gr_fiber_start(sim_host_loop(h->sim), inc_fiber, h), 0);
}

struct cl_host *cl_host_of(struct cl_site *t, unsigned host)
{
    for (struct cl_host *h = t->incs; h; h = h->next)
        if (h->host == host && !h->over && !h->dead)
            return h;
    return NULL;
}

void cl_nap(struct cl_site *t, uint64_t max_ms)
{
    for (uint64_t ms = sim_below(t->sim, max_ms); ms && !t->stopping; ms -= ms < 100 ? ms : 100)
        gr_fiber_sleep_ms(ms < 100 ? ms : 100);
}
void cl_cut_all(struct cl_site *t, bool cut)
{
    t->stalled = cut;
    for (struct cl_host *h = t->incs; h; h = h->next)
        for (unsigned i = 0; i < t->n_devices && !h->over; i++)
            if (h->path[i])
                sim_path_cut(h->path[i], cut);
}
void cl_finish(struct cl_site *t)
{
    t->stopping = true;
    cl_cut_all(t, false);
    for (struct cl_host *h = t->incs; h; h = h->next)
        if (!h->corpse)
            sim_stop(h->sim, false);
    while (t->running > t->corpses)
        gr_fiber_sleep_ms(10);
    for (struct cl_host *h = t->incs; h; h = h->next)
        sim_stop(h->sim, false);
    t->quiet = true;
}

static bool all_over(void *arg)
{
    const struct cl_site *t = arg;
    return t->quiet && t->running == 0;
}
/* ---- before and after ---- */
struct visit {
    struct cl_site *t;
    struct cl_host *h;
    void (*fn)(struct cl_host *h);
    bool over;
};
static bool visit_over(void *arg)
{
    return ((struct visit *)arg)->over;
}

static void make(struct cl_host *h)
{
    struct cl_site *t = h->t;
    struct vmfs_format_opts f = { .name = "ds", .slots = t->hosts > CL_HOSTS ? t->hosts * 2 : 0, .region_units = t->hosts > CL_HOSTS ? 4096 : 0, .journal_units = t->hosts > CL_HOSTS ? 256 : 0,
                                  .timing = t->fast ? VMFS_TIMING_FAST : VMFS_TIMING_DEFAULT };
    struct gr_err err = { 0 };
    if (vmfs_format(sim_host_loop(h->sim), h->path, t->n_devices, &f, &err) < 0)
        fail_msg("%s", err.text);
}

static void fill_in(struct cl_host *h)
{
    struct gr_err err = { 0 };
    for (unsigned i = 0; i < h->t->n_disks; i++) {
        char path[16];
        snprintf(path, sizeof path, "d%u", i);
        struct vmfs_stat st;
        if (vmfs_create(h->v, path, VMFS_DISK, 8 << 20, VMFS_THIN, &err) < 0 || vmfs_stat(h->v, path, &st, &err) < 0)
            fail_msg("%s", err.text);
        h->t->disk[i].id = st.id;
    }
}

static void line(void *arg, const char *text)
{
    const struct cl_site *t = arg;
    if (!t->losses || getenv("GRANARY_LOUD")) /* else there is something to say in any case */
        print_message("check: %s\n", text);
}

static void look(struct cl_host *h)
{
    struct cl_site *t = h->t;
    struct vmfs_check_report rep;
    struct gr_err err = { 0 };
    bool lost = t->losses && !h->without;
    for (unsigned i = 0; i < t->n_disks; i++) {
        struct work w = { .h = h, .disk = i, .session = ++t->sessions };
        char path[16];
        snprintf(path, sizeof path, "d%u", i);
        if (vmfs_open(h->v, path, &w.d, NULL, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(gr_chan_open(vmfs_bdev(w.d), sim_host_loop(h->sim), &w.ch), 0);
        assert_int_equal(take_over(&w), 0);
        gr_chan_close(w.ch);
        vmfs_close(w.d);
    }
    if (lost && (vmfs_repair(h->v, line, t, &rep, &err) < 0 || rep.mended > 1)) /* counted anew, and nothing else is wrong */
        fail_msg("repair: %llu errors, %llu mended", (unsigned long long)rep.errors, (unsigned long long)rep.mended);
    int r = vmfs_check(h->v, line, t, &rep, &err);
    if ((r < 0 && !(h->without && r == -GR_EPARTIAL)) || rep.errors || rep.leaked_units)
        fail_msg("check: %llu errors, %llu leaked", (unsigned long long)rep.errors, (unsigned long long)rep.leaked_units);
    t->checked = true;
}

static void visit_fiber(void *arg)
{
    struct visit *v = arg;
    struct cl_host *h = v->h;
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "visitor", .warn = warn, .warn_arg = h, .degraded = h->without };
    struct gr_err err = { 0 };
    o.host_uuid[0] = 99;
    if (v->fn == make) {
        make(h);
    } else {
        if (vmfs_join(sim_host_loop(h->sim), h->path, h->without ? CL_MAY_GO : v->t->n_devices, &o, &h->v, &err) < 0)
            fail_msg("%s", err.text);
        v->fn(h);
        if (vmfs_leave(h->v, &err) < 0)
            fail_msg("%s", err.text);
    }
    for (unsigned i = 0; i < v->t->n_devices; i++)
        gr_bdev_put(h->path[i]);
    v->over = true;
}

static void visit(struct cl_site *t, void (*fn)(struct cl_host *h))
{
    struct cl_host h = { .t = t, .sim = sim_host_new(t->sim), .host = 99, .without = t->gone_for_good };
    struct visit v = { .t = t, .h = &h, .fn = fn };
    for (unsigned i = 0; i < t->n_devices; i++) {
        struct gr_bdev *nexus;
        assert_int_equal(gr_bdev_mem_open_shared(sim_net(t->sim), t->mem[i], &nexus), 0);
        assert_int_equal(sim_path_open(h.sim, nexus, 20000, 400000, &h.path[i]), 0);
        gr_bdev_put(nexus);
    }
    assert_int_equal(gr_fiber_start(sim_host_loop(h.sim), visit_fiber, &v), 0);
    int r = sim_run(t->sim, visit_over, &v, 3600 * S);
    if (r < 0)
        fail_msg("nothing goes on: %s", gr_code_text(r));
    sim_host_free(h.sim);
}
void cl_open(struct cl_site *t, bool watched)
{
    bool large = t->hosts > CL_HOSTS;
    t->disk = calloc(t->n_disks, sizeof *t->disk);
    assert_non_null(t->disk);
    for (unsigned i = 0; i < t->n_devices; i++)
        t->mem[i] = gr_mem_new(large ? (uint64_t)t->hosts << 26 : 192 << 20);
    visit(t, make);
    visit(t, fill_in);
    if (watched) {
        t->conform = conform_new(t->sim, t->mem, GR_MIN(t->n_devices, CL_MAY_GO));
        assert_non_null(t->conform);
    }
}

void cl_run(struct cl_site *t, void (*nemesis)(void *arg), uint64_t seed)
{
    for (unsigned i = 0; i < t->hosts; i++)
        cl_host_start(t, i);
    assert_int_equal(gr_fiber_start(sim_net(t->sim), nemesis, t), 0);
    int r = sim_run(t->sim, all_over, t, 7200 * S);
    if (r < 0)
        fail_msg("seed %llu: nothing goes on: %s (%u run)", (unsigned long long)seed, gr_code_text(r), t->running);
    if (t->conform && conform_error(t->conform))
        fail_msg("seed %llu: %s", (unsigned long long)seed, conform_error(t->conform));
}

void cl_close(struct cl_site *t)
{
    t->steps = t->conform ? conform_steps(t->conform) : 0;
    conform_free(t->conform);
    t->conform = NULL;
    visit(t, look);
    assert_true(t->checked);
    for (struct cl_host *h = t->incs, *next; h; h = next) {
        next = h->next;
        sim_host_free(h->sim);
        free(h);
    }
    for (unsigned i = 0; i < t->n_devices; i++)
        gr_mem_free(t->mem[i]);
    cl_oracle_free(t);
    sim_free(t->sim);
}

void cl_add(struct cl_site *sum, const struct cl_site *t)
{
    uint64_t *to = sum->cells;
    const uint64_t *from = t->cells;
    for (size_t i = 0; i < offsetof(struct cl_site, reads) / 8 - offsetof(struct cl_site, cells) / 8 + 1; i++)
        to[i] += from[i];
}
