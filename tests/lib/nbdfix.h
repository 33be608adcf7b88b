/* A mover over memory exports for unit tests: "ds/disk" (writable, 8 MiB), "ds/disk@snap" (the same bytes, read-only), and a
 * hundred more names in the listing. */
#ifndef NBDFIX_H
#define NBDFIX_H
#include "tests/lib/nbdc.h"

#define NBDFIX_SIZE (UINT64_C(8) << 20)
struct nbdfix {
    struct gr_loop *loop;
    struct gr_mem *mem;
    struct gr_bdev *disk, *faulty; /* faulty: a fault layer over disk; what the exports use */
    struct mover_server *server;
    unsigned opens;
    char last_log[512];
};
/* Run @body in a fiber with a plain-text server of @opts (dir, log and security are filled in; NULL: defaults). */
void nbdfix_run(const struct mover_opts *opts, void (*body)(struct nbdfix *f));
#endif
