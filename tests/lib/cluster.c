#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "vmfs/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S 1000000000ull
#define PIECES 48u /* of a disk that are used */

/* ---- what may be read ---- */
struct wr { /* a write that was sent */
    unsigned disk, piece;
    uint64_t number;
    enum { WR_OPEN, WR_KEPT, WR_LOST } fate; /* what the next owner found */
    bool answered;
    unsigned session;
    struct wr *next;
};
struct piece {
    uint64_t is;       /* acknowledged, or found by whoever took over */
    struct wr *maybe;  /* sent, not answered, by the session that owns the disk */
};
struct cl_disk {
    unsigned session; /* whose the disk is; 0: nobody's yet */
    struct piece piece[PIECES];
};

static void fill(uint8_t *b, unsigned disk, unsigned piece, uint64_t number)
{
    uint64_t w[8] = { 0x5441504d41545321ull, disk, piece, number, number * 0x9e3779b97f4a7c15ull, disk ^ number, piece ^ number, number };
    for (unsigned i = 0; i < 4096; i += sizeof w)
        memcpy(b + i, w, sizeof w);
}

/* The number of the write these bytes are; 0: zeros. */
static uint64_t number_of(const uint8_t *b, unsigned disk, unsigned piece)
{
    static const uint8_t zeros[4096];
    uint8_t want[4096];
    uint64_t w[4];
    if (memcmp(b, zeros, sizeof zeros) == 0)
        return 0;
    memcpy(w, b, sizeof w);
    fill(want, disk, piece, w[3]);
    if (memcmp(b, want, sizeof want) != 0)
        fail_msg("disk %u piece %u: bytes that are no write of it (they say disk %llu piece %llu number %llu)", disk, piece, (unsigned long long)w[1],
                 (unsigned long long)w[2], (unsigned long long)w[3]);
    return w[3];
}

static void wr_put(struct wr *w)
{
    if (w->answered && w->fate != WR_OPEN)
        free(w);
}

/* Session @session has taken the disk over and found @number in the piece. */
static void found(struct cl_site *t, unsigned disk, unsigned piece, uint64_t number)
{
    struct piece *p = &t->disk[disk].piece[piece];
    bool known = number == p->is;
    while (p->maybe) {
        struct wr *w = p->maybe;
        p->maybe = w->next;
        w->fate = w->number == number ? WR_KEPT : WR_LOST;
        known |= w->number == number;
        wr_put(w);
    }
    if (!known)
        fail_msg("disk %u piece %u holds write %llu where %llu was acknowledged", disk, piece, (unsigned long long)number, (unsigned long long)p->is);
    p->is = number;
}

static void answered(struct cl_site *t, struct wr *w, int status)
{
    struct piece *p = &t->disk[w->disk].piece[w->piece];
    w->answered = true;
    if (status == 0 && w->fate == WR_LOST)
        fail_msg("disk %u piece %u: write %llu was acknowledged, but the next owner did not find it", w->disk, w->piece, (unsigned long long)w->number);
    t->acked += status == 0;
    if (status == 0 && w->fate == WR_OPEN) {
        while (p->maybe) { /* older ones that failed, and itself */
            struct wr *m = p->maybe;
            p->maybe = m->next;
            m->fate = WR_KEPT;
            if (m != w)
                wr_put(m);
        }
        p->is = w->number;
    }
    wr_put(w);
}

/* ---- what a host does ---- */
struct io {
    struct cl_host *inc;
    struct gr_bio bio;
    struct iovec iov;
    uint8_t *buf;
    struct wr *wr;
    unsigned *under_way;
    bool *busy;
    struct gr_fqueue *q;
};
static void io_done(struct gr_bio *bio)
{
    struct io *io = bio->arg;
    io->busy[io->wr->piece] = false;
    --*io->under_way;
    answered(io->inc->t, io->wr, bio->status);
    gr_fqueue_wake_all(io->q);
    free(io->buf);
    free(io);
}

static void send_write(struct cl_host *h, unsigned disk, unsigned piece, unsigned session, struct gr_chan *ch, unsigned *under_way, bool *busy, struct gr_fqueue *q)
{
    struct cl_site *t = h->t;
    struct piece *p = &t->disk[disk].piece[piece];
    struct wr *w = calloc(1, sizeof *w);
    struct io *io = calloc(1, sizeof *io);
    *w = (struct wr){ .disk = disk, .piece = piece, .number = ++t->numbers, .session = session };
    if (t->disk[disk].session == session) {
        w->next = p->maybe;
        p->maybe = w;
    } else {
        w->fate = WR_LOST; /* the disk is another's already: this one does not know yet */
    }
    *io = (struct io){ .inc = h, .buf = aligned_alloc(4096, 4096), .wr = w, .under_way = under_way, .busy = busy, .q = q };
    fill(io->buf, disk, piece, w->number);
    io->iov = (struct iovec){ io->buf, 4096 };
    io->bio = (struct gr_bio){ .op = GR_OP_WRITE, .off = (uint64_t)piece * 4096 * 5, .len = 4096, .iov = &io->iov, .iovcnt = 1, .done = io_done, .arg = io };
    busy[piece] = true;
    ++*under_way;
    gr_submit(ch, &io->bio);
}

static int read_piece(struct cl_host *h, struct gr_chan *ch, unsigned disk, unsigned piece, uint64_t *ret)
{
    uint8_t *b = aligned_alloc(4096, 4096);
    int r = gr_pread(ch, b, 4096, (uint64_t)piece * 4096 * 5);
    if (r == 0)
        *ret = number_of(b, disk, piece);
    h->t->reads += r == 0;
    free(b);
    return r;
}

/* Read everything as the new owner; what is found is what the disk holds from now on. */
static int take_over(struct cl_host *h, struct gr_chan *ch, unsigned disk, unsigned session)
{
    struct cl_site *t = h->t;
    uint64_t found_now[PIECES];
    unsigned before = t->disk[disk].session;
    for (unsigned i = 0; i < PIECES; i++) {
        int r = read_piece(h, ch, disk, i, &found_now[i]);
        if (r < 0)
            return r;
    }
    if (t->disk[disk].session != before) /* slept through all of that: it was ours, and is another's */
        return -GR_EFENCED;
    if (t->conform && conform_ejected(t->conform, h->sim)) { /* what was never written is read from memory: it does not know yet */
        t->unaware++;
        return -GR_EFENCED;
    }
    t->takeovers += before != 0;
    t->disk[disk].session = session;
    for (unsigned i = 0; i < PIECES; i++)
        found(t, disk, i, found_now[i]);
    return 0;
}

static int work_on(struct cl_host *h, unsigned disk, unsigned session, struct gr_chan *ch)
{
    struct cl_site *t = h->t;
    bool busy[PIECES] = { false };
    unsigned under_way = 0, depth = 1 + (unsigned)sim_below(t->sim, 16), n = (unsigned)sim_below(t->sim, t->burst);
    struct gr_fqueue q = { 0 };
    int r = 0;
    for (unsigned i = 0; i < n && r == 0 && !t->stopping; i++) {
        unsigned piece = (unsigned)sim_below(t->sim, PIECES);
        while (under_way >= depth || busy[piece])
            gr_fqueue_wait(&q);
        switch (sim_below(t->sim, 12)) {
        case 0: {
            uint64_t is, want = t->disk[disk].piece[piece].is;
            bool ours = t->disk[disk].session == session && !t->disk[disk].piece[piece].maybe;
            r = read_piece(h, ch, disk, piece, &is);
            if (r == 0 && ours && t->disk[disk].session == session && is != want)
                fail_msg("disk %u piece %u: its owner reads write %llu, and wrote %llu", disk, piece, (unsigned long long)is, (unsigned long long)want);
            break;
        }
        case 1:
            r = gr_flush(ch);
            break;
        case 2:
            gr_fiber_sleep_ms(sim_below(t->sim, 300));
            break;
        default:
            send_write(h, disk, piece, session, ch, &under_way, busy, &q);
        }
    }
    while (under_way)
        gr_fqueue_wait(&q);
    return r;
}

static void one_visit(struct cl_host *h)
{
    struct cl_site *t = h->t;
    struct vmfs_disk *d;
    struct gr_chan *ch;
    char path[16];
    unsigned disk = (unsigned)sim_below(t->sim, t->n_disks);
    snprintf(path, sizeof path, "d%u", disk);
    int r = vmfs_open(h->v, path, &d, NULL, NULL);
    if (r < 0) {
        gr_fiber_sleep_ms(20 + sim_below(t->sim, 500));
        return;
    }
    assert_int_equal(gr_chan_open(vmfs_bdev(d), sim_host_loop(h->sim), &ch), 0);
    unsigned session = h->session_base;
    if (t->disk[disk].session != session)
        r = take_over(h, ch, disk, session);
    h->at_work = r == 0;
    if (r == 0)
        work_on(h, disk, session, ch);
    h->at_work = false;
    gr_chan_close(ch);
    vmfs_close(d);
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

static void inc_fiber(void *arg)
{
    struct cl_host *h = arg;
    struct cl_site *t = h->t;
    char name[32], address[32];
    struct gr_err err = { 0 };
    struct vmfs_info info = { 0 };
    snprintf(name, sizeof name, "host%u", h->host);
    snprintf(address, sizeof address, "/home/%u/%u", h->host, h->home);
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = name, .address = address, .warn = warn, .warn_arg = h, .ejected = ejected };
    memset(o.host_uuid, (int)h->host + 1, 16);
    cl_loud(h, "joins");
    int r = vmfs_join(sim_host_loop(h->sim), h->path, t->n_devices, &o, &h->v, &err);
    cl_loud(h, r < 0 ? err.text : "has joined");
    if (r < 0 && !h->disturbed && !t->stopping)
        fail_msg("host %u cannot join: %s", h->host, gr_err_text(&err, r));
    while (r == 0 && !t->stopping && !info.fenced) {
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
        assert_true(h->told == info.fenced);
    if (info.fenced && !h->disturbed)
        fail_msg("host %u did answer, and was ejected: %s", h->host, info.fence_reason);
    if (r == 0 && (info.fenced || vmfs_leave(h->v, &err) < 0)) {
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
    for (unsigned i = 0; i < t->n_devices; i++) {
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
        if (vmfs_create(h->v, path, VMFS_DISK, 8 << 20, VMFS_THIN, &err) < 0)
            fail_msg("%s", err.text);
    }
}

static void line(void *arg, const char *text)
{
    (void)arg;
    print_message("check: %s\n", text);
}

static void look(struct cl_host *h)
{
    struct cl_site *t = h->t;
    struct vmfs_check_report rep;
    struct gr_err err = { 0 };
    for (unsigned i = 0; i < t->n_disks; i++) {
        char path[16];
        struct vmfs_disk *d;
        struct gr_chan *ch;
        snprintf(path, sizeof path, "d%u", i);
        if (vmfs_open(h->v, path, &d, NULL, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(gr_chan_open(vmfs_bdev(d), sim_host_loop(h->sim), &ch), 0);
        assert_int_equal(take_over(h, ch, i, ++t->sessions), 0);
        gr_chan_close(ch);
        vmfs_close(d);
    }
    if (vmfs_check(h->v, line, NULL, &rep, &err) < 0 || rep.leaked_units)
        fail_msg("check: %llu errors, %llu leaked", (unsigned long long)rep.errors, (unsigned long long)rep.leaked_units);
    t->checked = true;
}

static void visit_fiber(void *arg)
{
    struct visit *v = arg;
    struct cl_host *h = v->h;
    struct vmfs_join_opts o = { .role = VMFS_HOST, .host_name = "visitor", .warn = warn, .warn_arg = h };
    struct gr_err err = { 0 };
    o.host_uuid[0] = 99;
    if (v->fn == make) {
        make(h);
    } else {
        if (vmfs_join(sim_host_loop(h->sim), h->path, v->t->n_devices, &o, &h->v, &err) < 0)
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
    struct cl_host h = { .t = t, .sim = sim_host_new(t->sim), .host = 99 };
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
        t->conform = conform_new(t->sim, t->mem, t->n_devices);
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
    free(t->disk);
    sim_free(t->sim);
}

void cl_add(struct cl_site *sum, const struct cl_site *t)
{
    uint64_t *to = sum->cells;
    const uint64_t *from = t->cells;
    for (size_t i = 0; i < offsetof(struct cl_site, reads) / 8 - offsetof(struct cl_site, cells) / 8 + 1; i++)
        to[i] += from[i];
}
