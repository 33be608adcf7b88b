/* What an image from elsewhere may hold: headers, tables, markers, compressed grains, descriptors. */
#include "backup-proxy/vmdk.h"
#include "backup-proxy/vmdk_image.h"
#include "common/cleanup.h"
#include "common/fiber.h"
#include <stdlib.h>
#include <sys/mman.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
struct input {
    struct gr_loop *loop;
    const uint8_t *data;
    size_t size;
};
static void read_some(struct gr_chan *ch, uint64_t size)
{
    static uint8_t buf[1u << 20];
    struct gr_extent e[16];
    unsigned n = 0;
    for (uint64_t off = 0; off < size && off < (4u << 20); off += sizeof buf)
        if (gr_pread(ch, buf, (size_t)GR_MIN((uint64_t)sizeof buf, size - off), off) < 0)
            break;
    if (gr_extents(ch, 0, GR_MIN(size, (uint64_t)1 << 30), NULL, e, 16, &n) == 0 && (n == 0 || e[0].off != 0 || e[0].len == 0))
        __builtin_trap();
    if (size > 4096)
        (void)gr_pread(ch, buf, 512, (size - 512) & ~(uint64_t)511);
}
static int try_it(void *arg)
{
    struct input *in = arg;
    char path[64];
    struct gr_err err = {0};
    struct gr_bdev *b = NULL;
    struct gr_chan *ch = NULL;
    struct gr_geometry g;
    gr_auto_close int fd = memfd_create("image", MFD_CLOEXEC);
    if (fd < 0 || write(fd, in->data, in->size) != (ssize_t)in->size)
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int r = bp_vmdk_open(in->loop, path, NULL, &b, &err);
    if (r < 0 && !err.text[0])
        __builtin_trap(); /* every refusal says why */
    if (r == 0 && gr_bdev_geometry(b, &g) == 0 && gr_chan_open(b, in->loop, &ch) == 0)
        read_some(ch, g.size);
    gr_chan_close(ch);
    gr_bdev_put(b);
    return 0;
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct gr_loop *loop; /* one for all inputs: making one costs more than an input */
    struct vmdk_desc d = {.extents = NULL};
    if (!loop && gr_loop_new(&(struct gr_loop_opts){.engine = GR_ENGINE_SYNC}, &loop, NULL) < 0)
        return 0;
    struct input in = {loop, data, size};
    (void)gr_fiber_run(loop, try_it, &in);
    if (size <= VMDK_MAX_DESC && vmdk_desc_parse((const char *)data, size, &d, NULL) == 0)
        free(d.extents);
    return 0;
}
