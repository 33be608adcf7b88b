/* A long file over a socket, encrypted, as the memory of a virtual machine is kept: no byte of it in clear on the device, the keys that it needs, what
 * is refused, and its end. */
#include "common/rpc.h"
#include "snapshot/client.h"
#include "tests/lib/test.h"
#include "vmfs/vmfs.h"
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEVICE ((size_t)128 << 20)
#define LONG (((size_t)6 << 20) + 1001)
static const char word[16] = "in a guest's RAM";

struct stage {
    struct snap_client *c;
    struct gr_err err;
    char *image, *home;
};

static json_t *ask(struct stage *s, int want, const char *method, json_t *params)
{
    json_t *res = NULL;
    s->err = (struct gr_err){0};
    int r = snap_client_call(s->c, method, params, NULL, NULL, &res, &s->err);
    if (r != want)
        fail_msg("%s: %d, not %d: %s", method, r, want, s->err.text);
    return res;
}

static void does(struct stage *s, const char *method, json_t *params)
{
    json_decref(ask(s, 0, method, params));
}

static void refuses(struct stage *s, int code, const char *said, const char *method, json_t *params)
{
    json_decref(ask(s, code, method, params));
    if (!strstr(s->err.text, said))
        fail_msg("%s: '%s' is not in: %s", method, said, s->err.text);
}

/* ---- the other end of the socket ---- */
struct end {
    int listener;
    uint8_t *bytes;
    size_t done;
    bool sends, over, nobody; /* nobody: who has not come yet does not any more */
    struct gr_fqueue q;
};

static void serve(void *arg)
{
    struct end *e = arg;
    int fd = -1;
    while (fd < 0 && !e->nobody)
        if (gr_fiber_wait_fd(e->listener, POLLIN, 50) >= 0)
            fd = accept4(e->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    ssize_t n = fd < 0 ? 0 : 1;
    while (n && e->done < LONG) { /* until the service goes away */
        n = e->sends ? send(fd, e->bytes + e->done, LONG - e->done, MSG_NOSIGNAL) : recv(fd, e->bytes + e->done, LONG - e->done, 0);
        if (n < 0 && (errno != EAGAIN || gr_fiber_wait_fd(fd, e->sends ? POLLOUT : POLLIN, 20000) < 0))
            n = 0;
        e->done += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0)
        close(fd);
    e->over = true;
    gr_fqueue_wake_all(&e->q);
}

/* What the service says is the caller's. */
static json_t *stream(struct stage *s, int want, const char *method, const char *path, const char *key, uint8_t *bytes)
{
    struct end e = {.bytes = bytes, .sends = strcmp(method, "file.give") != 0};
    char *socket = test_path("sock");
    OK(gr_unix_listen(socket, 0600, &e.listener, &err));
    assert_int_equal(gr_fiber_start(gr_fiber_loop(), serve, &e), 0);
    json_t *res = ask(s, want, method, json_pack("{s:s,s:s,s:I,s:s*}", "path", path, "socket", socket, "limit", (json_int_t)LONG, "key", key));
    e.nobody = true;
    while (!e.over)
        gr_fqueue_wait(&e.q);
    close(e.listener);
    unlink(socket);
    free(socket);
    return res;
}

static uint8_t *content(void)
{
    uint8_t *b = malloc(LONG);
    for (size_t i = 0; i < LONG; i++)
        b[i] = (uint8_t)word[i % sizeof word];
    return b;
}

static void put(struct stage *s, const char *path, const char *key)
{
    uint8_t *b = content();
    json_t *res = stream(s, 0, key ? "file.take-encrypted" : "file.take", path, key, b);
    assert_int_equal(json_integer_value(json_object_get(res, "bytes")), LONG);
    json_decref(res);
    free(b);
}

static void compare(struct stage *s, const char *path)
{
    uint8_t *is = malloc(LONG), *should = content();
    json_decref(stream(s, 0, "file.give", path, NULL, is));
    assert_memory_equal(is, should, LONG);
    free(is);
    free(should);
}

static bool on_device(const struct stage *s)
{
    int fd = open(s->image, O_RDONLY | O_CLOEXEC);
    void *b = mmap(NULL, DEVICE, PROT_READ, MAP_SHARED, fd, 0);
    assert_true(fd >= 0 && b != MAP_FAILED);
    bool found = memmem(b, DEVICE, word, sizeof word) != NULL;
    munmap(b, DEVICE);
    close(fd);
    return found;
}

static void row_is(struct stage *s, const char *path, const char *key, bool here)
{
    json_t *row = ask(s, 0, "dir.stat", json_pack("{s:s}", "path", path));
    assert_string_equal(json_string_value(json_object_get(row, "key")), key);
    assert_int_equal(json_is_true(json_object_get(row, "encrypted")), 1);
    assert_int_equal(json_is_true(json_object_get(row, "key-here")), here);
    assert_int_equal(json_integer_value(json_object_get(row, "size")), LONG);
    json_decref(row);
}

static char *new_key(struct stage *s, const char *method)
{
    json_t *res = ask(s, 0, method, json_object());
    char *key = strdup(json_string_value(json_object_get(res, "key")));
    json_decref(res);
    return key;
}

static void sound(struct stage *s)
{
    json_t *rep = ask(s, 0, "datastore.check", json_pack("{s:s}", "name", "d"));
    assert_true(json_is_true(json_object_get(rep, "sound")));
    json_decref(rep);
}

static void lose(struct stage *s, const char *key)
{
    char path[512];
    snprintf(path, sizeof path, "%s/conf/keys/%s.key", s->home, key);
    assert_int_equal(unlink(path), 0);
}

static int kept(void *arg)
{
    struct stage s = {.image = test_path("d.img"), .home = test_path("home")};
    struct gr_home *home = arg;
    uint8_t *b = content();
    OK(snap_client_open(gr_fiber_loop(), home, NULL, &s.c, &err));
    does(&s, "datastore.create", json_pack("{s:s,s:[s],s:I}", "name", "d", "devices", s.image, "size", (json_int_t)DEVICE));
    char *k1 = new_key(&s, "key.create");
    put(&s, "d/vm/memory", k1);
    assert_false(on_device(&s));
    compare(&s, "d/vm/memory");
    row_is(&s, "d/vm/memory", k1, true);
    json_decref(stream(&s, -EEXIST, "file.take-encrypted", "d/vm/memory", k1, b));
    json_decref(stream(&s, -ENOKEY, "file.take-encrypted", "d/vm/other", "0123456789abcdef", b));
    assert_non_null(strstr(s.err.text, "d/vm/other"));
    json_decref(stream(&s, -EINVAL, "file.take-encrypted", "d/vm/other", NULL, b)); /* and not in clear */
    refuses(&s, -ENOENT, "d/vm/other", "dir.stat", json_pack("{s:s}", "path", "d/vm/other"));

    /* its keys are those of a disk; it is none */
    refuses(&s, -EBUSY, "d/vm/memory", "key.delete", json_pack("{s:s}", "key", k1));
    refuses(&s, -EINVAL, "is a file", "disk.rekey", json_pack("{s:s}", "disk", "d/vm/memory"));
    refuses(&s, -EINVAL, "is a file", "disk.delete", json_pack("{s:s}", "disk", "d/vm/memory"));
    char *k2 = new_key(&s, "key.rotate");
    row_is(&s, "d/vm/memory", k2, true);
    does(&s, "key.delete", json_pack("{s:s}", "key", k1));
    compare(&s, "d/vm/memory");
    sound(&s);

    /* without its key: it can only be removed */
    lose(&s, k2);
    row_is(&s, "d/vm/memory", k2, false);
    json_decref(stream(&s, -ENOKEY, "file.give", "d/vm/memory", NULL, b));
    assert_non_null(strstr(s.err.text, k2));
    refuses(&s, -ENOKEY, k2, "file.read", json_pack("{s:s}", "path", "d/vm/memory"));
    refuses(&s, -EINVAL, "is a file", "disk.erase", json_pack("{s:s}", "disk", "d/vm/memory"));
    refuses(&s, -EINVAL, "is a file", "disk.delete", json_pack("{s:s}", "disk", "d/vm/memory"));
    sound(&s);
    does(&s, "dir.remove", json_pack("{s:s}", "path", "d/vm/memory"));
    assert_false(on_device(&s));
    put(&s, "d/vm/plain", NULL);
    assert_true(on_device(&s));
    sound(&s);
    snap_client_close(s.c);
    free(k1);
    free(k2);
    free(b);
    free(s.image);
    free(s.home);
    return 0;
}

/* Who takes a file for a disk is told so; it can be written as before. */
static int taken_for_a_disk(void *arg)
{
    struct stage s = {.image = test_path("e.img")};
    OK(snap_client_open(gr_fiber_loop(), arg, NULL, &s.c, &err));
    does(&s, "datastore.create", json_pack("{s:s,s:[s],s:I}", "name", "e", "devices", s.image, "size", (json_int_t)DEVICE));
    does(&s, "file.write", json_pack("{s:s,s:s}", "path", "e/notes", "data-b64", "bm90ZXM="));
    refuses(&s, -EINVAL, "is a file", "disk.delete", json_pack("{s:s}", "disk", "e/notes"));
    refuses(&s, -EINVAL, "is a file", "snapshot.create", json_pack("{s:[s],s:s}", "disks", "e/notes", "name", "no"));
    does(&s, "file.write", json_pack("{s:s,s:s}", "path", "e/notes", "data-b64", "b3RoZXI="));
    does(&s, "dir.remove", json_pack("{s:s}", "path", "e/notes"));
    snap_client_close(s.c);
    free(s.image);
    return 0;
}

static void test_taken_for_a_disk(void **state)
{
    struct gr_home *home = test_home("other");
    test_in_fiber(taken_for_a_disk, home);
    gr_home_free(home);
}

static void test_kept(void **state)
{
    struct gr_home *home = test_home("home");
    test_in_fiber(kept, home);
    gr_home_free(home);
}

TEST_MAIN(TEST(test_taken_for_a_disk), TEST(test_kept))
