/* The command line: one table drives parsing, --help, completion and the manual check.
 *
 *   granary NOUN VERB [options] arguments        options may stand anywhere; "--" ends them
 * A program that is one command (granary-storaged) has a table of one entry with noun NULL and verb "".
 * `PROGRAM --help --json` prints the table itself. An option of one name takes a value in all commands or in none.
 *
 * Exit status: 0 done, 1 failed, 2 usage, 3 partly done, 4 locked or fenced, 5 damaged. stdout is data, stderr is talk. */
#ifndef GR_CMD_H
#define GR_CMD_H
#include "common/fiber.h"
#include <jansson.h>
#define GR_VERSION "0.1.0"

struct gr_opt {
    const char *name; /* without "--" */
    const char *arg;  /* "SIZE": takes a value; NULL: a flag. No optional values. */
    const char *help;
    bool repeat;      /* may be given several times */
};
struct gr_cmd_ctx; /* parsed command line and output of one run */
struct gr_cmd {
    const char *noun; /* "datastore"; NULL for one-word commands ("up") */
    const char *verb;
    const char *args; /* "NAME DEVICE..." as shown */
    int min_args, max_args; /* -1: any number */
    const char *help;       /* one line */
    const struct gr_opt *opts; /* NULL-name terminated, may be NULL; --help and --json are always there */
    int (*fn)(struct gr_cmd_ctx *c, struct gr_err *err); /* in a fiber; returns 0 or a negative code (-GR_EUSAGE: usage is shown) */
};
const char *gr_cmd_arg(const struct gr_cmd_ctx *c, int i);  /* i-th argument, NULL behind the last */
int gr_cmd_nargs(const struct gr_cmd_ctx *c);
const char *gr_cmd_opt(const struct gr_cmd_ctx *c, const char *name);         /* last value given, NULL when absent */
const char *gr_cmd_opt_n(const struct gr_cmd_ctx *c, const char *name, int i); /* i-th value of a repeated option */
bool gr_cmd_flag(const struct gr_cmd_ctx *c, const char *name);
/* Options of one form, into @params: "on" or "off" as a boolean under their name; a number, a size (@bytes) or "off" (0) under @key. Absent: nothing
 * is set. 0 or -GR_EUSAGE. */
int gr_cmd_on_off(struct gr_cmd_ctx *c, const char *name, json_t *params, struct gr_err *err);
int gr_cmd_limit(struct gr_cmd_ctx *c, const char *name, const char *key, bool bytes, json_t *params, struct gr_err *err);
bool gr_cmd_json(const struct gr_cmd_ctx *c);
/* "warning: @text" on standard error; @arg is not looked at, so that it can be a hook. */
void gr_cmd_warn(void *arg, const char *text);
/* The failure of this command is part of its result already; standard error says nothing more of it. */
void gr_cmd_told(struct gr_cmd_ctx *c);
struct gr_loop *gr_cmd_loop(const struct gr_cmd_ctx *c);
void *gr_cmd_app(const struct gr_cmd_ctx *c); /* what main passed */

/* Output. A column shows one key of each row as text; --json prints the rows as they are. Control characters and broken
 * UTF-8 are escaped in text. Column tables end with an entry whose key is NULL. */
enum gr_col_kind { GR_COL_TEXT, GR_COL_SIZE, GR_COL_NUMBER, GR_COL_TIME, GR_COL_BOOL, GR_COL_LIST };
struct gr_col {
    const char *key;   /* kebab-case JSON key */
    const char *title; /* heading of the text table */
    enum gr_col_kind kind;
};
/* Print an array of objects (takes no reference): a table, or JSON. */
int gr_cmd_rows(struct gr_cmd_ctx *c, const struct gr_col *cols, json_t *rows);
/* Rows as a tree: each below the one whose @id equals its @parent (at the root if there is none), the first column indented, and behind what is below
 * one with "current" a row that says @now there. With --json the rows as they are. */
int gr_cmd_tree(struct gr_cmd_ctx *c, const struct gr_col *cols, json_t *rows, const char *id, const char *parent, const char *now);
/* Print one object: "title: value" lines, or JSON. */
int gr_cmd_object(struct gr_cmd_ctx *c, const struct gr_col *cols, json_t *obj);
/* One sentence of result for people ("created ds1/web01"); silent with --json, which prints @obj instead (may be NULL: {}). */
int gr_cmd_done(struct gr_cmd_ctx *c, json_t *obj, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Streamed rows of --json (an array printed element by element) or text lines. */
int gr_cmd_stream_begin(struct gr_cmd_ctx *c, const struct gr_col *cols);
int gr_cmd_stream_row(struct gr_cmd_ctx *c, json_t *row);
int gr_cmd_stream_end(struct gr_cmd_ctx *c);
/* Progress of long work on stderr, at most 5 times a second, only when stderr is a terminal. total 0: unknown. */
void gr_cmd_progress(struct gr_cmd_ctx *c, const char *what, uint64_t done, uint64_t total, bool bytes);

/* Parse and run: prints help and errors, returns the exit status. @tables: NULL-terminated list of tables, each ended by an
 * entry with verb NULL. @about: one line. */
int gr_cmd_main(int argc, char **argv, const char *program, const char *about, const struct gr_cmd *const *tables, void *app);
#endif
