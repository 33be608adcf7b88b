#include "hv/microguest.h"
#include "common/seam.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#define MEM_SIZE (2u << 20)
#define STEP_MS 100
#define CPUID_MAX 128
#define LOOPS 10000000ull
/* Guest-physical layout; everything below 2 MiB is mapped one to one. */
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, GDT = 0x4000, IDT = 0x5000, STACK = 0x8000, CODE = 0x9000, HANDLER = 0x9800, DATA = 0xa000, XSAVE = 0xb000 };

/* dec rcx; jnz -5; hlt */
static const uint8_t code_loop[] = {0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4};
/* lock cmpxchg16b [rdi]; hlt */
static const uint8_t code_cmpxchg16b[] = {0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0xf4};
/* mov eax,1; xor edx,edx; xsave [rsi]; xrstor [rsi]; hlt */
static const uint8_t code_xsave[] = {0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x26, 0x0f, 0xae, 0x2e, 0xf4};
/* int3; hlt, with the handler: inc r8; iretq */
static const uint8_t code_int3[] = {0xcc, 0xf4}, code_handler[] = {0x49, 0xff, 0xc0, 0x48, 0xcf};

struct micro {
    int kvm, vm, vcpu;
    uint8_t *mem;
    struct kvm_run *run;
    bool xsave;
};

static void put64(uint8_t *mem, size_t at, uint64_t v)
{
    memcpy(mem + at, &v, sizeof v);
}

static void build_memory(uint8_t *mem)
{
    put64(mem, PML4, PDPT | 3);
    put64(mem, PDPT, PD | 3);
    put64(mem, PD, 0x83); /* one 2 MiB page */
    put64(mem, GDT + 8, 0x00af9b000000ffffull);
    put64(mem, GDT + 16, 0x00cf93000000ffffull);
    /* vector 3: interrupt gate to HANDLER in segment 8 */
    put64(mem, IDT + 3 * 16, (uint64_t)(HANDLER & 0xffff) | 8ull << 16 | 0x8e00ull << 32);
    memcpy(mem + HANDLER, code_handler, sizeof code_handler);
}

static int set_cpuid(struct micro *m)
{
    struct kvm_cpuid2 *c = gr_zalloc(sizeof *c + CPUID_MAX * sizeof c->entries[0]);
    if (!c)
        return -ENOMEM;
    c->nent = CPUID_MAX;
    int r = ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, c) < 0 ? -errno : 0;
    for (unsigned i = 0; r >= 0 && i < c->nent; i++)
        if (c->entries[i].function == 1)
            m->xsave = c->entries[i].ecx >> 26 & 1;
    if (r >= 0 && ioctl(m->vcpu, KVM_SET_CPUID2, c) < 0)
        r = -errno;
    free(c);
    return r;
}

static int set_registers(struct micro *m)
{
    struct kvm_sregs s;
    if (ioctl(m->vcpu, KVM_GET_SREGS, &s) < 0)
        return -errno;
    struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.gdt.base = GDT;
    s.gdt.limit = 23;
    s.idt.base = IDT;
    s.idt.limit = 256 * 16 - 1;
    s.cr0 = 0x80000033;                         /* PG NE ET MP PE */
    s.cr4 = 0x220 | (m->xsave ? 1u << 18 : 0); /* OSFXSR PAE OSXSAVE */
    s.cr3 = PML4;
    s.efer = 0x500; /* LMA LME */
    return ioctl(m->vcpu, KVM_SET_SREGS, &s) < 0 ? -errno : 0;
}

static int setup(struct micro *m)
{
    m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
    if (m->vm < 0)
        return -errno;
    m->mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m->mem == MAP_FAILED)
        return -ENOMEM;
    build_memory(m->mem);
    struct kvm_userspace_memory_region region = {.memory_size = MEM_SIZE, .userspace_addr = (uint64_t)(uintptr_t)m->mem};
    if (ioctl(m->vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) < 0 || ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ||
        (m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0)) < 0)
        return -errno;
    int size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size <= 0)
        return -EIO;
    m->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
    if (m->run == MAP_FAILED)
        return -errno;
    int r = set_cpuid(m);
    return r < 0 ? r : set_registers(m);
}

static void on_alarm(int signo)
{
}

/* Run @code from @regs on. 0: it came to its HLT, *regs as then; -EINTR: the watchdog; -EFAULT: KVM_EXIT_INTERNAL_ERROR;
 * -EIO: another exit. *ret_ns: how long. */
static int run_code(struct micro *m, const uint8_t *code, size_t len, struct kvm_regs *regs, uint64_t *ret_ns)
{
    struct itimerval limit = {.it_value.tv_usec = STEP_MS * 1000, .it_interval.tv_usec = 5000}, off = {0};
    memset(m->mem + CODE, 0xf4, HANDLER - CODE);
    memcpy(m->mem + CODE, code, len);
    regs->rip = CODE;
    regs->rsp = STACK;
    regs->rflags = 2;
    if (ioctl(m->vcpu, KVM_SET_REGS, regs) < 0)
        return -errno;
    setitimer(ITIMER_REAL, &limit, NULL);
    uint64_t begin = gr_world_real()->mono_ns(NULL);
    int r = ioctl(m->vcpu, KVM_RUN, 0) < 0 ? -errno : 0;
    *ret_ns = gr_world_real()->mono_ns(NULL) - begin;
    setitimer(ITIMER_REAL, &off, NULL);
    if (r >= 0 && m->run->exit_reason != KVM_EXIT_HLT)
        r = m->run->exit_reason == KVM_EXIT_INTERNAL_ERROR ? -EFAULT : -EIO;
    if (ioctl(m->vcpu, KVM_GET_REGS, regs) < 0)
        return -errno;
    return r;
}

/* Ring-0 speed in million instructions a second; also when the watchdog ended the loop. */
static int measure(struct micro *m, uint64_t *ret_mips)
{
    struct kvm_regs regs = {.rcx = LOOPS};
    uint64_t ns = 1;
    int r = run_code(m, code_loop, sizeof code_loop, &regs, &ns);
    if (r < 0 && r != -EINTR)
        return r;
    *ret_mips = (LOOPS - regs.rcx) * 2 * 1000 / (ns ? ns : 1);
    return 0;
}

static int check_instructions(struct micro *m, const char **ret_name)
{
    uint64_t ns, low, high;
    struct kvm_regs regs = {.rdi = DATA, .rbx = 1, .rcx = 2};
    *ret_name = "LOCK CMPXCHG16B";
    int r = run_code(m, code_cmpxchg16b, sizeof code_cmpxchg16b, &regs, &ns);
    memcpy(&low, m->mem + DATA, 8);
    memcpy(&high, m->mem + DATA + 8, 8);
    if (r < 0 || low != 1 || high != 2)
        return r < 0 ? r : -EIO;
    if (m->xsave) {
        *ret_name = "XSAVE/XRSTOR";
        regs = (struct kvm_regs){.rsi = XSAVE};
        if ((r = run_code(m, code_xsave, sizeof code_xsave, &regs, &ns)) < 0)
            return r;
    }
    *ret_name = "INT3";
    regs = (struct kvm_regs){0};
    r = run_code(m, code_int3, sizeof code_int3, &regs, &ns);
    return r < 0 ? r : regs.r8 == 1 ? 0 : -EIO;
}

void hv_microguests(const char *device, struct hv_probe *ret)
{
    struct micro m = {.kvm = -1, .vm = -1, .vcpu = -1};
    struct sigaction sa = {.sa_handler = on_alarm};
    const char *name = "";
    sigset_t alarm_set;
    ret->verdict = HV_ACCEL_TCG;
    sigaction(SIGALRM, &sa, NULL);
    sigemptyset(&alarm_set);
    sigaddset(&alarm_set, SIGALRM);
    sigprocmask(SIG_UNBLOCK, &alarm_set, NULL);
    m.kvm = open(device, O_RDWR | O_CLOEXEC);
    if (m.kvm < 0) {
        snprintf(ret->reason, sizeof ret->reason, "%s cannot be opened: %s", device, strerror(errno));
        return;
    }
    int version = ioctl(m.kvm, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        snprintf(ret->reason, sizeof ret->reason, "%s has API version %d, not %d", device, version, KVM_API_VERSION);
        return;
    }
    int r = setup(&m);
    if (r < 0) {
        snprintf(ret->reason, sizeof ret->reason, "KVM makes no 64-bit machine: %s", strerror(-r));
    } else if ((r = check_instructions(&m, &name)) < 0) {
        snprintf(ret->reason, sizeof ret->reason, "KVM cannot run %s in ring 0: %s", name, r == -EFAULT ? "emulation failure" : r == -EINTR ? "no end" : "wrong result");
    } else if ((r = measure(&m, &ret->mips)) < 0) {
        snprintf(ret->reason, sizeof ret->reason, "KVM ended a ring-0 loop: %s", r == -EFAULT ? "emulation failure" : "unexpected exit");
    } else if (ret->mips < HV_PROBE_MIPS) {
        snprintf(ret->reason, sizeof ret->reason, "KVM runs ring 0 at %llu million instructions/s only, through an emulator; %d are needed", (unsigned long long)ret->mips,
                 HV_PROBE_MIPS);
    } else {
        ret->verdict = HV_ACCEL_KVM;
        snprintf(ret->reason, sizeof ret->reason, "KVM runs ring 0 at %llu million instructions/s", (unsigned long long)ret->mips);
    }
}
