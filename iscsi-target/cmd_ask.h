/* Shared by the commands of the target (cmd_lun.c, cmd_portal.c): asking the storage daemon of this home. In fibers; all take @params. */
#ifndef TGT_CMD_ASK_H
#define TGT_CMD_ASK_H
#include "common/cmd.h"

/* -ECONNREFUSED: it does not run, and nothing is recorded in @err. */
int tgt_cmd_ask_if(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err);
/* It must run. */
int tgt_cmd_ask(struct gr_cmd_ctx *c, const char *method, json_t *params, json_t **ret, struct gr_err *err);
/* Print the rows that @method gives; without a daemon nothing is served, and nobody logged in: an empty list. */
int tgt_cmd_rows(struct gr_cmd_ctx *c, const char *method, json_t *params, const struct gr_col *cols, struct gr_err *err);
#endif
