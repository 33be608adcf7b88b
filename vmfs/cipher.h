/* Encryption of disks: data keys, wrapped and unwrapped, and the cipher of pieces. No I/O, no volume: vmfs/keys.c keeps the keys.
 *
 * Data is encrypted with AES-256-XTS (IEEE 1619). A data unit is a piece of 4096 bytes and its number is the piece's number in the disk,
 * so snapshots, reverts and clones share pieces as they are. XTS has no chain between its blocks of 16 bytes: a part of a piece is
 * encrypted and decrypted without the rest of it, and a write that was torn leaves old or new sectors, as without encryption.
 *
 * A disk has one or more data keys, each from an epoch on: the birth of a piece says which one it was written with. They are kept wrapped
 * (AES-256-GCM) with a key-encryption key, which is never on the volume.
 *
 * Threads: any context; a struct vcipher is of one loop. */
#ifndef VMFS_CIPHER_H
#define VMFS_CIPHER_H
#include "common/err.h"
#include "vmfs/format.h"
#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#define VCIPHER_BLOCK 16u /* bytes: offsets and lengths within a piece are multiples of it */

struct vkey { /* a data key, wrapped */
    uint64_t from; /* epoch */
    uint64_t kek;  /* number of the key it is wrapped with */
    uint8_t nonce[VMFS_KEY_NONCE], tag[VMFS_KEY_TAG], wrapped[VMFS_DATA_KEY_BYTES];
};
struct vkeys { /* of a disk: ascending by epoch */
    uint64_t generation;
    bool erased;
    unsigned n;
    struct vkey key[VMFS_KEYS_MAX];
};

/* The number of a key-encryption key: of its bytes, so the same on every host. Never 0 nor VMFS_KEY_ERASED. */
uint64_t vcipher_kek_id(const uint8_t kek[VMFS_KEK_BYTES]);
/* Wrap @data, a data key from epoch @from on. The nonce must be fresh. */
void vcipher_wrap(const uint8_t kek[VMFS_KEK_BYTES], uint64_t from, const uint8_t data[VMFS_DATA_KEY_BYTES], const uint8_t nonce[VMFS_KEY_NONCE],
                  struct vkey *ret);
/* 0; -GR_EAUTH: it was wrapped with another key, or altered (@ret is zero then). */
int vcipher_unwrap(const uint8_t kek[VMFS_KEK_BYTES], const struct vkey *k, uint8_t ret[VMFS_DATA_KEY_BYTES]);

/* The unwrapped keys of a disk, in memory that is locked, left out of core dumps, and zeroed when the last reference goes. */
struct vcipher;
struct vcipher *vcipher_new(unsigned n); /* room for @n keys; one reference. NULL: out of memory */
void vcipher_add(struct vcipher *c, uint64_t from, const uint8_t data[VMFS_DATA_KEY_BYTES]); /* ascending, at most @n */
struct vcipher *vcipher_get(struct vcipher *c); /* NULL: NULL */
void vcipher_put(struct vcipher *c);            /* may be NULL */
/* Which key is that of a piece born at @birth. -GR_ECORRUPT: older than all of them. */
int vcipher_key(const struct vcipher *c, uint64_t birth);
/* @len bytes at @skip of piece @piece, where they lie. @key: vcipher_key(). */
void vcipher_encrypt(const struct vcipher *c, int key, uint64_t piece, size_t skip, uint8_t *bytes, size_t len);
void vcipher_decrypt(const struct vcipher *c, int key, uint64_t piece, size_t skip, uint8_t *bytes, size_t len);
/* The same for @len bytes at @off of the disk, which are at @at of the vector (decrypt) or flat. */
void vcipher_encrypt_range(const struct vcipher *c, int key, uint64_t off, uint8_t *bytes, size_t len);
void vcipher_decrypt_iov(const struct vcipher *c, int key, uint64_t off, const struct iovec *iov, int iovcnt, size_t len);
#endif
