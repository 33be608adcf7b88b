/* Machine contexts of fibers: a stack and the place where it goes on. fiber*.c only. */
#ifndef GR_FIBER_CTX_H
#define GR_FIBER_CTX_H
#include <stddef.h>
#if !defined(__x86_64__) || defined(GR_FIBER_UCONTEXT)
#include <ucontext.h>
#endif

struct gr_fctx {
#if defined(__x86_64__) && !defined(GR_FIBER_UCONTEXT)
    void *sp;
#else
    ucontext_t uc;
#endif
};
/* Prepare @ctx to run entry(arg) on the stack [stack, stack+len) at the first switch to it. entry never returns. */
void gr_fctx_make(struct gr_fctx *ctx, void *stack, size_t len, void (*entry)(void *arg), void *arg);
/* Go on at @to; what runs now goes on when somebody switches to @from. */
void gr_fctx_switch(struct gr_fctx *from, struct gr_fctx *to);
#endif
