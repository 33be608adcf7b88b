/* Sparse memory as a device. Several handles share the bytes and the named locks, as hosts share a device. */
#include "common/bdev.h"
#include "common/iov.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_BITS = 12, PAGE = 1 << PAGE_BITS, FAN_BITS = 9, FAN = 1 << FAN_BITS, MAX_COMPARE = 1 << 20 };
struct mem_lock {
    uint64_t key;
    const struct gr_bdev *owner;
    struct mem_lock *next;
};
enum { MAX_NEXUSES = 1024 };
/* A radix tree over page numbers; nodes and pages appear when written. */
struct mem_node {
    void *slot[FAN];
};
struct gr_mem {
    pthread_mutex_t lock; /* guards everything: handles may be on different loops */
    uint64_t size;        /* bytes */
    unsigned levels;      /* of nodes above the pages */
    struct mem_node *root;
    struct mem_lock *locks;
    struct mem_nexus {
        uint64_t key;
        const struct gr_bdev *bdev; /* NULL: its handle is closed, its registration is not */
    } nexus[MAX_NEXUSES];       /* registered with the fence */
    unsigned n_nexuses;
    uint64_t holder;            /* key that holds the reservation; 0: there is none */
};
struct mem_bdev {
    struct gr_bdev base;
    struct gr_mem *mem;
    bool shared, fenced;
};

struct gr_mem *gr_mem_new(uint64_t size)
{
    struct gr_mem *m = gr_zalloc(sizeof(*m));

    if (!m)
        return NULL;
    m->size = size & ~(uint64_t)511;
    m->levels = 1;
    while (PAGE_BITS + FAN_BITS * m->levels < 64 && (m->size >> (PAGE_BITS + FAN_BITS * m->levels)))
        m->levels++;
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

static void free_tree(void *p, unsigned level)
{
    if (!p)
        return;
    for (int i = 0; level && i < FAN; i++)
        free_tree(((struct mem_node *)p)->slot[i], level - 1);
    free(p);
}

void gr_mem_free(struct gr_mem *m)
{
    if (!m)
        return;
    free_tree(m->root, m->levels);
    while (m->locks) {
        struct mem_lock *l = m->locks;
        m->locks = l->next;
        free(l);
    }
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* Where the pointer to @off's page lives; NULL when its node is missing and !make (or out of memory). */
static void **page_slot(struct gr_mem *m, uint64_t off, bool make)
{
    void **p = (void **)&m->root;

    for (unsigned level = m->levels; level; level--) {
        if (!*p && make)
            *p = gr_zalloc(sizeof(struct mem_node));
        if (!*p)
            return NULL;
        p = &((struct mem_node *)*p)->slot[(off >> (PAGE_BITS + FAN_BITS * (level - 1))) & (FAN - 1)];
    }
    return p;
}

static uint8_t *page_at(struct gr_mem *m, uint64_t off, bool make)
{
    void **p = page_slot(m, off, make);

    if (!p)
        return NULL;
    if (!*p && make)
        *p = gr_zalloc(PAGE);
    return *p;
}

void *gr_mem_page(struct gr_mem *m, uint64_t off, bool make)
{
    if (off >= m->size)
        return NULL;
    pthread_mutex_lock(&m->lock);
    void *p = page_at(m, off, make);
    pthread_mutex_unlock(&m->lock);
    return p;
}

static size_t in_page(uint64_t off, uint64_t left)
{
    size_t n = PAGE - (size_t)(off & (PAGE - 1));

    return n < left ? n : (size_t)left;
}

/* Bytes from @off, at most @left, that one page or one missing subtree of the tree answers for. */
static uint64_t in_tree(struct gr_mem *m, uint64_t off, uint64_t left)
{
    const struct mem_node *node = m->root;

    for (unsigned level = m->levels; level; level--) {
        if (!node) {
            uint64_t span = PAGE_BITS + FAN_BITS * level < 64 ? (uint64_t)1 << (PAGE_BITS + FAN_BITS * level) : 0;
            uint64_t n = span - (off & (span - 1)); /* span 0: all there is */
            return n && n < left ? n : left;
        }
        node = node->slot[(off >> (PAGE_BITS + FAN_BITS * (level - 1))) & (FAN - 1)];
    }
    return in_page(off, left);
}

static void mem_read(struct gr_mem *m, const struct gr_bio *bio)
{
    for (uint64_t at = 0, n; at < bio->len; at += n) {
        uint64_t off = bio->off + at;
        n = in_page(off, bio->len - at);
        const uint8_t *page = page_at(m, off, false);
        if (page)
            gr_iov_put(bio->iov, bio->iovcnt, at, page + (off & (PAGE - 1)), n);
        else
            gr_iov_zero(bio->iov, bio->iovcnt, at, n);
    }
}

static int mem_write(struct gr_mem *m, const struct gr_bio *bio, const struct iovec *iov, int iovcnt)
{
    /* All pages first: out of memory changes nothing. */
    for (uint64_t at = 0; at < bio->len; at += in_page(bio->off + at, bio->len - at))
        if (!page_at(m, bio->off + at, true))
            return -ENOMEM;
    for (uint64_t at = 0, n; at < bio->len; at += n) {
        uint64_t off = bio->off + at;
        n = in_page(off, bio->len - at);
        gr_iov_get(iov, iovcnt, at, page_at(m, off, false) + (off & (PAGE - 1)), n);
    }
    return 0;
}

static void mem_zero(struct gr_mem *m, const struct gr_bio *bio, bool give_back)
{
    for (uint64_t at = 0, n; at < bio->len; at += n) {
        uint64_t off = bio->off + at;
        n = in_tree(m, off, bio->len - at);
        void **slot = page_slot(m, off, false);
        if (!slot || !*slot)
            continue;
        if (n == PAGE && give_back) {
            free(*slot);
            *slot = NULL;
        } else {
            memset((uint8_t *)*slot + (off & (PAGE - 1)), 0, n);
        }
    }
}

static int mem_compare_write(struct gr_mem *m, struct gr_bio *bio)
{
    static const uint8_t zeros[PAGE];

    if (bio->len > MAX_COMPARE)
        return -EINVAL;
    for (uint64_t at = 0, n; at < bio->len; at += n) {
        uint64_t off = bio->off + at;
        n = in_page(off, bio->len - at);
        const uint8_t *page = page_at(m, off, false);
        size_t same = gr_iov_diff(bio->iov, bio->iovcnt, at, page ? page + (off & (PAGE - 1)) : zeros, n);
        if (same < n) {
            bio->miscompare_off = at + same;
            return -GR_EMISCOMPARE;
        }
    }
    return mem_write(m, bio, bio->iov2, bio->iovcnt2);
}

static int mem_extents(struct gr_mem *m, struct gr_bio *bio)
{
    if (bio->base)
        return -EOPNOTSUPP;
    for (uint64_t at = 0, n; at < bio->len; at += n) {
        uint64_t off = bio->off + at;
        n = in_tree(m, off, bio->len - at);
        uint32_t flags = page_at(m, off, false) ? GR_EXTENT_DATA : GR_EXTENT_ZERO | GR_EXTENT_HOLE;
        struct gr_extent *last = bio->n_extents ? &bio->extents[bio->n_extents - 1] : NULL;
        if (last && last->flags == flags) {
            last->len += n;
            continue;
        }
        if (bio->n_extents == bio->max_extents)
            break;
        bio->extents[bio->n_extents++] = (struct gr_extent){.off = off, .len = n, .flags = flags, .changed = true};
    }
    return 0;
}

/* ---- the fence ---- */
static struct mem_nexus *nexus_of(struct gr_mem *m, const struct gr_bdev *bdev)
{
    for (unsigned i = 0; i < m->n_nexuses; i++)
        if (m->nexus[i].bdev == bdev)
            return &m->nexus[i];
    return NULL;
}

static bool shut_out(struct mem_bdev *b)
{
    return b->shared && (b->fenced || (b->mem->holder && !nexus_of(b->mem, &b->base)));
}

static int mem_enter(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    struct mem_bdev *b = (struct mem_bdev *)bdev;
    struct gr_mem *m = b->mem;
    int r = 0;

    pthread_mutex_lock(&m->lock);
    struct mem_nexus *n = nexus_of(m, bdev);
    if (!n && m->n_nexuses < MAX_NEXUSES)
        n = &m->nexus[m->n_nexuses++];
    if (n) {
        if (m->holder && n->bdev == bdev && m->holder == n->key)
            m->holder = key;
        *n = (struct mem_nexus){key, bdev};
        m->holder = m->holder ? m->holder : key;
        b->fenced = false;
    } else {
        r = gr_fail(err, -ENOSPC, "'%s': %d registrations are all it takes", bdev->name, MAX_NEXUSES);
    }
    pthread_mutex_unlock(&m->lock);
    return r;
}

static int mem_leave(struct gr_bdev *bdev, struct gr_err *err)
{
    struct gr_mem *m = ((struct mem_bdev *)bdev)->mem;

    (void)err;
    pthread_mutex_lock(&m->lock);
    struct mem_nexus *n = nexus_of(m, bdev);
    if (n && n->key == m->holder)
        n->bdev = NULL;
    else if (n)
        *n = m->nexus[--m->n_nexuses];
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static int mem_eject(struct gr_bdev *bdev, uint64_t key, struct gr_err *err)
{
    struct mem_bdev *b = (struct mem_bdev *)bdev;
    struct gr_mem *m = b->mem;
    int r = 0;

    pthread_mutex_lock(&m->lock);
    const struct mem_nexus *own = nexus_of(m, bdev);
    uint64_t mine = own ? own->key : 0;
    if (!own || b->fenced) {
        r = gr_fail(err, -GR_EFENCED, "'%s': not registered ourselves", bdev->name);
    } else {
        for (unsigned i = m->n_nexuses; i-- > 0;)
            if (m->nexus[i].key == key && m->nexus[i].bdev != bdev)
                m->nexus[i] = m->nexus[--m->n_nexuses];
        if (m->holder == key)
            m->holder = mine;
    }
    pthread_mutex_unlock(&m->lock);
    return r;
}

static int mem_keys(struct gr_bdev *bdev, uint64_t *keys, unsigned max, unsigned *ret_n, struct gr_err *err)
{
    struct gr_mem *m = ((struct mem_bdev *)bdev)->mem;
    unsigned n = 0;

    (void)err;
    pthread_mutex_lock(&m->lock);
    for (unsigned i = 0; i < m->n_nexuses; i++) {
        unsigned k = 0;
        while (k < i && m->nexus[k].key != m->nexus[i].key)
            k++;
        if (k == i && n++ < max)
            keys[n - 1] = m->nexus[i].key;
    }
    pthread_mutex_unlock(&m->lock);
    *ret_n = n;
    return 0;
}

static int mem_clear(struct gr_bdev *bdev, struct gr_err *err)
{
    struct gr_mem *m = ((struct mem_bdev *)bdev)->mem;

    (void)err;
    pthread_mutex_lock(&m->lock);
    m->n_nexuses = 0;
    m->holder = 0;
    pthread_mutex_unlock(&m->lock);
    return 0;
}

static const struct gr_fence_ops mem_fence = {
    .enter = mem_enter, .leave = mem_leave, .eject = mem_eject, .keys = mem_keys, .clear = mem_clear,
};

static int mem_do(struct mem_bdev *b, struct gr_bio *bio)
{
    struct gr_mem *m = b->mem;
    int r = 0;

    switch (bio->op) {
    case GR_OP_READ:
        mem_read(m, bio);
        break;
    case GR_OP_WRITE:
        r = mem_write(m, bio, bio->iov, bio->iovcnt);
        break;
    case GR_OP_UNMAP:
        mem_zero(m, bio, true);
        break;
    case GR_OP_WRITE_ZEROES:
        mem_zero(m, bio, bio->flags & GR_BIO_MAY_UNMAP);
        break;
    case GR_OP_COMPARE_WRITE:
        r = mem_compare_write(m, bio);
        break;
    case GR_OP_EXTENTS:
        r = mem_extents(m, bio);
        break;
    case GR_OP_SCRUB:
    case GR_OP_COPY:
        r = -EOPNOTSUPP;
        break;
    case GR_OP_FLUSH:
        break;
    }
    return r;
}

static void mem_submit(struct gr_chan *ch, struct gr_bio *bio)
{
    struct mem_bdev *b = (struct mem_bdev *)ch->bdev;

    pthread_mutex_lock(&b->mem->lock);
    bool out = shut_out(b), news = out && !b->fenced;
    b->fenced = out;
    int r = out ? -GR_EFENCED : mem_do(b, bio);
    pthread_mutex_unlock(&b->mem->lock);
    if (news)
        gr_bdev_event(&b->base, GR_EVENT_FENCED);
    gr_bio_end(bio, r);
}

static int mem_geometry(struct gr_bdev *bdev, struct gr_geometry *ret)
{
    const struct mem_bdev *b = (const struct mem_bdev *)bdev;

    *ret = (struct gr_geometry){.size = b->mem->size, .logical_block = 512, .physical_block = 4096, .unmap_granule = 512, .optimal_io = 4096, .thin = true, .in_memory = true};
    return 0;
}

/* ---- named locks ---- */
static int mem_trylock(struct gr_bdev *bdev, uint64_t key)
{
    struct gr_mem *m = ((struct mem_bdev *)bdev)->mem;
    struct mem_lock *new = gr_zalloc(sizeof(*new));

    if (!new)
        return -ENOMEM;
    *new = (struct mem_lock){.key = key, .owner = bdev};
    pthread_mutex_lock(&m->lock);
    struct mem_lock *l = m->locks;
    while (l && l->key != key)
        l = l->next;
    if (!l) {
        new->next = m->locks;
        m->locks = new;
    }
    pthread_mutex_unlock(&m->lock);
    if (!l)
        return 0;
    free(new);
    return -EBUSY;
}

/* Drop @bdev's lock of *@key, or all of them (NULL). */
static void drop_locks(struct gr_bdev *bdev, const uint64_t *key)
{
    struct gr_mem *m = ((struct mem_bdev *)bdev)->mem;

    pthread_mutex_lock(&m->lock);
    for (struct mem_lock **p = &m->locks; *p;) {
        struct mem_lock *l = *p;
        if (l->owner == bdev && (!key || l->key == *key)) {
            *p = l->next;
            free(l);
        } else {
            p = &l->next;
        }
    }
    pthread_mutex_unlock(&m->lock);
}

static void mem_unlock(struct gr_bdev *bdev, uint64_t key)
{
    drop_locks(bdev, &key);
}

static void mem_close(struct gr_bdev *bdev)
{
    struct gr_mem *m = ((struct mem_bdev *)bdev)->mem;

    drop_locks(bdev, NULL);
    pthread_mutex_lock(&m->lock);
    struct mem_nexus *n = nexus_of(m, bdev);
    if (n)
        n->bdev = NULL;
    pthread_mutex_unlock(&m->lock);
    free(bdev);
}

static const struct gr_bdev_ops mem_ops = {
    .type = "mem",
    .submit = mem_submit,
    .geometry = mem_geometry,
    .close = mem_close,
    .trylock = mem_trylock,
    .unlock = mem_unlock,
};

static const struct gr_bdev_ops shared_ops = {
    .type = "mem",
    .submit = mem_submit,
    .geometry = mem_geometry,
    .close = mem_close,
};

static int mem_open(struct gr_mem *m, bool shared, struct gr_bdev **ret)
{
    struct mem_bdev *b = gr_zalloc(sizeof(*b));

    if (!b)
        return -ENOMEM;
    gr_bdev_init(&b->base, shared ? &shared_ops : &mem_ops, "mem");
    b->base.fence = shared ? &mem_fence : NULL;
    b->mem = m;
    b->shared = shared;
    *ret = &b->base;
    return 0;
}

int gr_bdev_mem_open(struct gr_loop *loop, struct gr_mem *m, struct gr_bdev **ret)
{
    (void)loop;
    return mem_open(m, false, ret);
}

int gr_bdev_mem_open_shared(struct gr_loop *loop, struct gr_mem *m, struct gr_bdev **ret)
{
    (void)loop;
    return mem_open(m, true, ret);
}
