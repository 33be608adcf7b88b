/* The index of hashes: a lossy table in a sparse file, and the markers of condemned packs. An entry is only a hint: the extent it
 * names is read and checked before it is used, so that the table may be stale, torn or lost. */
#include "backup-proxy/repo_dir.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

static uint64_t prefix_of(const uint8_t hash[32])
{
    uint64_t p = gr_get_le64(hash);
    return p ? p : 1;
}
static uint64_t bucket_at(const uint8_t hash[32])
{
    return (gr_get_le64(hash + 8) % DEDUPE_BUCKETS) * sizeof(struct dedupe_bucket_disk);
}

int bp_dedupe_find(struct bp_repo *r, struct bp_codec *c, const uint8_t hash[32], uint32_t raw, struct bp_ref *ret)
{
    struct dedupe_bucket_disk b;
    if (r->index_fd < 0 || repo_pread(r->index_fd, &b, sizeof b, bucket_at(hash)) < 0)
        return 0;
    for (unsigned i = 0; i < DEDUPE_WAYS; i++) {
        uint64_t pack = gr_le64_get(b.e[i].pack);
        if (gr_le64_get(b.e[i].prefix) != prefix_of(hash) || bp_condemned(r, pack))
            continue;
        if (bp_extent_probe(r, c, pack, gr_le32_get(b.e[i].off), gr_le32_get(b.e[i].stored), hash, ret) && ret->raw == raw)
            return 1;
    }
    return 0;
}
void bp_dedupe_add(struct bp_repo *r, const struct bp_ref *ref)
{
    struct dedupe_bucket_disk b;
    uint64_t at = bucket_at(ref->hash), prefix = prefix_of(ref->hash);
    if (r->index_fd < 0)
        return;
    if (repo_pread(r->index_fd, &b, sizeof b, at) < 0)
        memset(&b, 0, sizeof b); /* behind the end of the file so far */
    unsigned way = ref->hash[16] % DEDUPE_WAYS;
    for (unsigned i = 0; i < DEDUPE_WAYS; i++)
        if (gr_le64_get(b.e[i].prefix) == 0 || gr_le64_get(b.e[i].prefix) == prefix) {
            way = i;
            break;
        }
    b.e[way] = (struct dedupe_entry_disk){gr_le64_of(prefix), gr_le64_of(ref->pack), gr_le32_of(ref->off), gr_le32_of(ref->stored)};
    (void)repo_pwrite(r->index_fd, &b, sizeof b, at);
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
