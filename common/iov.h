/* Vectors of buffers: copy in and out of them, from any place in them. */
#ifndef GR_IOV_H
#define GR_IOV_H
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/uio.h>

/* The @len bytes at @off of the vector: into flat memory, from flat memory, or zeroed. What lies outside is left alone. */
void gr_iov_get(const struct iovec *iov, int iovcnt, uint64_t off, void *to, size_t len);
void gr_iov_put(const struct iovec *iov, int iovcnt, uint64_t off, const void *from, size_t len);
void gr_iov_zero(const struct iovec *iov, int iovcnt, uint64_t off, size_t len);
/* Compare the @len bytes at @off with flat memory: @len when equal, else the index of the first difference. */
size_t gr_iov_diff(const struct iovec *iov, int iovcnt, uint64_t off, const void *with, size_t len);
/* The part of the vector behind @off, at most @max vectors: into @out; returns their number. */
int gr_iov_rest(const struct iovec *iov, int iovcnt, uint64_t off, struct iovec *out, int max);
/* The part [off, off+len) of the vector: into @out (room for @iovcnt entries); returns their number. */
int gr_iov_slice(const struct iovec *iov, int iovcnt, uint64_t off, size_t len, struct iovec *out);
/* CRC32C of the @len bytes at @off. */
uint32_t gr_iov_crc32c(const struct iovec *iov, int iovcnt, uint64_t off, size_t len);
#endif
