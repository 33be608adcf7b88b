/* Inside of the NBD source: source_nbd_open.c connects and checks, source_nbd.c carries requests. */
#ifndef SOURCE_NBD_INT_H
#define SOURCE_NBD_INT_H
#include "backup-proxy/source.h"
#include <libnbd.h>

#define NBD_ALLOCATION "base:allocation"
#define NBD_MAX_CONNS 16

struct nbd_source;
struct nbd_range {
    uint64_t off, len;
};
struct nbd_req { /* one gr_bio */
    struct nbd_source *src;
    struct gr_bio *bio;
    unsigned pending, failed;
    int status;
};
struct nbd_sub { /* one NBD command */
    struct nbd_req *req;
    struct nbd_conn *conn;
    struct nbd_sub *next, *prev;
    uint64_t off, len;
    uint8_t *bounce;
    struct nbd_range first, *chunks; /* what came of a READ; the list only from the second chunk on */
    size_t n_chunks, cap_chunks;
    int bad; /* found wrong by a callback */
    int status;
};
struct nbd_conn {
    struct nbd_source *src;
    struct nbd_handle *h;
    struct gr_watch watch;
    bool watching, progress;
    struct gr_timer silence;
    struct nbd_sub *subs;
    unsigned in_flight;
    int broken; /* negative once given up */
};
struct nbd_source {
    struct gr_bdev bdev;
    struct gr_loop *loop;
    struct gr_geometry geo;
    uint64_t timeout_ms, max_piece;
    struct gr_bookmark base;
    char *changed_context; /* NULL: no base */
    bool has_allocation;
    struct nbd_conn *conns;
    unsigned n_conns;
    struct nbd_sub *done, *done_tail;
    struct gr_defer complete;
};
/* All connections are ready and watched (dormant): become a bdev. */
void nbd_source_ready(struct nbd_source *src, const char *name);
void nbd_source_free(struct nbd_source *src);
int nbd_source_lib_fail(struct gr_err *err, int code, const char *what); /* "what: libnbd's reason" */
#endif
