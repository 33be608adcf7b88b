/* Packs: writing, sealing, listing, and the table of open ones. */
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/seam.h"
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define PENDING_MAX (4u << 20)
struct bp_packer {
    struct bp_repo *repo;
    const struct bp_lease *lease;
    int fd; /* -1: no pack is open */
    uint64_t id;
    char tmp[96];
    uint32_t flushed;       /* bytes of the pack that are written */
    struct gr_buf pending;  /* and what comes behind them */
    struct gr_buf entries;  /* trailer_entry_disk of the open pack */
    uint64_t total;
};

void bp_pack_name(uint64_t id, char out[64])
{
    snprintf(out, 64, "packs/%02x/%016" PRIx64 ".pack", (unsigned)(id >> 56), id);
}
void repo_pack_header(const struct bp_repo *r, uint64_t id, struct pack_header_disk *ret)
{
    *ret = (struct pack_header_disk){.magic = PACK_MAGIC, .version = gr_le32_of(REPO_VERSION), .id = gr_le64_of(id)};
    memcpy(ret->magic, PACK_MAGIC, 8);
    memcpy(ret->repo, r->uuid, 16);
    ret->crc = gr_le32_of(gr_crc32c(0, ret, offsetof(struct pack_header_disk, crc)));
}

/* ---- open packs ---- */
static int pack_open(struct bp_repo *r, uint64_t id, int *ret_fd, struct gr_err *err)
{
    char name[64];
    struct pack_header_disk h, want;
    bp_pack_name(id, name);
    gr_auto_close int fd = openat(r->dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return gr_fail(err, -errno, "cannot open %s: %s", name, gr_code_text(-errno));
    int rc = gr_file_pread(fd, &h, sizeof h, 0);
    if (rc < 0)
        return gr_fail(err, rc, "cannot read the header of %s: %s", name, gr_code_text(rc));
    repo_pack_header(r, id, &want);
    if (memcmp(&h, &want, sizeof h))
        return gr_fail(err, -GR_ECORRUPT, "the header of %s is damaged or another pack's", name);
    *ret_fd = gr_take_fd(&fd);
    return 0;
}
static int pack_cached(struct bp_repo *r, uint64_t id)
{
    for (unsigned i = 0; i < REPO_FDS; i++)
        if (r->fds[i].fd >= 0 && r->fds[i].pack == id) {
            r->fds[i].users++;
            r->fds[i].used = ++r->clock;
            return r->fds[i].fd;
        }
    return -1;
}
int repo_pack_get(struct bp_repo *r, uint64_t id, int *ret_fd, struct gr_err *err)
{
    pthread_mutex_lock(&r->lock);
    int fd = pack_cached(r, id);
    pthread_mutex_unlock(&r->lock);
    if (fd >= 0) {
        *ret_fd = fd;
        return 0;
    }
    int rc = pack_open(r, id, &fd, err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    int other = pack_cached(r, id);
    struct repo_fd *slot = NULL;
    for (unsigned i = 0; other < 0 && i < REPO_FDS; i++)
        if (r->fds[i].users == 0 && (!slot || r->fds[i].fd < 0 || (slot->fd >= 0 && r->fds[i].used < slot->used)))
            slot = &r->fds[i];
    int drop = other >= 0 ? fd : slot ? slot->fd : -1;
    if (slot)
        *slot = (struct repo_fd){.pack = id, .fd = fd, .users = 1, .used = ++r->clock};
    pthread_mutex_unlock(&r->lock);
    if (drop >= 0)
        close(drop);
    *ret_fd = other >= 0 ? other : fd; /* no slot free: closed when given back */
    return 0;
}
void repo_pack_put(struct bp_repo *r, uint64_t id, int fd)
{
    bool found = false;
    pthread_mutex_lock(&r->lock);
    for (unsigned i = 0; i < REPO_FDS && !found; i++)
        if (r->fds[i].fd == fd && r->fds[i].pack == id && r->fds[i].users > 0) {
            r->fds[i].users--;
            found = true;
        }
    pthread_mutex_unlock(&r->lock);
    if (!found)
        close(fd);
}

/* ---- writing ---- */
int bp_packer_new(struct bp_repo *r, const struct bp_lease *l, struct bp_packer **ret, struct gr_err *err)
{
    struct bp_packer *p = gr_zalloc(sizeof *p);
    if (!p)
        return gr_fail(err, -ENOMEM, "out of memory");
    p->repo = r;
    p->lease = l;
    p->fd = -1;
    *ret = p;
    return 0;
}
static int packer_open(struct bp_packer *p, struct gr_err *err)
{
    const struct gr_world *w = gr_world_real();
    struct pack_header_disk h;
    do
        w->random(w->arg, &p->id, sizeof p->id);
    while (p->id == 0);
    snprintf(p->tmp, sizeof p->tmp, "tmp/%s-%016" PRIx64 ".pack", bp_lease_id(p->lease), p->id);
    p->fd = openat(p->repo->dir, p->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (p->fd < 0)
        return gr_fail(err, -errno, "%s/%s: cannot create: %s", p->repo->path, p->tmp, gr_code_text(-errno));
    p->flushed = 0;
    p->pending.len = p->entries.len = 0;
    repo_pack_header(p->repo, p->id, &h);
    p->total += sizeof h;
    return gr_buf_add(&p->pending, &h, sizeof h) < 0 ? gr_fail(err, -ENOMEM, "out of memory") : 0;
}
int bp_packer_add(struct bp_packer *p, uint8_t *encoded, size_t len, struct bp_ref *ret, struct gr_err *err)
{
    struct extent_header_disk h;
    int rc = 0;
    if (p->fd >= 0 && p->flushed + p->pending.len + len > BP_PACK_BYTES)
        rc = bp_packer_seal(p, err);
    if (rc == 0 && p->fd < 0)
        rc = packer_open(p, err);
    if (rc < 0)
        return rc;
    memcpy(&h, encoded, sizeof h);
    uint32_t off = p->flushed + (uint32_t)p->pending.len;
    h.self = gr_le32_of(off);
    h.crc = gr_le32_of(gr_crc32c(0, &h, offsetof(struct extent_header_disk, crc)));
    memcpy(encoded, &h, sizeof h);
    struct trailer_entry_disk e = {.off = gr_le32_of(off), .raw = h.raw, .stored = h.stored, .kind = h.kind, .codec = h.codec};
    memcpy(e.hash, h.hash, 32);
    if (gr_buf_add(&p->pending, encoded, len) < 0 || gr_buf_add(&p->entries, &e, sizeof e) < 0)
        return gr_fail(err, -ENOMEM, "out of memory for a pack");
    p->total += len;
    *ret = (struct bp_ref){.pack = p->id, .off = off, .stored = gr_le32_get(h.stored), .raw = gr_le32_get(h.raw)};
    memcpy(ret->hash, h.hash, 32);
    return 0;
}
int bp_packer_full(const struct bp_packer *p)
{
    return p->pending.len >= PENDING_MAX;
}
int bp_packer_flush(struct bp_packer *p, struct gr_err *err)
{
    if (p->pending.len == 0)
        return 0;
    int rc = gr_file_pwrite(p->fd, p->pending.data, p->pending.len, p->flushed);
    if (rc < 0)
        return gr_fail(err, rc, "%s/%s: cannot write: %s", p->repo->path, p->tmp, gr_code_text(rc));
    p->flushed += (uint32_t)p->pending.len;
    p->pending.len = 0;
    return 0;
}
static int packer_trailer(struct bp_packer *p)
{
    struct pack_end_disk end = {.id = gr_le64_of(p->id),
                                .count = gr_le32_of((uint32_t)(p->entries.len / sizeof(struct trailer_entry_disk))),
                                .trailer_off = gr_le32_of(p->flushed),
                                .trailer_crc = gr_le32_of(gr_crc32c(0, p->entries.data, p->entries.len))};
    memcpy(end.magic, PACK_END_MAGIC, 8);
    end.crc = gr_le32_of(gr_crc32c(0, &end, offsetof(struct pack_end_disk, crc)));
    if (fdatasync(p->fd) < 0)
        return -errno;
    int rc = gr_file_pwrite(p->fd, p->entries.data, p->entries.len, p->flushed);
    if (rc == 0)
        rc = gr_file_pwrite(p->fd, &end, sizeof end, p->flushed + p->entries.len);
    if (rc == 0 && fdatasync(p->fd) < 0)
        rc = -errno;
    p->total += p->entries.len + sizeof end;
    return rc;
}
static void packer_index(struct bp_packer *p)
{
    const struct trailer_entry_disk *e = (const void *)p->entries.data;
    for (size_t i = 0; i < p->entries.len / sizeof *e; i++) {
        if (e[i].kind != REPO_DATA)
            continue;
        struct bp_ref ref = {p->id, gr_le32_get(e[i].off), gr_le32_get(e[i].stored), gr_le32_get(e[i].raw), {0}};
        memcpy(ref.hash, e[i].hash, 32);
        bp_dedupe_add(p->repo, &ref);
    }
}
int bp_packer_seal(struct bp_packer *p, struct gr_err *err)
{
    char name[64], dir[64];
    if (p->fd < 0)
        return 0;
    int rc = bp_packer_flush(p, err);
    if (rc < 0)
        return rc;
    rc = packer_trailer(p);
    if (rc < 0)
        return gr_fail(err, rc, "%s/%s: cannot seal: %s", p->repo->path, p->tmp, gr_code_text(rc));
    bp_pack_name(p->id, name);
    snprintf(dir, sizeof dir, "%.8s", name);
    if (mkdirat(p->repo->dir, dir, 0700) == 0)
        rc = bp_repo_sync_dir(p->repo, "packs", err);
    if (rc == 0 && renameat2(p->repo->dir, p->tmp, p->repo->dir, name, RENAME_NOREPLACE) < 0)
        rc = gr_fail(err, -errno, "%s/%s: cannot publish: %s", p->repo->path, name, gr_code_text(-errno));
    if (rc == 0)
        rc = bp_repo_sync_dir(p->repo, dir, err);
    if (rc < 0)
        return rc;
    close(p->fd);
    p->fd = -1;
    packer_index(p);
    return 0;
}
uint64_t bp_packer_bytes(const struct bp_packer *p)
{
    return p->total;
}
void bp_packer_free(struct bp_packer *p)
{
    if (!p)
        return;
    if (p->fd >= 0) {
        (void)unlinkat(p->repo->dir, p->tmp, 0);
        close(p->fd);
    }
    gr_buf_done(&p->pending);
    gr_buf_done(&p->entries);
    free(p);
}

/* ---- reading whole packs ---- */
static int trailer_load(int fd, uint64_t id, uint64_t size, struct gr_buf *ret)
{
    struct pack_end_disk end;
    if (size < sizeof(struct pack_header_disk) + sizeof end || size > 2 * (uint64_t)BP_PACK_BYTES)
        return -GR_ECORRUPT;
    int rc = gr_file_pread(fd, &end, sizeof end, size - sizeof end);
    if (rc < 0)
        return rc;
    uint64_t len = (uint64_t)gr_le32_get(end.count) * sizeof(struct trailer_entry_disk), at = gr_le32_get(end.trailer_off);
    if (memcmp(end.magic, PACK_END_MAGIC, 8) || gr_le64_get(end.id) != id ||
        gr_le32_get(end.crc) != gr_crc32c(0, &end, offsetof(struct pack_end_disk, crc)) || len > size - sizeof end ||
        at != size - sizeof end - len)
        return -GR_ECORRUPT;
    if (gr_buf_reserve(ret, len + 1) < 0)
        return -ENOMEM;
    rc = gr_file_pread(fd, ret->data, len, at);
    ret->len = len;
    return rc < 0 ? rc : gr_le32_get(end.trailer_crc) == gr_crc32c(0, ret->data, len) ? 0 : -GR_ECORRUPT;
}
int bp_pack_each(struct bp_repo *r, uint64_t id, int (*fn)(void *arg, const struct trailer_entry_disk *e), void *arg, struct gr_err *err)
{
    struct stat st;
    gr_auto_buf struct gr_buf b = {0};
    int fd = -1, rc = repo_pack_get(r, id, &fd, err);
    if (rc < 0)
        return rc;
    rc = fstat(fd, &st) < 0 ? -errno : trailer_load(fd, id, (uint64_t)st.st_size, &b);
    repo_pack_put(r, id, fd);
    if (rc < 0)
        return gr_fail(err, rc, "pack %016" PRIx64 ": its trailer: %s", id, gr_code_text(rc));
    const struct trailer_entry_disk *e = (const void *)b.data;
    for (size_t i = 0; rc >= 0 && i < b.len / sizeof *e; i++)
        rc = fn(arg, &e[i]);
    return rc < 0 ? rc : 0;
}
static int list_one(struct bp_repo *r, const char *sub, int (*fn)(void *arg, uint64_t id, uint64_t bytes), void *arg, struct gr_err *err)
{
    gr_auto_free char *dir = gr_asprintf("packs/%s", sub);
    int dfd = dir ? openat(r->dir, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW) : -1;
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    if (!d)
        return gr_fail(err, -errno, "%s/packs/%s: cannot open: %s", r->path, sub, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));) {
        char *end = NULL, name[64];
        struct stat st;
        uint64_t id = strtoull(e->d_name, &end, 16);
        bp_pack_name(id, name);
        if (strcmp(name + 9, e->d_name) || fstatat(dfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
            continue; /* not one of ours */
        int rc = fn(arg, id, (uint64_t)st.st_size);
        if (rc < 0)
            return rc;
    }
    return 0;
}
int bp_pack_list(struct bp_repo *r, int (*fn)(void *arg, uint64_t id, uint64_t bytes), void *arg, struct gr_err *err)
{
    int dfd = openat(r->dir, "packs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    gr_auto_closedir DIR *d = dfd < 0 ? NULL : fdopendir(dfd);
    if (!d)
        return gr_fail(err, -errno, "%s/packs: cannot open: %s", r->path, gr_code_text(-errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (strlen(e->d_name) != 2 || strspn(e->d_name, "0123456789abcdef") != 2)
            continue;
        int rc = list_one(r, e->d_name, fn, arg, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}
int bp_pack_remove(struct bp_repo *r, uint64_t id, struct gr_err *err)
{
    char name[64];
    bp_pack_name(id, name);
    if (unlinkat(r->dir, name, 0) < 0 && errno != ENOENT)
        return gr_fail(err, -errno, "%s/%s: cannot remove: %s", r->path, name, gr_code_text(-errno));
    return 0;
}
