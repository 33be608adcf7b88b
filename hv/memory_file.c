#include "hv/memory_file.h"
#include "common/cleanup.h"
#include "common/seam.h"
#include <poll.h>
#include <sys/socket.h>

#define STREAM_MS 86400000 /* a lost peer is noticed by the socket's end, long before */
#define CONNECT_MS 15000

struct hv_memory_file {
    const struct hv_storage *s;
    const char *method;
    json_t *params, *result;
    bool over;
    int r;
    struct gr_err err;
    struct gr_fqueue ended;
};

static void caller(void *arg)
{
    struct hv_memory_file *f = arg;
    f->r = hv_storage_call(f->s, f->method, gr_take(f->params), STREAM_MS, &f->result, &f->err);
    f->over = true;
    gr_fqueue_wake_all(&f->ended);
}

static void drop(struct hv_memory_file *f)
{
    json_decref(f->params);
    json_decref(f->result);
    free(f);
}

static int accept_it(struct hv_memory_file *f, int listener, int *ret_fd, struct gr_err *err)
{
    for (unsigned ms = 0; !f->over && ms < CONNECT_MS; ms += 100) {
        if (gr_fiber_wait_fd(listener, POLLIN, 100) < 0)
            continue;
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) {
            *ret_fd = fd;
            return 0;
        }
    }
    if (f->over && f->r < 0)
        return gr_fail(err, f->r, "%s", f->err.text);
    return gr_fail(err, -ETIMEDOUT, "the storage service does not come for the virtual machine's memory");
}

/* What is encrypted has a method of its own, which a service of an earlier release does not have: nothing comes into a file in clear by mistake. */
static const char *method_of(enum hv_memory_way way, const char *key)
{
    return way == HV_MEMORY_GIVE ? "file.give" : key ? "file.take-encrypted" : "file.take";
}

int hv_memory_file_open(const struct hv_storage *s, enum hv_memory_way way, const char *path, uint64_t limit, const char *key, const char *socket,
                        struct hv_memory_file **ret, int *ret_fd, struct gr_err *err)
{
    gr_auto_close int listener = -1;
    int r = gr_unix_listen(socket, 0600, &listener, err);
    struct hv_memory_file *f = r < 0 ? NULL : gr_zalloc(sizeof *f);
    if (r < 0)
        return r;
    if (f) {
        *f = (struct hv_memory_file){.s = s, .method = method_of(way, key)};
        f->params = json_pack("{s:s, s:s, s:I, s:s*}", "path", path, "socket", socket, "limit", (json_int_t)limit, "key", key);
    }
    r = f && f->params ? gr_fiber_start(s->loop, caller, f) : -ENOMEM;
    if (r < 0) {
        if (f)
            drop(f);
        unlink(socket);
        return gr_fail(err, r, "out of memory");
    }
    r = accept_it(f, listener, ret_fd, err);
    unlink(socket);
    if (r < 0) {
        close(gr_take_fd(&listener)); /* who has not come yet does not any more */
        (void)hv_memory_file_end(f, NULL, NULL, NULL);
        return r;
    }
    *ret = f;
    return 0;
}

int hv_memory_file_end(struct hv_memory_file *f, uint64_t *ret_bytes, uint32_t *ret_crc, struct gr_err *err)
{
    if (!f)
        return 0;
    while (!f->over)
        gr_fqueue_wait(&f->ended);
    int r = f->r < 0 ? gr_fail(err, f->r, "%s", f->err.text) : 0;
    if (r == 0 && ret_bytes)
        *ret_bytes = (uint64_t)json_integer_value(json_object_get(f->result, "bytes"));
    if (r == 0 && ret_crc)
        *ret_crc = (uint32_t)json_integer_value(json_object_get(f->result, "crc"));
    drop(f);
    return r;
}
