/* Context switch. x86-64: the registers that the System V ABI wants kept across a call (psABI 1.0, 3.2.1), no system
 * call. Elsewhere: ucontext, which is portable and saves the signal mask each time. */
#include "common/fiber_ctx.h"
#include <stdint.h>

#if defined(__x86_64__) && !defined(GR_FIBER_UCONTEXT)
void gr_fctx_swap(void **save_sp, void *load_sp);
void gr_fctx_begin(void);
__asm__(".text\n"
        ".globl gr_fctx_swap\n"
        ".hidden gr_fctx_swap\n"
        ".type gr_fctx_swap,@function\n"
        "gr_fctx_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size gr_fctx_swap,.-gr_fctx_swap\n"
        /* First run of a fiber: r12 = entry, r13 = its argument. The zero below ends a debugger's walk. */
        ".globl gr_fctx_begin\n"
        ".hidden gr_fctx_begin\n"
        ".type gr_fctx_begin,@function\n"
        "gr_fctx_begin:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined rip\n"
        "    movq %r13, %rdi\n"
        "    callq *%r12\n"
        "    ud2\n"
        "    .cfi_endproc\n"
        ".size gr_fctx_begin,.-gr_fctx_begin\n");

void gr_fctx_make(struct gr_fctx *ctx, void *stack, size_t len, void (*entry)(void *arg), void *arg)
{
    uintptr_t top = ((uintptr_t)stack + len) & ~(uintptr_t)15;
    uint64_t *sp = (uint64_t *)top; /* NOLINT: the stack's own memory */

    *--sp = 0;
    *--sp = 0;                        /* rsp is 16-byte aligned where gr_fctx_begin makes its call */
    *--sp = (uintptr_t)gr_fctx_begin; /* ret */
    *--sp = 0;                        /* rbp */
    *--sp = 0;                        /* rbx */
    *--sp = (uintptr_t)entry;         /* r12 */
    *--sp = (uintptr_t)arg;           /* r13 */
    *--sp = 0;                        /* r14 */
    *--sp = 0;                        /* r15 */
    ctx->sp = sp;
}

void gr_fctx_switch(struct gr_fctx *from, struct gr_fctx *to)
{
    gr_fctx_swap(&from->sp, to->sp);
}
#else
static void begin(unsigned hi1, unsigned lo1, unsigned hi2, unsigned lo2)
{
    void (*entry)(void *) = (void (*)(void *))(uintptr_t)((uint64_t)hi1 << 32 | lo1);

    entry((void *)(uintptr_t)((uint64_t)hi2 << 32 | lo2));
}

void gr_fctx_make(struct gr_fctx *ctx, void *stack, size_t len, void (*entry)(void *arg), void *arg)
{
    uint64_t e = (uintptr_t)entry, a = (uintptr_t)arg;

    getcontext(&ctx->uc);
    ctx->uc.uc_stack.ss_sp = stack;
    ctx->uc.uc_stack.ss_size = len;
    ctx->uc.uc_link = NULL;
    makecontext(&ctx->uc, (void (*)(void))begin, 4, (unsigned)(e >> 32), (unsigned)e, (unsigned)(a >> 32), (unsigned)a);
}

void gr_fctx_switch(struct gr_fctx *from, struct gr_fctx *to)
{
    swapcontext(&from->uc, &to->uc);
}
#endif
