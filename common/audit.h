/* The audit log of a home: one line of JSON in log/audit.log for every call of a method that changes something (all but those that only
 * ask: gr_rpc_method.asks), whoever made it and whatever became of it, written before the answer goes out.
 *
 *   {"utc":"2026-11-27T23:10:51Z","time":1764285051,"uid":0,"pid":4242,"method":"disk.create","named":{"disk":"ds1/a","size":1048576},
 *    "result":"ok","seconds":0.013}          from another host "host" and "from" (its address) take the place of uid and pid
 *
 * What an initiator destroys with one command (SANITIZE: method "iscsi.sanitize") is there as well, with "initiator" and "from".
 *
 * What destroys (gr_rpc_method.destroys: delete, revert, prune, erase, a device removed, …) leaves one before it begins as well, on the disk before
 * anything is changed, with "result" "begun" and "seconds" null; both have the same "call". A crash in the middle leaves that one alone.
 *
 * "time" is when it ended (or began), seconds since 1970; "result" is "ok" or the name of a code; "named" has what the caller named and nothing
 * that could be a secret: parameters of a list, see audit.c. Like the other logs it is put aside as audit.log.old above 16 MiB. */
#ifndef GR_AUDIT_H
#define GR_AUDIT_H
#include "common/cmd.h"
#include "common/home.h"
#include "common/rpc.h"

struct gr_audit {
    char *path;
    void *arg;
    void (*warn)(void *arg, const char *text); /* a line could not be written: the work goes on. May be NULL */
};
/* Where the log of @home is; release with gr_audit_done(). Nothing is made before the first line. Any context, like all here. */
int gr_audit_init(struct gr_audit *a, const struct gr_home *home, void (*warn)(void *arg, const char *text), void *arg, struct gr_err *err);
void gr_audit_done(struct gr_audit *a); /* once no server writes to it any more; zeros allowed */
/* Leave a line for each call that @s serves; @a outlives it. */
void gr_audit_watch(struct gr_audit *a, struct gr_rpc_server *s);
/* A line for something done otherwise by this process: @result and @ns (how long it took) as of a call. */
void gr_audit_line(struct gr_audit *a, const struct gr_rpc_seen *seen);
/* A line for what this process did itself to @home, without a server: @params borrowed. @warn as above. */
void gr_audit_own(const struct gr_home *home, const char *method, json_t *params, int result, uint64_t ns, void (*warn)(void *arg, const char *text));
/* Call fn(arg, line) for each line not before @since (seconds since 1970), oldest first; a negative return ends it. How many lines
 * could not be read, or a negative code. */
int gr_audit_read(const struct gr_home *home, int64_t since, int (*fn)(void *arg, json_t *line), void *arg, struct gr_err *err);
extern const struct gr_cmd gr_audit_commands[]; /* audit */
#endif
