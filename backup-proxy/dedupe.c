/* The index of hashes: a lossy table in a sparse file, and the markers of condemned packs. An entry is only a hint: the extent it
 * names is read and checked before it is used, so that the table may be stale, torn or lost. */
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static uint64_t prefix_of(const uint8_t hash[32])
{
    uint64_t p = gr_get_le64(hash);
    return p ? p : 1;
}
static bool is_power(uint64_t n)
{
    return n && !(n & (n - 1));
}
void repo_index_open(struct bp_repo *r)
{
    struct stat st;
    r->index_fd = openat(r->dir, "index/dedupe", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (r->index_fd < 0)
        return;
    uint64_t n = fstat(r->index_fd, &st) < 0 ? 0 : (uint64_t)st.st_size / sizeof(struct dedupe_bucket_disk);
    if (!is_power(n) || n < DEDUPE_MIN || n > DEDUPE_MAX) { /* new, or not as we made it: start over */
        n = DEDUPE_MIN;
        if (ftruncate(r->index_fd, 0) < 0 || ftruncate(r->index_fd, (off_t)(n * sizeof(struct dedupe_bucket_disk))) < 0) {
            close(r->index_fd);
            r->index_fd = -1;
            return;
        }
    }
    r->index_buckets = (uint32_t)n;
}
void repo_index_close(struct bp_repo *r)
{
    if (r->index_fd >= 0)
        close(r->index_fd);
    for (unsigned i = 0; i < r->index_n_old; i++)
        close(r->index_old[i]);
}
/* The index in use, and where in it a hash belongs. */
static int index_of(struct bp_repo *r, uint64_t prefix, uint64_t *ret_at)
{
    pthread_mutex_lock(&r->lock);
    int fd = r->index_fd;
    *ret_at = r->index_buckets ? (prefix & (r->index_buckets - 1)) * sizeof(struct dedupe_bucket_disk) : 0;
    pthread_mutex_unlock(&r->lock);
    return fd;
}

int bp_dedupe_find(struct bp_repo *r, struct bp_codec *c, const uint8_t hash[32], uint32_t raw, struct bp_ref *ret)
{
    struct dedupe_bucket_disk b;
    uint64_t prefix = prefix_of(hash), at;
    int fd = index_of(r, prefix, &at);
    if (fd < 0 || gr_file_pread(fd, &b, sizeof b, at) < 0)
        return 0;
    for (unsigned i = 0; i < DEDUPE_WAYS; i++) {
        uint64_t pack = gr_le64_get(b.e[i].pack);
        if (gr_le64_get(b.e[i].prefix) != prefix || bp_condemned(r, pack))
            continue;
        if (bp_extent_probe(r, c, pack, gr_le32_get(b.e[i].off), gr_le32_get(b.e[i].stored), hash, ret) && ret->raw == raw)
            return 1;
    }
    return 0;
}

static void bucket_add(struct dedupe_bucket_disk *b, const struct dedupe_entry_disk *e)
{
    for (unsigned i = 0; i < DEDUPE_WAYS; i++)
        if (gr_le64_get(b->e[i].prefix) == 0) {
            b->e[i] = *e;
            return;
        }
}
#define CHUNK 256u /* buckets */
/* Bucket i of n goes to i and i + n of twice as many. */
static int index_split(int from, int to, uint32_t n)
{
    struct dedupe_bucket_disk *v = gr_alloc(3 * CHUNK * sizeof *v);
    int r = v ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < n; i += CHUNK) {
        struct dedupe_bucket_disk *lo = v + CHUNK, *hi = v + 2 * CHUNK;
        memset(lo, 0, 2 * CHUNK * sizeof *v);
        r = gr_file_pread(from, v, CHUNK * sizeof *v, (uint64_t)i * sizeof *v);
        for (uint32_t k = 0; r == 0 && k < CHUNK; k++)
            for (unsigned w = 0; w < DEDUPE_WAYS; w++)
                if (gr_le64_get(v[k].e[w].prefix))
                    bucket_add(gr_le64_get(v[k].e[w].prefix) & n ? &hi[k] : &lo[k], &v[k].e[w]);
        if (r == 0)
            r = gr_file_pwrite(to, lo, CHUNK * sizeof *v, (uint64_t)i * sizeof *v);
        if (r == 0)
            r = gr_file_pwrite(to, hi, CHUNK * sizeof *v, (uint64_t)(n + i) * sizeof *v);
    }
    free(v);
    return r;
}
static void index_grow(struct bp_repo *r)
{
    char tmp[64];
    uint32_t n = r->index_buckets;
    r->index_evicted = 0;
    if (n >= DEDUPE_MAX || r->index_n_old == GR_ARRAY_LEN(r->index_old))
        return;
    snprintf(tmp, sizeof tmp, "index/.new-%d", (int)getpid());
    gr_auto_close int fd = openat(r->dir, tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    if (index_split(r->index_fd, fd, n) < 0 || renameat(r->dir, tmp, r->dir, "index/dedupe") < 0) {
        (void)unlinkat(r->dir, tmp, 0); /* a smaller index finds less, that is all */
        return;
    }
    pthread_mutex_lock(&r->lock);
    r->index_old[r->index_n_old++] = r->index_fd;
    r->index_fd = gr_take_fd(&fd);
    r->index_buckets = 2 * n;
    pthread_mutex_unlock(&r->lock);
}
void bp_dedupe_add(struct bp_repo *r, const struct bp_ref *ref)
{
    struct dedupe_bucket_disk b;
    uint64_t prefix = prefix_of(ref->hash), at;
    int fd = index_of(r, prefix, &at);
    if (fd < 0 || gr_file_pread(fd, &b, sizeof b, at) < 0)
        return;
    unsigned way = ref->hash[16] % DEDUPE_WAYS;
    bool evict = true;
    for (unsigned i = 0; i < DEDUPE_WAYS; i++)
        if (gr_le64_get(b.e[i].prefix) == 0 || gr_le64_get(b.e[i].prefix) == prefix) {
            way = i;
            evict = false;
            break;
        }
    b.e[way] = (struct dedupe_entry_disk){gr_le64_of(prefix), gr_le64_of(ref->pack), gr_le32_of(ref->off), gr_le32_of(ref->stored)};
    (void)gr_file_pwrite(fd, &b, sizeof b, at);
    if (evict && ++r->index_evicted > r->index_buckets / 32)
        index_grow(r);
}

static void marker_name(uint64_t pack, char out[64])
{
    snprintf(out, 64, "condemned/%016" PRIx64, pack);
}
int bp_condemned(struct bp_repo *r, uint64_t pack)
{
    char name[64];
    marker_name(pack, name);
    return faccessat(r->dir, name, F_OK, 0) == 0 || errno != ENOENT;
}
int bp_condemn(struct bp_repo *r, uint64_t pack, struct gr_err *err)
{
    char name[64];
    marker_name(pack, name);
    gr_auto_close int fd = openat(r->dir, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 ? gr_fail(err, -errno, "%s/%s: cannot create: %s", r->path, name, gr_code_text(-errno)) : 0;
}
int bp_condemn_clear(struct bp_repo *r, uint64_t pack)
{
    char name[64];
    marker_name(pack, name);
    return unlinkat(r->dir, name, 0) < 0 && errno != ENOENT ? -errno : 0;
}
