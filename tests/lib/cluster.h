/* Hosts at work on one volume of shared logical units, on a virtual clock (tests/lib/sim.h): each joins, takes disks over, writes and reads them,
 * hands them over, and joins again when it was shut out. Every write carries (disk, piece, number), and an oracle fails the test when a disk shows
 * what it must not, when a request fails of a host that was not disturbed for anything but what is lost, when such a host is shut out, or when the
 * volume is not sound at the end. What goes wrong is the caller's. */
#ifndef CLUSTER_H
#define CLUSTER_H
#include "tests/lib/sim.h"
#include "tests/model/conform.h"
#include "vmfs/vmfs.h"

#define CL_HOSTS 6u /* of a small site, whose volume has 8 slots */
#define CL_DISKS 6u
#define CL_HOSTS_MAX 256u
#define CL_DISKS_MAX 4096u
#define CL_DEVICES_MAX 3u
#define CL_MAY_GO 2u /* number of the device that hosts can do without */
#define CL_CELLS_MAX 40u

struct cl_site;
struct cl_disk;
struct cl_host { /* one start of a host */
    struct cl_site *t;
    unsigned host, session_base;
    struct sim_host *sim;
    struct gr_bdev *path[CL_DEVICES_MAX];
    struct vmfs *v;
    bool disturbed, dead, over, fenced, told;
    bool loses;    /* the user's: the third device fails, or is cut off */
    bool lost;     /* … and so it gave the volume up */
    bool without;  /* joined without that */
    bool again;    /* the user's: it is to leave, and to join as cl_site.without says then */
    unsigned struck; /* the user's: what befell it last */
    bool at_work;  /* on a disk that is its own */
    bool corpse;   /* dead in earnest: woken when everybody else is gone, to see what it does */
    unsigned home; /* starts of one home never run at once */
    struct cl_host *next;
};
struct cl_site {
    struct sim *sim;
    struct conform *conform;
    struct gr_mem *mem[CL_DEVICES_MAX];
    unsigned n_devices, n_disks, running, hosts, corpses, homes[CL_HOSTS_MAX];
    unsigned span_s, burst; /* how long it lasts; writes of a visit, at most */
    bool fast, stopping, stalled, quiet, checked;
    bool without[CL_HOSTS_MAX]; /* the next start of each does without the third device; set when it was lost */
    bool gone_for_good;         /* nobody has it any more */
    struct cl_disk *disk;
    struct cl_host *incs;
    unsigned sessions;
    uint64_t slowest_ns; /* one way to a device */
    uint64_t cells[CL_CELLS_MAX]; /* the user's: what it counts */
    uint64_t numbers, acked, takeovers, ejected, recovered, stops, cuts, stalls, deaths, halves, steps, unaware, given_back,
        losses, poisoned, gone, unread, reads; /* of devices; disks that have lost writes; pieces that have; requests for what lies there */
};

/* @t->sim, n_devices, hosts, n_disks, fast, slowest_ns, span_s and burst are set; a volume is made, with its disks. @watched: from now on each step
 * is held to the order (tests/model/order.h), which is possible for small sites. */
void cl_open(struct cl_site *t, bool watched);
/* Everybody starts, and @nemesis (a fiber of the net, whose argument is @t) strikes until it calls cl_finish(). @seed: to be named in failures. */
void cl_run(struct cl_site *t, void (*nemesis)(void *arg), uint64_t seed);
/* All is read once more, and checked. */
void cl_close(struct cl_site *t);
/* No more faults: all may end in order. */
void cl_finish(struct cl_site *t);
/* The counters, from cells on, are added up. */
void cl_add(struct cl_site *sum, const struct cl_site *t);

void cl_host_start(struct cl_site *t, unsigned host);
/* Its newest start; NULL when it is over or dead. */
struct cl_host *cl_host_of(struct cl_site *t, unsigned host);
void cl_cut_all(struct cl_site *t, bool cut);
/* Sleep at most so long, and not much longer than the site lasts. */
void cl_nap(struct cl_site *t, uint64_t max_ms);
/* With GRANARY_LOUD set. */
void cl_loud(const struct cl_host *h, const char *what);
#endif
