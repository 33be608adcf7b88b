#include "tests/lib/diskfix.h"
#include "common/cleanup.h"
#include "tests/lib/test.h"

static void event(void *arg, enum gr_event ev)
{
    struct diskfix *f = arg;
    f->told += ev == GR_EVENT_THRESHOLD;
}

void diskfix_open(struct diskfix *f, struct vmfs *v, const char *path)
{
    OK(vmfs_open(v, path, &f->d, NULL, &err));
    assert_int_equal(gr_chan_open(vmfs_bdev(f->d), gr_fiber_loop(), &f->ch), 0);
    f->listener = (struct gr_listener){ .fn = event, .arg = f };
    gr_bdev_listen(vmfs_bdev(f->d), &f->listener);
}

void diskfix_close(struct diskfix *f)
{
    gr_bdev_unlisten(vmfs_bdev(f->d), &f->listener);
    gr_chan_close(f->ch);
    vmfs_close(gr_take(f->d));
}
