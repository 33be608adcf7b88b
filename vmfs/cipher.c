/* AES-256-XTS of pieces and the wrapping of data keys. AES, GCM and SHA-256 are Nettle's, which uses the CPU's instructions; the mode is
 * here, because the library's goes block by block and has its keys in memory that is not ours to lock. */
#include "vmfs/cipher.h"
#include "common/cleanup.h"
#include "common/iov.h"
#include "common/seam.h"
#include <nettle/aes.h>
#include <nettle/gcm.h>
#include <nettle/sha2.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIECE VMFS_UNIT
#define STRETCH 64u /* blocks: 1 KiB and its tweaks stay in the nearest cache */

struct data_key {
    uint64_t from;
    struct aes256_ctx encrypt, decrypt, tweak;
};
struct vcipher {
    unsigned refs, n, room;
    size_t mapped; /* bytes */
    struct data_key key[];
};

/* ---- wrapping ---- */
uint64_t vcipher_kek_id(const uint8_t kek[VMFS_KEK_BYTES])
{
    static const uint8_t label[] = "granary key number 1";
    struct sha256_ctx h;
    uint8_t sum[8];
    uint64_t id = 0;
    sha256_init(&h);
    sha256_update(&h, sizeof label, label);
    sha256_update(&h, VMFS_KEK_BYTES, kek);
    sha256_digest(&h, sizeof sum, sum);
    explicit_bzero(&h, sizeof h);
    for (unsigned i = 0; i < sizeof sum; i++)
        id = id << 8 | sum[i];
    return id == 0 || id == VMFS_KEY_ERASED ? 1 : id;
}

/* What cannot be altered without being noticed: what the key is for. */
static void gcm_begin(struct gcm_aes256_ctx *g, const uint8_t kek[VMFS_KEK_BYTES], uint64_t from, const uint8_t nonce[VMFS_KEY_NONCE])
{
    struct {
        char label[24];
        gr_le64 from;
    } what = { "granary data key 1", gr_le64_of(from) };
    gcm_aes256_set_key(g, kek);
    gcm_aes256_set_iv(g, VMFS_KEY_NONCE, nonce);
    gcm_aes256_update(g, sizeof what, (const uint8_t *)&what);
}

void vcipher_wrap(const uint8_t kek[VMFS_KEK_BYTES], uint64_t from, const uint8_t data[VMFS_DATA_KEY_BYTES], const uint8_t nonce[VMFS_KEY_NONCE],
                  struct vkey *ret)
{
    struct gcm_aes256_ctx g;
    *ret = (struct vkey){ .from = from, .kek = vcipher_kek_id(kek) };
    memcpy(ret->nonce, nonce, sizeof ret->nonce);
    gcm_begin(&g, kek, from, nonce);
    gcm_aes256_encrypt(&g, sizeof ret->wrapped, ret->wrapped, data);
    gcm_aes256_digest(&g, sizeof ret->tag, ret->tag);
    explicit_bzero(&g, sizeof g);
}

int vcipher_unwrap(const uint8_t kek[VMFS_KEK_BYTES], const struct vkey *k, uint8_t ret[VMFS_DATA_KEY_BYTES])
{
    struct gcm_aes256_ctx g;
    uint8_t tag[VMFS_KEY_TAG], differs = 0;
    gcm_begin(&g, kek, k->from, k->nonce);
    gcm_aes256_decrypt(&g, sizeof k->wrapped, ret, k->wrapped);
    gcm_aes256_digest(&g, sizeof tag, tag);
    explicit_bzero(&g, sizeof g);
    for (unsigned i = 0; i < sizeof tag; i++)
        differs |= tag[i] ^ k->tag[i];
    if (!differs)
        return 0;
    explicit_bzero(ret, VMFS_DATA_KEY_BYTES);
    return -GR_EAUTH;
}

/* ---- keys in memory ---- */
struct vcipher *vcipher_new(unsigned n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = sizeof(struct vcipher) + n * sizeof(struct data_key);
    bytes = (bytes + page - 1) / page * page;
    struct vcipher *c = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (c == MAP_FAILED)
        return NULL;
    (void)mlock(c, bytes); /* as far as the limit of the process allows */
    (void)madvise(c, bytes, MADV_DONTDUMP);
    c->refs = 1;
    c->room = n;
    c->mapped = bytes;
    return c;
}

void vcipher_add(struct vcipher *c, uint64_t from, const uint8_t data[VMFS_DATA_KEY_BYTES])
{
    if (c->n == c->room)
        return;
    struct data_key *k = &c->key[c->n++];
    k->from = from;
    aes256_set_encrypt_key(&k->encrypt, data);
    aes256_set_decrypt_key(&k->decrypt, data);
    aes256_set_encrypt_key(&k->tweak, data + VMFS_DATA_KEY_BYTES / 2);
}

struct vcipher *vcipher_get(struct vcipher *c)
{
    if (c)
        c->refs++;
    return c;
}

void vcipher_put(struct vcipher *c)
{
    if (!c || --c->refs)
        return;
    size_t bytes = c->mapped;
    explicit_bzero(c, bytes);
    munmap(c, bytes);
}

int vcipher_key(const struct vcipher *c, uint64_t birth)
{
    int i = (int)c->n - 1;
    while (i >= 0 && c->key[i].from > birth)
        i--;
    return i < 0 ? -GR_ECORRUPT : i;
}

/* ---- XTS ---- */
typedef uint64_t block __attribute__((vector_size(16), aligned(1), may_alias));

/* A tweak times x, in the field of XTS. */
static inline void twice(uint64_t *lo, uint64_t *hi)
{
    uint64_t carry = (0 - (*hi >> 63)) & 0x87;
    *hi = *hi << 1 | *lo >> 63;
    *lo = *lo << 1 ^ carry;
}

/* The first tweak: E(unit), times x to the power of the block where we begin. */
static block tweak_at(const struct data_key *k, uint64_t piece, size_t skip)
{
    uint64_t unit[2] = { htole64(piece), 0 };
    aes256_encrypt(&k->tweak, sizeof unit, (uint8_t *)unit, (const uint8_t *)unit);
    uint64_t lo = le64toh(unit[0]), hi = le64toh(unit[1]);
    for (size_t j = skip / VCIPHER_BLOCK; j; j--)
        twice(&lo, &hi);
    return (block){ lo, hi };
}

typedef void (*aes)(const struct aes256_ctx *ctx, size_t len, uint8_t *dst, const uint8_t *src);

/* A stretch at a time: the bytes with their tweaks, through AES, and with the tweaks again. */
static void xts(const struct data_key *k, const struct aes256_ctx *ctx, aes fn, uint64_t piece, size_t skip, uint8_t *bytes, size_t len)
{
    block t[STRETCH], at = tweak_at(k, piece, skip);
    uint64_t lo = at[0], hi = at[1];
    for (size_t n; len; bytes += n * VCIPHER_BLOCK, len -= n * VCIPHER_BLOCK) {
        block *b = (block *)bytes;
        n = GR_MIN(len / VCIPHER_BLOCK, STRETCH);
        for (size_t i = 0; i < n; i++) {
            t[i] = (block){ htole64(lo), htole64(hi) };
            b[i] ^= t[i];
            twice(&lo, &hi);
        }
        fn(ctx, n * VCIPHER_BLOCK, bytes, bytes);
        for (size_t i = 0; i < n; i++)
            b[i] ^= t[i];
    }
}

void vcipher_encrypt(const struct vcipher *c, int key, uint64_t piece, size_t skip, uint8_t *bytes, size_t len)
{
    xts(&c->key[key], &c->key[key].encrypt, aes256_encrypt, piece, skip, bytes, len);
}

void vcipher_decrypt(const struct vcipher *c, int key, uint64_t piece, size_t skip, uint8_t *bytes, size_t len)
{
    xts(&c->key[key], &c->key[key].decrypt, aes256_decrypt, piece, skip, bytes, len);
}

void vcipher_encrypt_range(const struct vcipher *c, int key, uint64_t off, uint8_t *bytes, size_t len)
{
    for (size_t n; len; off += n, bytes += n, len -= n) {
        n = GR_MIN(len, PIECE - off % PIECE);
        vcipher_encrypt(c, key, off / PIECE, off % PIECE, bytes, n);
    }
}

void vcipher_decrypt_iov(const struct vcipher *c, int key, uint64_t off, const struct iovec *iov, int iovcnt, size_t len)
{
    size_t into = 0; /* of *iov */
    for (size_t n, at = 0; at < len; at += n) {
        n = GR_MIN(len - at, PIECE - (off + at) % PIECE);
        while (iovcnt > 1 && into >= iov->iov_len) {
            into -= iov->iov_len;
            iov++;
            iovcnt--;
        }
        if (iov->iov_len - into >= n) {
            vcipher_decrypt(c, key, (off + at) / PIECE, (off + at) % PIECE, (uint8_t *)iov->iov_base + into, n);
        } else { /* it lies in several parts */
            uint8_t whole[PIECE];
            gr_iov_get(iov, iovcnt, into, whole, n);
            vcipher_decrypt(c, key, (off + at) / PIECE, (off + at) % PIECE, whole, n);
            gr_iov_put(iov, iovcnt, into, whole, n);
        }
        into += n;
    }
}
