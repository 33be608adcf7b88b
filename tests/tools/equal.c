/* Are two files the same? As cmp(1), for images: it reads a mebibyte at a time and no holes that both have (cmp reads 4 KiB at a time,
 * and takes six seconds of CPU time for a gibibyte of nothing).
 *
 *   equal FILE FILE [BYTES]     BYTES: compare so many from the beginning; else all, and the sizes
 *
 * Exit: 0 they are, 1 they differ (and where, on standard output), 2 one cannot be read. */
#include "common/cleanup.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE (1u << 20)

struct side {
    const char *name;
    int fd;
    off_t size;
    uint8_t buf[PIECE];
};

static int trouble(const struct side *s, const char *what)
{
    fprintf(stderr, "equal: %s: %s: %s\n", s->name, what, strerror(errno));
    exit(2);
}

static void begin(struct side *s, const char *name)
{
    struct stat st;
    s->name = name;
    s->fd = open(name, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0 || fstat(s->fd, &st) < 0)
        trouble(s, "cannot be opened");
    s->size = S_ISREG(st.st_mode) ? st.st_size : lseek(s->fd, 0, SEEK_END);
}

/* The first data at or behind @at; the end of the file when there is none; @at itself where holes cannot be told. */
static off_t data_from(const struct side *s, off_t at)
{
    off_t data = lseek(s->fd, at, SEEK_DATA);
    if (data >= 0)
        return data;
    return errno == ENXIO ? s->size : at;
}

static void fetch(struct side *s, off_t at, size_t len)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = pread(s->fd, s->buf + got, len - got, at + (off_t)got);
        if (n <= 0)
            trouble(s, n ? "cannot be read" : "is shorter than it was");
        got += (size_t)n;
    }
}

static int differ(const struct side *a, const struct side *b, off_t at, size_t len)
{
    size_t k = 0;
    while (k < len && a->buf[k] == b->buf[k])
        k++;
    printf("%s and %s differ at byte %" PRId64 ": %02x, %02x\n", a->name, b->name, (int64_t)at + (int64_t)k, a->buf[k], b->buf[k]);
    return 1;
}

int main(int argc, char **argv)
{
    static struct side a, b;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: equal FILE FILE [BYTES]\n");
        return 2;
    }
    begin(&a, argv[1]);
    begin(&b, argv[2]);
    off_t end = argc > 3 ? (off_t)strtoll(argv[3], NULL, 10) : GR_MAX(a.size, b.size);
    if (a.size < end || b.size < end) {
        printf("%s has %" PRId64 " bytes, %s %" PRId64 "\n", a.name, (int64_t)a.size, b.name, (int64_t)b.size);
        return 1;
    }
    for (off_t at = 0; at < end;) {
        at = GR_MIN(data_from(&a, at), data_from(&b, at));
        size_t len = at < end ? (size_t)GR_MIN(end - at, (off_t)PIECE) : 0;
        fetch(&a, at, len);
        fetch(&b, at, len);
        if (memcmp(a.buf, b.buf, len) != 0)
            return differ(&a, &b, at, len);
        at += (off_t)len;
    }
    return 0;
}
