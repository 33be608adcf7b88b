#include "backup-proxy/mount_node.h"
#include "common/seam.h"
#include <stdlib.h>
#include <string.h>

static size_t slot_of(const struct mount_obj *o, size_t len)
{
    uint64_t h = o->inode * 0x9e3779b97f4a7c15u ^ ((uint64_t)o->kind << 48 | (uint64_t)o->disk << 24 | o->vol) * 0xff51afd7ed558ccdu;
    return (size_t)(h ^ h >> 29) & (len - 1);
}

static bool same(const struct mount_obj *a, const struct mount_obj *b)
{
    return a->inode == b->inode && a->kind == b->kind && a->disk == b->disk && a->vol == b->vol;
}

static int grow(struct mount_nodes *t)
{
    size_t len = t->len ? t->len * 2 : 1024;
    struct mount_node **table = gr_zalloc(len * sizeof *table);
    if (!table)
        return -ENOMEM;
    for (size_t i = 0; i < t->len; i++)
        for (struct mount_node *n = t->table[i], *next; n; n = next) {
            struct mount_node **p = &table[slot_of(&n->obj, len)];
            next = n->next;
            n->next = *p;
            *p = n;
        }
    free(t->table);
    t->table = table;
    t->len = len;
    return 0;
}

struct mount_node *mount_node_ref(struct mount_nodes *t, const struct mount_found *f, uint64_t lookups)
{
    if (t->count >= t->len && grow(t) < 0 && t->len == 0)
        return NULL;
    struct mount_node **p = &t->table[slot_of(&f->obj, t->len)];
    for (struct mount_node *n = *p; n; n = n->next)
        if (same(&n->obj, &f->obj)) {
            n->lookups += lookups;
            n->st = f->st;
            return n;
        }
    struct mount_node *n = gr_zalloc(sizeof *n);
    if (!n)
        return NULL;
    *n = (struct mount_node){.obj = f->obj, .st = f->st, .lookups = lookups, .key = n, .next = *p};
    *p = n;
    t->count++;
    return n;
}

static void drop_if_unused(struct mount_nodes *t, struct mount_node *n)
{
    if (n->lookups || n->busy)
        return;
    struct mount_node **p = &t->table[slot_of(&n->obj, t->len)];
    while (*p != n)
        p = &(*p)->next;
    *p = n->next;
    t->count--;
    n->key = NULL;
    free(n);
}

void mount_node_forget(struct mount_nodes *t, struct mount_node *n, uint64_t lookups)
{
    n->lookups -= lookups < n->lookups ? lookups : n->lookups;
    drop_if_unused(t, n);
}

void mount_node_busy(struct mount_node *n)
{
    n->busy++;
}

void mount_node_idle(struct mount_nodes *t, struct mount_node *n)
{
    n->busy--;
    drop_if_unused(t, n);
}

void mount_nodes_done(struct mount_nodes *t)
{
    for (size_t i = 0; i < t->len; i++)
        for (struct mount_node *n = t->table[i], *next; n; n = next) {
            next = n->next;
            free(n);
        }
    free(t->table);
    *t = (struct mount_nodes){0};
}
