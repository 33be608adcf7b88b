/* The serial console of a guest: into a log with a cap, and to those who follow it. */
#ifndef HV_CONSOLE_H
#define HV_CONSOLE_H
#include "common/fiber.h"
#include "common/rpc.h"
#include "hv/logcap.h"

#define HV_CONSOLE_FOLLOW_MAX (256u << 10) /* bytes kept for one slow follower; older ones are left out */
struct hv_console;
/* (fiber) Connect to the engine's console at @socket, log to @log (at most @max bytes). */
int hv_console_open(struct gr_loop *loop, const char *socket, const char *log, uint64_t max, struct hv_console **ret, struct gr_err *err);
/* (fiber) NULL allowed; followers end first. */
void hv_console_close(struct hv_console *c);
/* (fiber) Send what is kept, then what comes until the console or the caller goes (parts {"data-b64"}). */
int hv_console_follow(struct hv_console *c, struct gr_rpc_call *call, bool follow, struct gr_err *err);
uint64_t hv_console_lost(const struct hv_console *c); /* bytes that could not be logged */
/* A line of our own in the log. */
void hv_console_mark(struct hv_console *c, const char *text);
/* Send @b as parts of at most 64 KiB. */
int hv_console_parts(struct gr_rpc_call *call, const struct gr_buf *b);
#endif
