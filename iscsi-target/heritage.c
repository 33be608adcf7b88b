/* What is handed over on its way: a JSON document and descriptors, from one process to another. */
#include "iscsi-target/handover.h"
#include "common/b64.h"
#include "common/buf.h"
#include "common/cleanup.h"
#include "common/packet.h"
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define TAKE_OVER_MS 60000 /* what the one before us gets to bring its sessions to rest */
#define HERITAGE_MAX (1ll << 30)

void tgt_heritage_free(struct tgt_heritage *h)
{
    for (unsigned i = 0; i < h->n_fds; i++)
        if (h->fds[i] >= 0)
            close(h->fds[i]);
    free(h->fds);
    json_decref(h->doc);
    *h = (struct tgt_heritage){0};
}

int tgt_heritage_keep(struct tgt_heritage *h, int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -errno;
    if (h->n_fds == TGT_HERITAGE_FDS) {
        close(copy);
        return -EMFILE;
    }
    h->fds[h->n_fds] = copy;
    return (int)h->n_fds++;
}

int tgt_heritage_take_fd(struct tgt_heritage *h, json_t *o)
{
    json_int_t i = json_is_integer(json_object_get(o, "fd")) ? json_integer_value(json_object_get(o, "fd")) : -1;
    if (i < 0 || i >= (json_int_t)h->n_fds)
        return -1;
    return gr_take_fd(&h->fds[i]);
}

int tgt_heritage_add(struct tgt_heritage *h, const char *key, int fd)
{
    json_t *list = json_object_get(h->doc, key);
    if (!list && json_object_set_new(h->doc, key, list = json_array()) < 0)
        return -ENOMEM;
    int i = tgt_heritage_keep(h, fd);
    return i < 0 ? i : json_array_append_new(list, json_pack("{s:i}", "fd", i)) < 0 ? -ENOMEM : 0;
}

int tgt_heritage_take(struct tgt_heritage *h, const char *key, size_t i)
{
    return tgt_heritage_take_fd(h, json_array_get(json_object_get(h->doc, key), i));
}

/* ---- connections of requests: "requests":[{"fd","id","unread"?:base64}] ---- */

static int add_request(void *arg, const struct gr_rpc_left *c)
{
    struct tgt_heritage *h = arg;
    gr_auto_free char *unread = c->len ? gr_b64_encode(c->unread, c->len) : NULL;
    int fd = c->len && !unread ? -ENOMEM : tgt_heritage_keep(h, c->fd);
    if (fd < 0)
        return fd;
    return json_array_append_new(json_object_get(h->doc, "requests"),
                                 json_pack("{s:i,s:I,s:s*}", "fd", fd, "id", (json_int_t)c->id, "unread", unread)) < 0 ? -ENOMEM : 0;
}

int tgt_heritage_add_requests(struct tgt_heritage *h, struct gr_rpc_server *rpc)
{
    json_object_set_new(h->doc, "requests", json_array());
    return gr_rpc_server_bequeath(rpc, add_request, h);
}

unsigned tgt_heritage_take_requests(struct tgt_heritage *h, struct gr_rpc_server *rpc)
{
    unsigned n = 0;
    json_t *o;
    size_t i;
    json_array_foreach(json_object_get(h->doc, "requests"), i, o)
    {
        gr_auto_buf struct gr_buf unread = {0};
        const char *text = json_string_value(json_object_get(o, "unread"));
        int fd = tgt_heritage_take_fd(h, o);
        if (fd >= 0 && text && gr_b64_decode(text, strlen(text), &unread) < 0) {
            close(fd);
            continue;
        }
        if (fd >= 0)
            n += gr_rpc_server_inherit(rpc, &(struct gr_rpc_left){(uint64_t)json_integer_value(json_object_get(o, "id")), fd, unread.data, unread.len}) == 0;
    }
    return n;
}

/* ---- sending ---- */

struct packet {
    uint32_t n_fds, index; /* index of the descriptor that goes along; the first packet brings the text in a file */
};

static int wait_for(struct gr_loop *loop, int fd, short events)
{
    struct pollfd p = {.fd = fd, .events = events};
    for (int ms = 0; ms < 30000; ms++) {
        int r = poll(&p, 1, 0);
        if (r)
            return r < 0 ? -errno : 0;
        gr_fiber_sleep_ms(1);
    }
    (void)loop;
    return -ETIMEDOUT;
}

static int send_packet(struct gr_loop *loop, int sock, struct packet p, int fd)
{
    int r = wait_for(loop, sock, POLLOUT);
    return r < 0 ? r : gr_packet_send(sock, &p, sizeof p, fd, MSG_DONTWAIT);
}

static int recv_packet(struct gr_loop *loop, int sock, struct packet *p, int *ret_fd)
{
    int r = wait_for(loop, sock, POLLIN);
    if (r < 0)
        return r;
    size_t n = 0;
    gr_auto_close int fd = -1;
    r = gr_packet_recv(sock, p, sizeof *p, &n, &fd);
    if (r <= 0 || n != sizeof *p || fd < 0)
        return r < 0 ? r : -EPIPE;
    *ret_fd = gr_take_fd(&fd);
    return 0;
}

int tgt_heritage_send(struct gr_loop *loop, int sock, const struct tgt_heritage *h, struct gr_err *err)
{
    gr_auto_free char *text = json_dumps(h->doc, JSON_COMPACT);
    gr_auto_close int file = memfd_create("granary-heritage", MFD_CLOEXEC);
    size_t len = text ? strlen(text) : 0;
    int r = !text || file < 0 || write(file, text, len) != (ssize_t)len ? -ENOMEM : send_packet(loop, sock, (struct packet){h->n_fds, 0}, file);
    for (unsigned i = 0; !r && i < h->n_fds; i++)
        r = send_packet(loop, sock, (struct packet){h->n_fds, i}, h->fds[i]);
    return r < 0 ? gr_fail(err, r, "sessions cannot be handed over: %s", gr_code_text(r)) : 0;
}

static int read_doc(int file, json_t **ret)
{
    json_error_t je;
    struct stat st;
    if (fstat(file, &st) < 0 || st.st_size <= 0 || st.st_size > HERITAGE_MAX)
        return -GR_EFORMAT;
    void *text = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, file, 0); /* json_loadfd() would read it byte by byte */
    if (text == MAP_FAILED)
        return -errno;
    *ret = json_loadb(text, (size_t)st.st_size, 0, &je);
    munmap(text, (size_t)st.st_size);
    return *ret ? 0 : -GR_EFORMAT;
}

int tgt_heritage_recv(struct gr_loop *loop, int sock, struct tgt_heritage *ret, struct gr_err *err)
{
    struct tgt_heritage h = {.fds = calloc(TGT_HERITAGE_FDS, sizeof(int))};
    gr_auto_close int file = -1;
    struct packet p = {0};
    int r = h.fds ? recv_packet(loop, sock, &p, &file) : -ENOMEM;
    if (!r)
        r = p.n_fds > TGT_HERITAGE_FDS ? -GR_EFORMAT : read_doc(file, &h.doc);
    for (unsigned want = p.n_fds; !r && h.n_fds < want;) {
        r = recv_packet(loop, sock, &p, &h.fds[h.n_fds]);
        h.n_fds += !r;
    }
    if (r < 0) {
        tgt_heritage_free(&h);
        return gr_fail(err, r, "sessions cannot be taken over: %s", r == -EPIPE ? "the other process ended" : gr_code_text(r));
    }
    *ret = h;
    return 0;
}

int tgt_heritage_readable(json_t *params, struct gr_err *err)
{
    json_t *versions = json_object_get(params, "versions");
    json_int_t oldest = versions ? json_integer_value(json_array_get(versions, 0)) : 1; /* programs that do not say */
    json_int_t newest = versions ? json_integer_value(json_array_get(versions, 1)) : 1;
    if (oldest <= TGT_HERITAGE_VERSION && newest >= TGT_HERITAGE_VERSION)
        return 0;
    return gr_fail(err, -EOPNOTSUPP, "this daemon hands over version %d, the program that asks for its place reads %lld to %lld: "
                   "use \"granary down\" and \"granary up\" instead", TGT_HERITAGE_VERSION,
                   (long long)oldest, (long long)newest);
}

int tgt_heritage_ask(struct gr_loop *loop, const struct gr_home *home, uint64_t features, struct tgt_heritage *ret, struct gr_err *err)
{
    gr_auto_free char *path = gr_home_path(home, "run/hand-over.sock"), *socket = gr_home_path(home, "run/storaged.sock");
    gr_auto_close int listener = -1, from = -1;
    struct gr_rpc_client *before = NULL;
    int r = path && socket ? gr_unix_listen(path, 0600, &listener, err) : gr_fail(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = gr_rpc_connect(loop, socket, &before, err);
    if (r == 0)
        r = gr_rpc_call(before, "daemon.hand-over", json_pack("{s:s,s:[i,i],s:I}", "socket", path, "versions", TGT_HERITAGE_OLDEST, TGT_HERITAGE_VERSION, "features",
                                                              (json_int_t)features), NULL, NULL, TAKE_OVER_MS, NULL, err);
    gr_rpc_client_free(before);
    if (r == 0) {
        from = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        r = from < 0 ? gr_fail(err, -errno, "%s: nobody came", path) : tgt_heritage_recv(loop, from, ret, err);
    }
    if (path)
        unlink(path);
    return r;
}
