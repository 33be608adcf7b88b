#include "tests/lib/take_steps.h"
#include "common/cleanup.h"
#include "vmfs/format.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

struct take_plan *take_map(const char *path)
{
    gr_auto_close int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, TAKE_PLAN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

enum take_verdict take_other(struct take_plan *p, unsigned host, enum take_step step)
{
    uint32_t armed = step;
    if (host >= TAKE_HOSTS || p->armed != armed || ++p->host[host].seen < p->nth)
        return TAKE_GO;
    if (!atomic_compare_exchange_strong(&p->armed, &armed, TAKE_NONE))
        return TAKE_GO; /* another host was quicker */
    p->struck = host + 1;
    return p->hold ? TAKE_KILL_HOLD : TAKE_KILL;
}

static enum take_verdict slot_written(struct take_plan *p, unsigned host, const struct vmfs_slot_disk *d)
{
    struct take_host *h = &p->host[host];
    uint32_t slot = gr_le32_get(d->hdr.slot) + 1, state = gr_le32_get(d->state);
    if (state == VMFS_SLOT_REPLAYING && h->slot != slot) {
        h->journal = gr_le64_get(d->journal_addr);
        h->journal_units = gr_le32_get(d->journal_units);
        h->freed = 0;
        h->slot = slot;
        return take_other(p, host, TAKE_MARK);
    }
    if (state != VMFS_SLOT_FREE || h->slot != slot)
        return TAKE_GO;
    h->freed++;
    p->freed = 1;
    return take_other(p, host, TAKE_FREE);
}

enum take_verdict take_write(struct take_plan *p, unsigned host, const void *block)
{
    const struct vmfs_hdr_disk *d = block;
    if (host >= TAKE_HOSTS || !p->armed || gr_le32_get(d->magic) != VMFS_MAGIC)
        return TAKE_GO;
    struct take_host *h = &p->host[host];
    unsigned type = gr_le16_get(d->type);
    if (type == VMFS_T_SLOT)
        return slot_written(p, host, block);
    if (type == VMFS_T_ALARM) {
        const struct vmfs_alarm_disk *a = block;
        return gr_le64_get(a->asked) != gr_le64_get(a->answered) ? take_other(p, host, TAKE_ASK) : TAKE_GO;
    }
    if (h->slot && !h->freed && gr_le32_get(d->slot) + 1 == h->slot)
        return take_other(p, host, TAKE_HOME);
    if (type == VMFS_T_INODE && p->freed && gr_le32_get(((const struct vmfs_inode_disk *)block)->lock.holder))
        return take_other(p, host, TAKE_LOCK);
    return TAKE_GO;
}

enum take_verdict take_read(struct take_plan *p, unsigned host, unsigned device, uint64_t unit, uint64_t units)
{
    if (host >= TAKE_HOSTS || p->armed != TAKE_REPLAY || !p->host[host].slot)
        return TAKE_GO;
    uint64_t journal = p->host[host].journal, at = vmfs_addr_unit(journal);
    if (vmfs_addr_dev(journal) != device || unit >= at + p->host[host].journal_units || at >= unit + units)
        return TAKE_GO;
    return take_other(p, host, TAKE_REPLAY);
}
