/* Inside of the file bdev: bdev_file*.c only. */
#ifndef GR_BDEV_FILE_INT_H
#define GR_BDEV_FILE_INT_H
#include "common/bdev.h"
#include <pthread.h>
#include <stdatomic.h>

/* Byte ranges of the file that stand for locks, far behind any data. */
#define FILE_COMPARE_BASE ((uint64_t)1 << 62)
#define FILE_KEY_BASE ((uint64_t)1 << 61)

struct file_caw;
struct file_bdev {
    struct gr_bdev base;
    int fd;
    bool read_only;
    bool direct;      /* O_DIRECT */
    bool node;        /* a block device node */
    bool in_memory;   /* tmpfs: plain system calls beat a trip through the ring's worker threads */
    bool in_entry;    /* in memory, and the kernel does transfers where a ring is entered: one system call for many */
    bool rotational;
    bool can_punch;
    atomic_bool no_zero_range; /* the file system said so */
    atomic_int flush_error;    /* the first failure of a flush; final */
    _Atomic uint64_t size;     /* bytes, a multiple of logical_block */
    _Atomic uint64_t end;      /* bytes the file really has; below @size only for a read-only file with an odd tail */
    uint32_t logical_block, physical_block, mem_align;
    pthread_mutex_t lock; /* guards compares, keys */
    struct file_caw *compares;
    uint64_t *keys;       /* held named locks */
    size_t n_keys;
};

/* One request under way. Kept by its channel for the next one. */
struct file_req {
    struct gr_fio fio;
    struct gr_chan *ch;
    struct gr_bio *bio;
    uint64_t done;        /* bytes */
    size_t piece;         /* bytes of the transfer under way, when bounced */
    uint8_t *bounce;      /* NULL: straight into the caller's memory */
    struct file_req *next;
    struct iovec iov[8];
};
struct file_chan {
    struct file_req *free_reqs;
    void *free_bounce; /* chained through their first bytes */
    unsigned n_free_bounce;
    uint64_t turn;            /* of the loop, the last one in which transfers were asked for */
    unsigned asked, asked_before; /* how many in it, and in the one before */
};

static inline struct file_bdev *file_of(const struct gr_chan *ch)
{
    return (struct file_bdev *)ch->bdev;
}
/* -errno of the kernel as the code our callers know. */
int file_code(int64_t res);
/* Remember that something may not have become durable: every later flush fails. */
void file_latch(struct file_bdev *b, int code);
/* A synchronous write failed with @code: it has used up the kernel's report of it, and a later fdatasync could succeed. Only one past the
 * page cache, or to memory, that found no space is known to have left everything else alone. */
void file_latch_write(struct file_bdev *b, int code);
/* Send fio to the loop, or do it now. done() may run inside. */
void file_issue(struct file_bdev *b, struct gr_chan *ch, struct gr_fio *fio);
/* fcntl OFD lock on one range: 0, -EBUSY held by another open, or -errno. @type: F_WRLCK, F_RDLCK or F_UNLCK. */
int file_lock_range(struct file_bdev *b, uint64_t start, uint64_t len, int type);
int file_chan_open(struct gr_bdev *bdev, struct gr_chan *ch);
void file_chan_close(struct gr_chan *ch);
void file_submit(struct gr_chan *ch, struct gr_bio *bio);
void file_compare_write(struct gr_chan *ch, struct gr_bio *bio);
int file_extents(struct file_bdev *b, struct gr_bio *bio);
#endif
