/* Growable byte buffer / string; zero-initialised is empty. Always NUL-terminated behind len when data is not NULL. */
#ifndef GR_BUF_H
#define GR_BUF_H
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
struct gr_buf {
    char *data;
    size_t len, cap;
};
void gr_buf_done(struct gr_buf *b);                                  /* release; the buffer is empty afterwards */
int gr_buf_reserve(struct gr_buf *b, size_t more);                   /* room for @more bytes behind len; 0 or -ENOMEM */
int gr_buf_add(struct gr_buf *b, const void *p, size_t len);         /* 0 or -ENOMEM */
int gr_buf_zero(struct gr_buf *b, size_t len);
int gr_buf_printf(struct gr_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
char *gr_buf_take(struct gr_buf *b);                                 /* hand out data (caller frees), buffer becomes empty */
#define gr_auto_buf __attribute__((cleanup(gr_buf_done)))

/* Text and number helpers shared by commands and codecs. */
struct gr_err;
/* "64K", "10G", "1536": bytes with K/M/G/T/P (1024). Rejects empty, negative, overflow (> 2^63-1), trailing text. */
int gr_parse_size(const char *text, uint64_t *ret, struct gr_err *err);
int gr_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct gr_err *err);
void gr_format_size(uint64_t bytes, char out[16]);                   /* "1.5 GiB" */
/* 1 when @s (len bytes) is well-formed UTF-8 without control characters. */
int gr_utf8_ok(const char *s, size_t len);
void gr_uuid_format(const uint8_t uuid[16], char out[37]);
int gr_uuid_parse(const char *text, uint8_t ret[16]);                /* 0 or -EINVAL */
/* Whole small file: read (up to @max bytes) and atomic replace (temporary file, fsync, rename, fsync of the directory). */
int gr_file_read(const char *path, size_t max, struct gr_buf *ret, struct gr_err *err);
int gr_file_replace(const char *path, const void *data, size_t len, int mode, struct gr_err *err);
/* All of @len bytes of the file @fd at @off. -GR_ECORRUPT: it ends before them; -ENOSPC: nothing more is written. */
int gr_file_pread(int fd, void *buf, size_t len, uint64_t off);
int gr_file_pwrite(int fd, const void *buf, size_t len, uint64_t off);
int gr_mkdirs(const char *path, int mode, struct gr_err *err);
int gr_sync_parent(const char *path); /* make what happened to the name @path durable: fsync of its directory; 0 or negative */
/* Secret from a file: must be a regular file, not readable by group or others, else refused; one trailing newline is dropped. */
int gr_secret_read(const char *path, struct gr_buf *ret, struct gr_err *err);
/* The machine's present start, in 36 characters of the kernel's; "" when it does not tell. */
void gr_boot_id(char ret[37]);
#endif
