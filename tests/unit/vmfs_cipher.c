/* The cipher of pieces against published vectors and GnuTLS's XTS, and the wrapping of keys. */
#include "tests/lib/test.h"
#include "common/err.h"
#include "vmfs/cipher.h"
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <string.h>

static void hex(const char *text, uint8_t *ret, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned v;
        assert_int_equal(sscanf(text + 2 * i, "%2x", &v), 1);
        ret[i] = (uint8_t)v;
    }
}

static struct vcipher *with_key(const uint8_t key[64])
{
    struct vcipher *c = vcipher_new(1);
    assert_non_null(c);
    vcipher_add(c, 0, key);
    return c;
}

/* IEEE 1619-2007, annex B, vector 10: XTS-AES-256, data unit 0xff, 512 bytes 0..255 twice; the first 32 bytes of the ciphertext. */
static void vector_10(void **state)
{
    uint8_t key[64], bytes[512], first[32];
    hex("27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592", key, 64);
    hex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b", first, 32);
    for (unsigned i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)i;
    struct vcipher *c = with_key(key);
    vcipher_encrypt(c, 0, 0xff, 0, bytes, sizeof bytes);
    assert_memory_equal(bytes, first, sizeof first);
    vcipher_decrypt(c, 0, 0xff, 0, bytes, sizeof bytes);
    for (unsigned i = 0; i < sizeof bytes; i++)
        assert_int_equal(bytes[i], (uint8_t)i);
    vcipher_put(c);
}

/* Random keys, pieces and parts of pieces: what GnuTLS makes of the whole piece, we make of each part. */
static void like_gnutls(void **state)
{
    uint64_t seed = test_seed();
    for (unsigned n = test_cases(300); n; n--) {
        uint8_t key[64], whole[4096], theirs[4096], ours[4096], iv[16] = { 0 };
        for (unsigned i = 0; i < 64; i++)
            key[i] = (uint8_t)test_rand(&seed);
        for (unsigned i = 0; i < 4096; i++)
            whole[i] = (uint8_t)test_rand(&seed);
        uint64_t piece = test_rand(&seed) >> test_rand(&seed) % 64;
        for (unsigned i = 0; i < 8; i++)
            iv[i] = (uint8_t)(piece >> 8 * i);
        gnutls_datum_t k = { key, 64 }, v = { iv, 16 };
        gnutls_cipher_hd_t h;
        assert_int_equal(gnutls_cipher_init(&h, GNUTLS_CIPHER_AES_256_XTS, &k, &v), 0);
        assert_int_equal(gnutls_cipher_encrypt2(h, whole, 4096, theirs, 4096), 0);
        gnutls_cipher_deinit(h);
        struct vcipher *c = with_key(key);
        size_t skip = test_rand(&seed) % 256 * 16, len = (test_rand(&seed) % (256 - skip / 16) + 1) * 16;
        memcpy(ours, whole, 4096);
        vcipher_encrypt(c, 0, piece, skip, ours + skip, len);
        assert_memory_equal(ours + skip, theirs + skip, len);
        vcipher_decrypt(c, 0, piece, skip, ours + skip, len);
        assert_memory_equal(ours, whole, 4096);
        vcipher_put(c);
    }
}

/* A range of the disk in a vector cut anywhere. */
static void vectors(void **state)
{
    uint64_t seed = test_seed();
    static uint8_t flat[20480], bytes[20480];
    for (unsigned n = test_cases(200); n; n--) {
        uint8_t key[64];
        for (unsigned i = 0; i < 64; i++)
            key[i] = (uint8_t)test_rand(&seed);
        struct vcipher *c = with_key(key);
        size_t len = (test_rand(&seed) % 40 + 1) * 512;
        uint64_t off = test_rand(&seed) % 100 * 512;
        for (size_t i = 0; i < len; i++)
            flat[i] = bytes[i] = (uint8_t)test_rand(&seed);
        vcipher_encrypt_range(c, 0, off, bytes, len);
        assert_true(memcmp(flat, bytes, len) != 0);
        struct iovec iov[8];
        int cnt = 0;
        for (size_t at = 0; at < len;) {
            size_t part = cnt == 7 ? len - at : test_rand(&seed) % (len - at + 1);
            iov[cnt++] = (struct iovec){ bytes + at, part };
            at += part;
        }
        vcipher_decrypt_iov(c, 0, off, iov, cnt, len);
        assert_memory_equal(flat, bytes, len);
        vcipher_put(c);
    }
}

static void wrapping(void **state)
{
    uint8_t kek[32] = { 1, 2, 3 }, other[32] = { 1, 2, 4 }, data[64], back[64], nonce[VMFS_KEY_NONCE] = { 9 };
    struct vkey k;
    for (unsigned i = 0; i < 64; i++)
        data[i] = (uint8_t)(i * 3);
    vcipher_wrap(kek, 7, data, nonce, &k);
    assert_true(k.kek == vcipher_kek_id(kek) && k.kek != vcipher_kek_id(other) && k.from == 7);
    assert_true(memcmp(k.wrapped, data, 64) != 0);
    assert_int_equal(vcipher_unwrap(kek, &k, back), 0);
    assert_memory_equal(back, data, 64);
    static const uint8_t zero[64];
    assert_int_equal(vcipher_unwrap(other, &k, back), -GR_EAUTH);
    assert_memory_equal(back, zero, 64);
    struct vkey bad = k;
    bad.wrapped[63] ^= 1;
    assert_int_equal(vcipher_unwrap(kek, &bad, back), -GR_EAUTH);
    bad = k;
    bad.tag[0] ^= 1;
    assert_int_equal(vcipher_unwrap(kek, &bad, back), -GR_EAUTH);
    bad = k;
    bad.from = 8; /* which epoch it is for cannot be altered either */
    assert_int_equal(vcipher_unwrap(kek, &bad, back), -GR_EAUTH);
    for (unsigned i = 0; i < 32; i++) /* known answer: the number of a key is part of the format */
        kek[i] = (uint8_t)i;
    assert_true(vcipher_kek_id(kek) == 0xdbac7bc0f2e7f9cfull);
}

static void births(void **state)
{
    uint8_t a[64] = { 1 }, b[64] = { 2 };
    struct vcipher *c = vcipher_new(2);
    vcipher_add(c, 5, a);
    vcipher_add(c, 9, b);
    assert_int_equal(vcipher_key(c, 4), -GR_ECORRUPT);
    assert_int_equal(vcipher_key(c, 5), 0);
    assert_int_equal(vcipher_key(c, 8), 0);
    assert_int_equal(vcipher_key(c, 9), 1);
    assert_int_equal(vcipher_key(c, UINT64_MAX), 1);
    assert_ptr_equal(vcipher_get(c), c);
    vcipher_put(c);
    vcipher_put(c);
}

TEST_MAIN(TEST(vector_10), TEST(like_gnutls), TEST(vectors), TEST(wrapping), TEST(births))
