/* Stream-optimized writer, pipe profile (vmdk_format.h). Grains are compressed by several workers and written in order. */
#include "backup-proxy/pipe.h"
#include "backup-proxy/vmdk.h"
#include "backup-proxy/vmdk_format.h"
#include "backup-proxy/walk.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include <fcntl.h>
#include <isa-l/igzip_lib.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#define RUN_GRAINS 16u
#define RUN_BYTES (RUN_GRAINS * VMDK_GRAIN)
/* a grain that does not compress grows by deflate's block headers; with marker and padding this always fits */
#define GRAIN_ROOM (VMDK_GRAIN + 8192u)
#define MAX_SECTOR UINT32_MAX

struct grain_out {
    uint32_t sectors; /* marker, payload and padding; 0: the grain is zero */
};
struct vmdk_slot {
    uint64_t off, len; /* bytes of the disk; off is grain-aligned, len is short at the end only */
    uint8_t *in, *out, *level_buf;
    unsigned level;
    uint32_t level_size;
    unsigned grains;
    struct grain_out grain[RUN_GRAINS];
};
struct vmdk_writer {
    struct gr_chan *src;
    int fd;
    bool pipe;
    const struct bp_vmdk_opts *opts;
    struct bp_walk walk;
    struct gr_extent cur; /* what is left of the run under work */
    uint64_t taken;       /* bytes below this have been handed to a slot, or are zero */
    uint64_t size;
    uint64_t sector; /* next sector of the file */
    uint32_t gt[VMDK_GT_ENTRIES];
    bool gt_used;
    uint64_t gt_index;
    uint32_t *gd;
    uint64_t gd_len;
    struct bp_vmdk_stats stats;
};

/* ---- bytes to the file ---- */
struct write_job {
    int fd;
    const char *p;
    size_t len;
};
static int write_work(void *arg)
{
    struct write_job *j = arg;
    while (j->len > 0) {
        ssize_t n = write(j->fd, j->p, j->len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = j->fd, .events = POLLOUT};
            (void)poll(&p, 1, -1);
            continue;
        }
        if (n < 0)
            return -errno;
        j->p += n;
        j->len -= (size_t)n;
    }
    return 0;
}
static int put(struct vmdk_writer *w, const void *p, size_t len, struct gr_err *err)
{
    struct write_job j = {w->fd, p, len};
    if (len / VMDK_SECTOR > MAX_SECTOR - w->sector)
        return gr_fail(err, -EFBIG, "the VMDK would pass 2 TiB, which its 32-bit sector numbers cannot address");
    int r = w->pipe || len > 65536 ? gr_fiber_work(write_work, &j) : write_work(&j);
    if (r < 0)
        return gr_fail(err, r, "cannot write the VMDK at byte %llu: %s", (unsigned long long)w->sector * VMDK_SECTOR, gr_code_text(r));
    w->sector += len / VMDK_SECTOR;
    return 0;
}

static void header_fill(const struct vmdk_writer *w, uint64_t gd_off, struct vmdk_header_disk *ret)
{
    *ret = (struct vmdk_header_disk){
        .magic = gr_le32_of(VMDK_MAGIC),
        .version = gr_le32_of(3),
        .flags = gr_le32_of(VMDK_F_NEWLINE | VMDK_F_COMPRESSED | VMDK_F_MARKERS),
        .capacity = gr_le64_of((w->size + VMDK_SECTOR - 1) / VMDK_SECTOR),
        .grain_size = gr_le64_of(VMDK_GRAIN_SECTORS),
        .descriptor_off = gr_le64_of(1),
        .descriptor_size = gr_le64_of(VMDK_DESC_SECTORS),
        .gt_entries = gr_le32_of(VMDK_GT_ENTRIES),
        .gd_off = gr_le64_of(gd_off),
        .overhead = gr_le64_of(VMDK_OVERHEAD),
        .newline = {'\n', ' ', '\r', '\n'},
        .compress = gr_le16_of(1),
    };
}

static int descriptor_fill(const struct vmdk_writer *w, char *out, size_t room)
{
    const struct gr_world *world = gr_loop_world(gr_fiber_loop());
    uint32_t id[4];
    world->random(world->arg, id, sizeof id);
    id[3] = (id[3] & 0x7fffffffu) | 1; /* never one of the reserved 0xfffffffe, 0xffffffff */
    uint64_t sectors = (w->size + VMDK_SECTOR - 1) / VMDK_SECTOR, cyl = (sectors + 16064) / 16065;
    const char *name = w->opts->name ? w->opts->name : "disk.vmdk", *slash = strrchr(name, '/');
    char safe[128], uuid_line[96] = "";
    size_t n = 0;
    for (const char *c = slash ? slash + 1 : name; *c && n < sizeof safe - 1; c++)
        safe[n++] = *c == '"' || (unsigned char)*c < 0x20 ? '_' : *c;
    safe[n] = 0;
    if (w->opts->uuid) {
        const uint8_t *u = w->opts->uuid;
        snprintf(uuid_line, sizeof uuid_line,
                 "ddb.uuid = \"%02x %02x %02x %02x %02x %02x %02x %02x-%02x %02x %02x %02x %02x %02x %02x %02x\"\n", u[0], u[1], u[2],
                 u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    }
    return snprintf(out, room,
                    "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%08x\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n"
                    "# Extent description\nRW %llu SPARSE \"%s\"\n\n# The Disk Data Base\n#DDB\n\n"
                    "ddb.longContentID = \"%08x%08x%08x%08x\"\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"%llu\"\n"
                    "ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n"
                    "ddb.toolsInstallType = \"4\"\nddb.toolsVersion = \"2147483647\"\n%s",
                    id[3], (unsigned long long)sectors, safe, id[0], id[1], id[2], id[3], (unsigned long long)GR_MIN(cyl, 65535u), uuid_line);
}

static int put_front(struct vmdk_writer *w, struct gr_err *err)
{
    gr_auto_free char *front = gr_zalloc((size_t)VMDK_OVERHEAD * VMDK_SECTOR);
    if (!front)
        return gr_fail(err, -ENOMEM, "out of memory");
    struct vmdk_header_disk h;
    header_fill(w, VMDK_GD_AT_END, &h);
    memcpy(front, &h, sizeof h);
    int n = descriptor_fill(w, front + VMDK_SECTOR, (size_t)VMDK_DESC_SECTORS * VMDK_SECTOR);
    if (n < 0 || (size_t)n >= (size_t)VMDK_DESC_SECTORS * VMDK_SECTOR)
        return gr_fail(err, -EINVAL, "the VMDK descriptor does not fit its %u sectors", VMDK_DESC_SECTORS);
    return put(w, front, (size_t)VMDK_OVERHEAD * VMDK_SECTOR, err);
}

/* ---- markers and tables ---- */
static void marker_fill(uint64_t val, enum vmdk_marker type, struct vmdk_marker_disk *ret)
{
    *ret = (struct vmdk_marker_disk){.val = gr_le64_of(val), .type = gr_le32_of(type)};
}
static int put_gt(struct vmdk_writer *w, struct gr_err *err)
{
    struct {
        struct vmdk_marker_disk mark;
        gr_le32 entry[VMDK_GT_ENTRIES];
    } __attribute__((packed)) t;
    if (!w->gt_used)
        return 0;
    marker_fill(sizeof t.entry / VMDK_SECTOR, VMDK_MARK_GT, &t.mark);
    for (unsigned i = 0; i < VMDK_GT_ENTRIES; i++)
        t.entry[i] = gr_le32_of(w->gt[i]);
    uint64_t at = w->sector + 1;
    int r = put(w, &t, sizeof t, err);
    if (r < 0)
        return r;
    w->gd[w->gt_index] = (uint32_t)at;
    memset(w->gt, 0, sizeof w->gt);
    w->gt_used = false;
    return 0;
}
static int put_tail(struct vmdk_writer *w, struct gr_err *err)
{
    uint64_t gd_sectors = (w->gd_len * 4 + VMDK_SECTOR - 1) / VMDK_SECTOR;
    size_t len = (size_t)(1 + gd_sectors + 3) * VMDK_SECTOR;
    gr_auto_free char *t = gr_zalloc(len);
    if (!t)
        return gr_fail(err, -ENOMEM, "out of memory for the grain directory");
    struct vmdk_marker_disk m;
    struct vmdk_header_disk footer;
    marker_fill(gd_sectors, VMDK_MARK_GD, &m);
    memcpy(t, &m, sizeof m);
    for (uint64_t i = 0; i < w->gd_len; i++)
        gr_put_le32(t + VMDK_SECTOR + 4 * i, w->gd[i]);
    char *end = t + (1 + gd_sectors) * VMDK_SECTOR;
    marker_fill(1, VMDK_MARK_FOOTER, &m);
    memcpy(end, &m, sizeof m);
    header_fill(w, w->sector + 1, &footer);
    memcpy(end + VMDK_SECTOR, &footer, sizeof footer);
    return put(w, t, len, err); /* the last sector stays zero: the end-of-stream marker */
}

/* ---- the pipeline ---- */
/* Next run of at most RUN_BYTES that holds data, grown to whole grains. */
static int writer_next(void *arg, void *slot, struct gr_err *err)
{
    struct vmdk_writer *w = arg;
    struct vmdk_slot *s = slot;
    for (;;) {
        while (w->cur.len == 0 || w->cur.flags != GR_EXTENT_DATA || w->cur.off + w->cur.len <= w->taken) {
            int r = bp_walk_next(&w->walk, &w->cur);
            if (r < 0)
                return gr_fail(err, r, "%s: cannot list its extents: %s", w->src->bdev->name, gr_code_text(r));
            if (r == 0)
                return 0;
        }
        uint64_t from = GR_MAX(w->cur.off, w->taken) & ~(uint64_t)(VMDK_GRAIN - 1);
        uint64_t end = w->cur.off + w->cur.len;
        end = GR_MIN((end + VMDK_GRAIN - 1) & ~(uint64_t)(VMDK_GRAIN - 1), from + RUN_BYTES);
        s->off = from;
        s->len = GR_MIN(end, w->size) - from;
        s->grains = (unsigned)((s->len + VMDK_GRAIN - 1) / VMDK_GRAIN);
        w->taken = end;
        return 1;
    }
}
static int writer_load(void *arg, void *slot, struct gr_err *err)
{
    struct vmdk_writer *w = arg;
    struct vmdk_slot *s = slot;
    int r = gr_pread(w->src, s->in, s->len, s->off);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read %llu bytes at %llu: %s", w->src->bdev->name, (unsigned long long)s->len,
                       (unsigned long long)s->off, gr_code_text(r));
    memset(s->in + s->len, 0, s->grains * VMDK_GRAIN - s->len); /* the last grain is a full one */
    w->stats.read_bytes += s->len;
    return 0;
}
static int writer_work(void *slot)
{
    struct vmdk_slot *s = slot;
    uint8_t *out = s->out;
    for (unsigned i = 0; i < s->grains; i++) {
        const uint8_t *in = s->in + (size_t)i * VMDK_GRAIN;
        s->grain[i].sectors = 0;
        if (bp_is_zero(in, VMDK_GRAIN))
            continue;
        struct isal_zstream z;
        isal_deflate_stateless_init(&z);
        z.gzip_flag = IGZIP_ZLIB;
        z.level = s->level;
        z.level_buf = s->level_buf;
        z.level_buf_size = s->level_size;
        z.end_of_stream = 1;
        z.flush = NO_FLUSH;
        z.next_in = (uint8_t *)(uintptr_t)in;
        z.avail_in = VMDK_GRAIN;
        z.next_out = out + VMDK_GRAIN_MARKER;
        z.avail_out = GRAIN_ROOM - VMDK_GRAIN_MARKER - VMDK_SECTOR;
        if (isal_deflate_stateless(&z) != COMP_OK || z.total_out == 0)
            return -EIO;
        gr_put_le64(out, (s->off + (uint64_t)i * VMDK_GRAIN) / VMDK_SECTOR);
        gr_put_le32(out + 8, z.total_out);
        uint32_t used = VMDK_GRAIN_MARKER + z.total_out;
        s->grain[i].sectors = (used + VMDK_SECTOR - 1) / VMDK_SECTOR;
        memset(out + used, 0, s->grain[i].sectors * VMDK_SECTOR - used);
        out += s->grain[i].sectors * VMDK_SECTOR;
    }
    return 0;
}
static int writer_commit(void *arg, void *slot, struct gr_err *err)
{
    struct vmdk_writer *w = arg;
    struct vmdk_slot *s = slot;
    const uint8_t *p = s->out; /* bytes not yet written begin here */
    size_t pending = 0;
    for (unsigned i = 0; i < s->grains; i++) {
        uint64_t grain = s->off / VMDK_GRAIN + i;
        if (s->grain[i].sectors == 0)
            continue;
        if (grain / VMDK_GT_ENTRIES != w->gt_index) {
            int r = pending ? put(w, p, pending, err) : 0;
            if (r == 0)
                r = put_gt(w, err);
            if (r < 0)
                return r;
            p += pending;
            pending = 0;
            w->gt_index = grain / VMDK_GT_ENTRIES;
        }
        uint64_t at = w->sector + pending / VMDK_SECTOR;
        if (at > MAX_SECTOR)
            return gr_fail(err, -EFBIG, "the VMDK would pass 2 TiB, which its 32-bit sector numbers cannot address");
        w->gt[grain % VMDK_GT_ENTRIES] = (uint32_t)at;
        w->gt_used = true;
        w->stats.grains++;
        pending += (size_t)s->grain[i].sectors * VMDK_SECTOR;
    }
    int r = pending ? put(w, p, pending, err) : 0;
    if (r == 0 && w->opts->progress && (r = w->opts->progress(w->opts->arg, s->off + s->len, w->size)) < 0)
        gr_fail(err, r, "writing the VMDK was given up: %s", gr_code_text(r));
    return r;
}

static uint32_t level_room(unsigned level)
{
    static const uint32_t room[] = {ISAL_DEF_LVL0_DEFAULT, ISAL_DEF_LVL1_DEFAULT, ISAL_DEF_LVL2_DEFAULT, ISAL_DEF_LVL3_DEFAULT};
    return room[level];
}
static void slots_free(struct vmdk_slot *s, unsigned n)
{
    for (unsigned i = 0; s && i < n; i++) {
        free(s[i].in);
        free(s[i].out);
        free(s[i].level_buf);
    }
    free(s);
}
static struct vmdk_slot *slots_new(unsigned n, unsigned level)
{
    struct vmdk_slot *s = gr_zalloc(n * sizeof *s);
    for (unsigned i = 0; s && i < n; i++) {
        s[i].level = level;
        s[i].level_size = level_room(level);
        s[i].in = gr_alloc_aligned(4096, RUN_BYTES);
        s[i].out = gr_alloc(RUN_GRAINS * GRAIN_ROOM);
        s[i].level_buf = gr_alloc(s[i].level_size);
        if (!s[i].in || !s[i].out || !s[i].level_buf) {
            slots_free(s, n);
            return NULL;
        }
    }
    return s;
}

static int writer_run(struct vmdk_writer *w, struct gr_err *err)
{
    static const struct bp_pipe_ops ops = {writer_next, writer_load, writer_work, writer_commit};
    unsigned lanes = w->opts->lanes ? GR_MIN(w->opts->lanes, 16u) : 6, level = w->opts->level ? GR_MIN(w->opts->level, 3u) : 1;
    struct vmdk_slot *slots = slots_new(lanes, level);
    if (!slots)
        return gr_fail(err, -ENOMEM, "out of memory for %u workers", lanes);
    int r = put_front(w, err);
    if (r == 0)
        r = bp_pipe_run(&ops, w, slots, sizeof *slots, lanes, err);
    slots_free(slots, lanes);
    if (r == 0)
        r = put_gt(w, err);
    return r < 0 ? r : put_tail(w, err);
}

int bp_vmdk_export(struct gr_chan *src, int fd, const struct bp_vmdk_opts *opts, struct bp_vmdk_stats *ret_stats, struct gr_err *err)
{
    static const struct bp_vmdk_opts defaults;
    struct gr_geometry g;
    struct stat st;
    int r = gr_bdev_geometry(src->bdev, &g);
    if (r < 0)
        return gr_fail(err, r, "%s: cannot read its size: %s", src->bdev->name, gr_code_text(r));
    if (g.size == 0)
        return gr_fail(err, -EINVAL, "%s: is empty; a VMDK has at least one sector", src->bdev->name);
    gr_auto_free struct vmdk_writer *w = gr_zalloc(sizeof *w);
    if (!w || fstat(fd, &st) < 0)
        return gr_fail(err, w ? -errno : -ENOMEM, "cannot start the VMDK export");
    w->src = src;
    w->fd = fd;
    w->pipe = !S_ISREG(st.st_mode);
    w->opts = opts ? opts : &defaults;
    w->size = g.size;
    w->gd_len = ((g.size - 1) / VMDK_GRAIN) / VMDK_GT_ENTRIES + 1;
    gr_auto_free uint32_t *gd = gr_zalloc(w->gd_len * sizeof *gd);
    if (!gd)
        return gr_fail(err, -ENOMEM, "out of memory for a grain directory of %llu entries", (unsigned long long)w->gd_len);
    w->gd = gd;
    bp_walk_init(&w->walk, src, g.size, NULL);
    r = writer_run(w, err);
    if (r < 0)
        return r;
    w->stats.disk_bytes = g.size;
    w->stats.file_bytes = w->sector * VMDK_SECTOR;
    if (ret_stats)
        *ret_stats = w->stats;
    return 0;
}

static int sync_work(void *arg)
{
    return fsync(*(int *)arg) < 0 ? -errno : 0;
}
int bp_vmdk_export_file(struct gr_chan *src, const char *path, const struct bp_vmdk_opts *opts, struct bp_vmdk_stats *ret_stats,
                        struct gr_err *err)
{
    struct bp_vmdk_opts o = opts ? *opts : (struct bp_vmdk_opts){0};
    if (!o.name)
        o.name = path;
    if (access(path, F_OK) == 0)
        return gr_fail(err, -EEXIST, "%s: exists already", path);
    gr_auto_free char *tmp = gr_asprintf("%s.partial-%d", path, (int)getpid());
    if (!tmp)
        return gr_fail(err, -ENOMEM, "out of memory");
    gr_auto_close int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0)
        return gr_fail(err, -errno, "%s: cannot create: %s", tmp, gr_code_text(-errno));
    int r = bp_vmdk_export(src, fd, &o, ret_stats, err);
    if (r == 0 && (r = gr_fiber_work(sync_work, &fd)) < 0)
        gr_fail(err, r, "%s: cannot sync: %s", tmp, gr_code_text(r));
    if (r == 0 && renameat2(AT_FDCWD, tmp, AT_FDCWD, path, RENAME_NOREPLACE) < 0)
        r = gr_fail(err, -errno, "%s: cannot create: %s", path, gr_code_text(-errno));
    if (r < 0)
        (void)unlink(tmp);
    return r;
}
