#include "common/cleanup.h"
#include "common/cmd_int.h"
#include <string.h>

void cmd_usage_line(FILE *f, const struct gr_cmd_ctx *c, const struct gr_cmd *cmd)
{
    fprintf(f, "%s%s%s%s%s", c->program, cmd->noun ? " " : "", cmd->noun ? cmd->noun : "", cmd->verb[0] ? " " : "", cmd->verb);
    if (cmd->args && cmd->args[0])
        fprintf(f, " %s", cmd->args);
    fputs(cmd->opts && cmd->opts->name ? " [options]\n" : "\n", f);
}

static void option_line(const char *name, const char *arg, const char *help)
{
    char left[64];
    snprintf(left, sizeof(left), "--%s%s%s", name, arg ? " " : "", arg ? arg : "");
    printf("  %-26s %s\n", left, help);
}

static void help_command(const struct gr_cmd_ctx *c)
{
    fputs("usage: ", stdout);
    cmd_usage_line(stdout, c, c->cmd);
    printf("\n%s\n\noptions:\n", c->cmd->help);
    for (const struct gr_opt *o = c->cmd->opts; o && o->name; o++)
        option_line(o->name, o->arg, o->help);
    option_line("json", NULL, "print the result as JSON");
    option_line("help", NULL, "print this");
}

static void command_row(const struct gr_cmd *cmd)
{
    char left[80];
    snprintf(left, sizeof(left), "%s%s%s %s", cmd->noun ? cmd->noun : "", cmd->noun ? " " : "", cmd->verb, cmd->args ? cmd->args : "");
    if (strlen(left) > 38)
        printf("  %s\n  %-38s %s\n", left, "", cmd->help);
    else
        printf("  %-38s %s\n", left, cmd->help);
}

static void help_list(const struct gr_cmd_ctx *c, const char *noun)
{
    const char *last = "";
    if (!noun)
        printf("%s: %s\n\n", c->program, c->about);
    printf("usage: %s %s [options] arguments\n", c->program, noun ? noun : "COMMAND");
    for (const struct gr_cmd *cmd = cmd_next(c->tables, NULL); cmd; cmd = cmd_next(c->tables, cmd)) {
        const char *this_noun = cmd->noun ? cmd->noun : "";
        if (noun && strcmp(noun, this_noun) != 0)
            continue;
        if (cmd == *c->tables || strcmp(last, this_noun) != 0)
            putchar('\n');
        last = this_noun;
        command_row(cmd);
    }
    printf("\nEvery command takes --help and --json; options may stand anywhere, \"--\" ends them.\n"
           "exit status: 0 done, 1 failed, 2 usage, 3 partly done, 4 locked or fenced, 5 damaged\n");
}

/* The table itself, for completion and for the check of the manual. */
static json_t *command_json(const struct gr_cmd *cmd)
{
    json_t *opts = json_array();
    for (const struct gr_opt *o = cmd->opts; o && o->name; o++)
        json_array_append_new(opts, json_pack("{s:s,s:s?,s:s,s:b}", "name", o->name, "arg", o->arg, "help", o->help, "repeat", o->repeat));
    return json_pack("{s:s?,s:s,s:s,s:s,s:o}", "noun", cmd->noun, "verb", cmd->verb, "args", cmd->args ? cmd->args : "", "help", cmd->help,
                     "options", opts);
}

static int help_json(const struct gr_cmd_ctx *c, const char *noun)
{
    json_t *all = json_array();
    for (const struct gr_cmd *cmd = cmd_next(c->tables, NULL); cmd; cmd = cmd_next(c->tables, cmd)) {
        if (c->cmd ? cmd == c->cmd : !noun || (cmd->noun && strcmp(noun, cmd->noun) == 0))
            json_array_append_new(all, command_json(cmd));
    }
    int r = json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
    return r < 0;
}

int cmd_help(struct gr_cmd_ctx *c, const char *noun)
{
    if (c->json)
        return help_json(c, noun);
    if (c->cmd)
        help_command(c);
    else
        help_list(c, noun);
    return 0;
}
