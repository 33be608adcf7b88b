/* Guest agent client (qemu-guest-agent). The guest is not trusted: whatever it answers is bounded and checked, and whatever
 * it does not answer in time is waited for no longer. After a time-out the channel is synchronised again
 * (guest-sync-delimited) before the next command, so that a late answer is never taken for that of another command. */
#ifndef HV_QGA_H
#define HV_QGA_H
#include "common/buf.h"
#include "common/fiber.h"
#include <jansson.h>

struct hv_qga;
/* @path: the socket of the agent's channel. Connects when first needed. */
int hv_qga_new(struct gr_loop *loop, const char *path, struct hv_qga **ret);
/* (fiber) No call may be under way. NULL allowed. */
void hv_qga_free(struct hv_qga *g);
/* Tell whether the guest has the channel open (QMP says so). While closed every call fails at once with -ENOTCONN. */
void hv_qga_set_open(struct hv_qga *g, bool open);
bool hv_qga_is_open(const struct hv_qga *g);
/* (fiber) Run @cmd; @args reference is taken, may be NULL. *ret (may be NULL): a new reference to "return". Calls queue.
 * -ENOTCONN: no agent; -ETIMEDOUT: no answer, the command may still take effect; -EIO: the agent's refusal, with its text;
 * -GR_EPROTO. */
int hv_qga_call(struct hv_qga *g, const char *cmd, json_t *args, uint64_t timeout_ms, json_t **ret, struct gr_err *err);
int hv_qga_ping(struct hv_qga *g, uint64_t timeout_ms, struct gr_err *err);

#define HV_EXEC_OUTPUT_MAX (8u << 20)
struct hv_exec_result {
    int exit_code;        /* 0..255; 128 + n after signal n */
    bool truncated;       /* the agent kept only the first part of the output */
    struct gr_buf out, err;
};
/* (fiber) Run argv[0] with argv[1..] in the guest, wait for its end and collect its output. @input may be NULL.
 * -ETIMEDOUT after @timeout_ms: the program runs on. Release *ret's buffers also after an error. */
int hv_qga_exec(struct hv_qga *g, json_t *argv, const struct gr_buf *input, uint64_t timeout_ms, struct hv_exec_result *ret, struct gr_err *err);
#endif
