/* Is there an order of all operations on a file system that explains every answer, and in which each took effect between its call and its return?
 * The operations were recorded by processes that worked at the same time; what is promised is docs/mount.md ("In which order").
 *
 * A path is looked up before it is acted on, as in any Unix: an operation is up to four instants in this order (folder, second folder, name, file), all
 * between its call and its return. What is done to a descriptor is one instant.
 *
 * The search goes through calls and returns by time and keeps every state that is possible so far (a state has the files, and how far each operation
 * under way has come). When one returns, it takes its instants, and before them as many of the others' as it needs; whoever cannot give the answer that
 * was recorded goes. No state left: there is no such order. */
#ifndef FS_ORDER_H
#define FS_ORDER_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    FO_PROCS = 4, /* at the same time */
    FO_FDS = 2,   /* descriptors of each */
    FO_FOLDERS = 2, /* names of folders at the top; a file is in folder 0, the top, or in 1 to FO_FOLDERS */
    FO_NAMES = 3, /* of files in each */
    FO_CELLS = 8, /* of a file that are looked at: each is written whole, by one operation, which is its tag. 0: zeros */
};

enum fo_kind { FO_OPEN, FO_CLOSE, FO_READ, FO_WRITE, FO_APPEND, FO_TRUNCATE, FO_FSTAT, FO_STAT, FO_UNLINK, FO_RENAME, FO_MKDIR, FO_RMDIR, FO_RENAME_DIR, FO_LIST, FO_KINDS };

/* What was asked, and what came back. */
struct fo_op {
    uint64_t start_ns, end_ns;  /* call and return, of one clock */
    enum fo_kind kind;
    uint8_t proc, host;
    uint8_t fd;                 /* of the process: OPEN sets it, CLOSE to FSTAT use it */
    uint8_t dir, name;          /* folder and name; MKDIR, RMDIR, RENAME_DIR: the folder is dir */
    uint8_t dir2, name2;        /* where RENAME, RENAME_DIR go */
    bool create, exclusive, cut; /* OPEN: O_CREAT, O_EXCL, O_TRUNC */
    bool keep, swap;            /* RENAME: RENAME_NOREPLACE, RENAME_EXCHANGE */
    uint8_t first, n;           /* READ, WRITE: cells; APPEND: n; TRUNCATE: to n */
    uint16_t tag;               /* WRITE, APPEND: not 0 */
    int err;                    /* errno, 0: done */
    uint32_t size;              /* FSTAT, STAT: cells; READ: how many came */
    uint16_t cells[FO_CELLS];   /* READ */
    uint32_t names;             /* LIST: bit per file; from FO_NAMES on, at the top, a bit per folder */
};

struct fo_found {
    size_t at;       /* which operation returned what no order explains */
    bool too_many;   /* or there are more states than can be looked at: nothing is known */
    size_t states;   /* the most there were at once */
    size_t crossing; /* operations that overlapped one of another host */
};

/* @ops: @n, in any order; they are sorted by return. All begins with empty folders' parent: no file, no folder, no descriptor. 0: explained, -1: not. */
int fo_check(struct fo_op *ops, size_t n, struct fo_found *ret);
/* One operation as a line of text. */
void fo_print(const struct fo_op *op, char *text, size_t size);
#endif
