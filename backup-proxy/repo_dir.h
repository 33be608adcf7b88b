/* Private to the repository's files. */
#ifndef BP_REPO_DIR_H
#define BP_REPO_DIR_H
#include "backup-proxy/repo.h"
#include <pthread.h>

#define REPO_FDS 64u
struct repo_fd {
    uint64_t pack;
    int fd; /* -1: free */
    unsigned users;
    uint64_t used; /* clock of last use */
};
struct bp_repo {
    char *path;
    int dir;
    uint8_t uuid[16];
    int index_fd; /* -1: no index (read-only or failed) */
    uint32_t index_buckets, index_evicted;
    int index_old[16]; /* smaller ones, kept open until the end: a search may be in one */
    unsigned index_n_old;
    pthread_mutex_t lock; /* the table of open packs; which index is in use */
    uint64_t clock;
    struct repo_fd fds[REPO_FDS];
};
/* Descriptor of a sealed pack whose header was checked; give back with repo_pack_put. Thread-safe. */
int repo_pack_get(struct bp_repo *r, uint64_t id, int *ret_fd, struct gr_err *err);
void repo_pack_put(struct bp_repo *r, uint64_t id, int fd);
void repo_index_open(struct bp_repo *r); /* best effort */
void repo_index_close(struct bp_repo *r);
void repo_pack_header(const struct bp_repo *r, uint64_t id, struct pack_header_disk *ret);
#endif
