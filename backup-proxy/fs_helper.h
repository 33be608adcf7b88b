/* One running granary-fsread and the exchange of one request with it. Private to fs_reader.c. */
#ifndef FS_HELPER_H
#define FS_HELPER_H
#include "backup-proxy/fs_cache.h"
#include "backup-proxy/fs_proto.h"

struct fs_helper {
    struct gr_loop *loop;
    struct fs_cache *cache;
    const char *name;    /* of the image, for messages */
    char *program;
    uint64_t budget_ns;
    int fd;              /* our end; -1: not running */
    int pid;
    uint32_t seq;
    uint8_t *in, *out;   /* frames: FS_HDR + FS_BODY_MAX */
    /* of the request under way */
    uint64_t start_ns, start_wait_ns;
};
/* Takes replies: 1 the last one, 0 more follow, negative: not what the protocol allows. */
typedef int fs_reply_fn(void *arg, uint16_t type, struct fs_in *in);

int fs_helper_init(struct fs_helper *h, struct gr_loop *loop, struct fs_cache *cache, const char *name, const char *program,
                   uint64_t budget_ns, struct gr_err *err);
void fs_helper_done(struct fs_helper *h);
int fs_helper_start(struct fs_helper *h, struct gr_err *err); /* runs the program; the caller says FS_HELLO */
void fs_helper_kill(struct fs_helper *h);                     /* ends and reaps it; nothing when not running */
/* Body of the next request: encode into it, then call fs_helper_ask with the same. */
struct fs_out fs_helper_body(struct fs_helper *h);
/* Send the request, serve the image reads it causes, hand each reply to @on. An FS_ERROR of the helper gives its errno;
 * a helper that fails is killed: -EIO, or -ETIMEDOUT. */
int fs_helper_ask(struct fs_helper *h, uint16_t type, const struct fs_out *body, fs_reply_fn *on, void *arg, struct gr_err *err);
#endif
