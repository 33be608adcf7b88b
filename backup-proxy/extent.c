/* Extents: encode, read, probe. */
#include "backup-proxy/repo_dir.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/seam.h"
#include <fcntl.h>
#include <inttypes.h>
#include <nettle/sha2.h>
#include <string.h>
#include <zstd.h>

void bp_sha256(const void *p, size_t len, uint8_t ret[32])
{
    struct sha256_ctx c;
    sha256_init(&c);
    sha256_update(&c, len, p);
    sha256_digest(&c, 32, ret);
}
void bp_ref_encode(const struct bp_ref *ref, struct ref_disk *ret)
{
    *ret = (struct ref_disk){gr_le64_of(ref->pack), gr_le32_of(ref->off), gr_le32_of(ref->stored), gr_le32_of(ref->raw), {0}};
    memcpy(ret->hash, ref->hash, 32);
}
void bp_ref_decode(const struct ref_disk *d, struct bp_ref *ret)
{
    *ret = (struct bp_ref){gr_le64_get(d->pack), gr_le32_get(d->off), gr_le32_get(d->stored), gr_le32_get(d->raw), {0}};
    memcpy(ret->hash, d->hash, 32);
}
void bp_codec_done(struct bp_codec *c)
{
    ZSTD_freeCCtx(c->zc);
    ZSTD_freeDCtx(c->zd);
    free(c->buf);
    *c = (struct bp_codec){0};
}
static int codec_room(struct bp_codec *c, size_t len)
{
    if (c->cap >= len)
        return 0;
    uint8_t *p = gr_realloc(c->buf, len);
    if (!p)
        return -ENOMEM;
    c->buf = p;
    c->cap = len;
    return 0;
}

int bp_extent_encode(struct bp_codec *c, enum repo_kind kind, const void *raw, uint32_t len, const uint8_t *hash, int level, uint8_t *out)
{
    struct extent_header_disk h = {.magic = gr_le32_of(EXTENT_MAGIC), .kind = (uint8_t)kind, .codec = REPO_ZSTD, .raw = gr_le32_of(len)};
    if (len == 0 || len > REPO_UNIT)
        return -EINVAL;
    if (!c->zc && !(c->zc = ZSTD_createCCtx()))
        return -ENOMEM;
    if (hash)
        memcpy(h.hash, hash, 32);
    else
        bp_sha256(raw, len, h.hash);
    size_t n = ZSTD_compressCCtx(c->zc, out + sizeof h, len - len / 16, raw, len, level); /* worth it from 1/16 on */
    if (ZSTD_isError(n)) {
        h.codec = REPO_RAW;
        n = len;
        memcpy(out + sizeof h, raw, len);
    }
    h.stored = gr_le32_of((uint32_t)n);
    h.payload_crc = gr_le32_of(gr_crc32c(0, out + sizeof h, n));
    memcpy(out, &h, sizeof h);
    size_t total = (sizeof h + n + REPO_ALIGN - 1) & ~(size_t)(REPO_ALIGN - 1);
    memset(out + sizeof h + n, 0, total - sizeof h - n);
    return (int)total;
}

/* Header and payload at pack:off into c->buf; what is stored there is intact. */
static int extent_load(struct bp_repo *r, struct bp_codec *c, uint64_t pack, uint32_t off, uint32_t stored, struct extent_header_disk *ret,
                       struct gr_err *err)
{
    int fd = -1;
    if (stored == 0 || stored > REPO_UNIT || off < sizeof(struct pack_header_disk) || off > INT32_MAX)
        return gr_fail(err, -GR_ECORRUPT, "an extent of %u bytes at %u cannot be", stored, off);
    size_t len = sizeof *ret + stored;
    int rc = codec_room(c, len);
    if (rc == 0)
        rc = repo_pack_get(r, pack, &fd, err);
    if (rc < 0)
        return rc;
    rc = gr_file_pread(fd, c->buf, len, off);
    repo_pack_put(r, pack, fd);
    if (rc < 0)
        return gr_fail(err, rc, "cannot read %zu bytes at %u: %s", len, off, gr_code_text(rc));
    memcpy(ret, c->buf, sizeof *ret);
    if (gr_le32_get(ret->magic) != EXTENT_MAGIC || gr_le32_get(ret->crc) != gr_crc32c(0, ret, offsetof(struct extent_header_disk, crc)) ||
        gr_le32_get(ret->self) != off || gr_le32_get(ret->stored) != stored)
        return gr_fail(err, -GR_ECORRUPT, "the extent header at %u is damaged", off);
    if (gr_le32_get(ret->payload_crc) != gr_crc32c(0, c->buf + sizeof *ret, stored))
        return gr_fail(err, -GR_ECORRUPT, "the extent at %u fails its CRC", off);
    return 0;
}

static int extent_unpack(struct bp_codec *c, const struct extent_header_disk *h, const struct bp_ref *ref, void *raw, struct gr_err *err)
{
    uint8_t hash[32];
    const uint8_t *payload = c->buf + sizeof *h;
    if (h->codec == REPO_RAW) {
        if (ref->stored != ref->raw)
            return gr_fail(err, -GR_ECORRUPT, "the extent at %u has the wrong length", ref->off);
        memcpy(raw, payload, ref->raw);
    } else {
        if (h->codec != REPO_ZSTD)
            return gr_fail(err, -GR_EVERSION, "the extent at %u uses codec %u", ref->off, h->codec);
        if (!c->zd && !(c->zd = ZSTD_createDCtx()))
            return gr_fail(err, -ENOMEM, "out of memory");
        size_t n = ZSTD_decompressDCtx(c->zd, raw, ref->raw, payload, ref->stored); /* output bounded by what the map recorded */
        if (ZSTD_isError(n) || n != ref->raw)
            return gr_fail(err, -GR_ECORRUPT, "the extent at %u does not unpack", ref->off);
    }
    bp_sha256(raw, ref->raw, hash);
    if (memcmp(hash, ref->hash, 32))
        return gr_fail(err, -GR_ECORRUPT, "the extent at %u does not have the bytes that were backed up", ref->off);
    return 0;
}

int bp_extent_read(struct bp_repo *r, struct bp_codec *c, enum repo_kind kind, const struct bp_ref *ref, void *raw, struct gr_err *err)
{
    struct extent_header_disk h;
    struct gr_err inner = {0};
    int rc = ref->raw == 0 || ref->raw > REPO_UNIT ? gr_fail(&inner, -GR_ECORRUPT, "an extent of %u raw bytes cannot be", ref->raw) : 0;
    if (rc == 0)
        rc = extent_load(r, c, ref->pack, ref->off, ref->stored, &h, &inner);
    if (rc == 0 && (h.kind != kind || gr_le32_get(h.raw) != ref->raw || memcmp(h.hash, ref->hash, 32)))
        rc = gr_fail(&inner, -GR_ECORRUPT, "the extent at %u is another than the map names", ref->off);
    if (rc == 0)
        rc = extent_unpack(c, &h, ref, raw, &inner);
    if (rc < 0)
        return gr_fail(err, rc == -ENOENT ? -GR_ECORRUPT : rc, "pack %016" PRIx64 ": %s", ref->pack, gr_err_text(&inner, rc));
    return 0;
}

int bp_extent_probe(struct bp_repo *r, struct bp_codec *c, uint64_t pack, uint32_t off, uint32_t stored, const uint8_t hash[32],
                    struct bp_ref *ret)
{
    struct extent_header_disk h;
    if (extent_load(r, c, pack, off, stored, &h, NULL) < 0 || h.kind != REPO_DATA || memcmp(h.hash, hash, 32))
        return 0;
    *ret = (struct bp_ref){.pack = pack, .off = off, .stored = stored, .raw = gr_le32_get(h.raw)};
    memcpy(ret->hash, hash, 32);
    return ret->raw > 0 && ret->raw <= REPO_UNIT;
}
