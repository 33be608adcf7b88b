/* Inside of the command line: shared by cmd.c (parsing, running), cmd_help.c and cmd_out.c only. */
#ifndef GR_CMD_INT_H
#define GR_CMD_INT_H
#include "common/cmd.h"
#include <stdbool.h>
#include <stdio.h>

struct cmd_value {
    const char *name;  /* option, borrowed from argv and its table */
    const char *value; /* NULL: a flag */
    size_t name_len;
};
struct gr_cmd_ctx {
    const char *program, *about;
    const struct gr_cmd *const *tables;
    const struct gr_cmd *cmd;
    const char **args; /* what is no option; noun and verb dropped */
    int n_args;
    struct cmd_value *opts;
    int n_opts;
    bool json, help, version, told;
    struct gr_loop *loop;
    void *app;
    /* output */
    const struct gr_col *stream_cols;
    uint64_t stream_rows;
    uint64_t progress_next_ns, progress_start_ns;
    bool progress_shown;
};
/* Is @cmd the program itself (granary-storaged), not one of several commands? */
static inline bool cmd_is_program(const struct gr_cmd *cmd)
{
    return !cmd->noun && cmd->verb[0] == 0;
}
/* Next command of all tables behind @prev (NULL: the first); NULL at the end. */
const struct gr_cmd *cmd_next(const struct gr_cmd *const *tables, const struct gr_cmd *prev);
/* Help of the program, a noun (@noun, @cmd NULL) or one command; text, or the table itself with --json. */
int cmd_help(struct gr_cmd_ctx *c, const char *noun);
void cmd_usage_line(FILE *f, const struct gr_cmd_ctx *c, const struct gr_cmd *cmd);
void cmd_progress_clear(struct gr_cmd_ctx *c);
#endif
