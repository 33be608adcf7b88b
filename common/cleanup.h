/* Scope-bound release (gcc and clang `cleanup` attribute). Every such variable is initialised where it is declared. */
#ifndef GR_CLEANUP_H
#define GR_CLEANUP_H
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define gr_auto(fn) __attribute__((cleanup(fn)))
static inline void gr_freep(void *p)
{
    free(*(void **)p);
    *(void **)p = NULL;
}
static inline void gr_closep(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}
static inline void gr_fclosep(FILE **f)
{
    if (*f)
        fclose(*f);
    *f = NULL;
}
static inline void gr_closedirp(DIR **d)
{
    if (*d)
        closedir(*d);
    *d = NULL;
}
#define gr_auto_free gr_auto(gr_freep)
#define gr_auto_close gr_auto(gr_closep)
#define gr_auto_fclose gr_auto(gr_fclosep)
#define gr_auto_closedir gr_auto(gr_closedirp)
/* Hand ownership out of a cleanup variable. */
#define gr_take(p)                  \
    ({                              \
        __typeof__(p) _t_ = (p);    \
        (p) = NULL;                 \
        _t_;                        \
    })
static inline int gr_take_fd(int *fd)
{
    int t = *fd;
    *fd = -1;
    return t;
}
#define GR_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define gr_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define GR_MIN(a, b) ((a) < (b) ? (a) : (b))
#define GR_MAX(a, b) ((a) > (b) ? (a) : (b))
#endif
