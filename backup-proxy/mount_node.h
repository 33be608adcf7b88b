/* Nodes: one for each object that the kernel holds a reference on. */
#ifndef MOUNT_NODE_H
#define MOUNT_NODE_H
#include "backup-proxy/mount_view.h"

struct mount_node {
    struct mount_obj obj;
    struct stat st;
    uint64_t lookups;             /* references of the kernel */
    unsigned busy;                /* requests under way on it */
    const struct mount_node *key; /* itself, while it lives: guards against a stale number */
    struct mount_node *next;
};
struct mount_nodes {
    struct mount_node **table;
    size_t len, count;
};
/* The node of what was found, with @lookups more references; NULL: out of memory. */
struct mount_node *mount_node_ref(struct mount_nodes *t, const struct mount_found *f, uint64_t lookups);
/* The kernel drops @lookups references (more than it has: all). The node goes when no request needs it. */
void mount_node_forget(struct mount_nodes *t, struct mount_node *n, uint64_t lookups);
void mount_node_busy(struct mount_node *n);
void mount_node_idle(struct mount_nodes *t, struct mount_node *n);
void mount_nodes_done(struct mount_nodes *t);
#endif
