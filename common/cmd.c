#include "common/cmd.h"
#include "common/cleanup.h"
#include "common/cmd_int.h"
#include <signal.h>
#include <string.h>

const struct gr_cmd *cmd_next(const struct gr_cmd *const *tables, const struct gr_cmd *prev)
{
    for (; *tables; tables++) {
        const struct gr_cmd *cmd = *tables;
        if (!prev && cmd->verb)
            return cmd;
        for (; prev && cmd->verb; cmd++)
            if (cmd == prev) {
                if (cmd[1].verb)
                    return cmd + 1;
                prev = NULL;
                break;
            }
    }
    return NULL;
}

static const struct gr_opt *find_opt(const struct gr_cmd *cmd, const char *name, size_t len)
{
    for (const struct gr_opt *o = cmd->opts; o && o->name; o++)
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0)
            return o;
    return NULL;
}

/* The words so far may be the beginning of this command. */
static bool may_be(const struct gr_cmd_ctx *c, const struct gr_cmd *cmd)
{
    if (cmd_is_program(cmd) || c->n_args == 0)
        return true;
    if (strcmp(cmd->noun ? cmd->noun : cmd->verb, c->args[0]) != 0)
        return false;
    return !cmd->noun || c->n_args == 1 || strcmp(cmd->verb, c->args[1]) == 0;
}

/* Options may stand before the command is known: does any that it may be have this one with a value? */
static bool takes_value(const struct gr_cmd_ctx *c, const char *name, size_t len)
{
    for (const struct gr_cmd *cmd = cmd_next(c->tables, NULL); cmd; cmd = cmd_next(c->tables, cmd)) {
        const struct gr_opt *o = may_be(c, cmd) ? find_opt(cmd, name, len) : NULL;
        if (o && o->arg)
            return true;
    }
    return false;
}

static bool is_word(const char *name, size_t len, const char *word)
{
    return strlen(word) == len && memcmp(name, word, len) == 0;
}

/* Split argv into options and the rest. */
static int split(struct gr_cmd_ctx *c, int argc, char **argv, struct gr_err *err)
{
    bool ended = false;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (ended || a[0] != '-' || a[1] == 0) {
            c->args[c->n_args++] = a;
            continue;
        }
        if (strcmp(a, "--") == 0) {
            ended = true;
            continue;
        }
        if (a[1] != '-' && strcmp(a, "-h") != 0)
            return gr_fail(err, -GR_EUSAGE, "no option '%s': options are written --name", a);
        const char *name = a[1] == '-' ? a + 2 : "help", *eq = strchr(name, '=');
        size_t len = eq ? (size_t)(eq - name) : strlen(name);
        if (!eq && is_word(name, len, "json")) {
            c->json = true;
        } else if (!eq && is_word(name, len, "help")) {
            c->help = true;
        } else if (!eq && is_word(name, len, "version")) {
            c->version = true;
        } else {
            struct cmd_value *v = &c->opts[c->n_opts++];
            *v = (struct cmd_value){.name = name, .name_len = len, .value = eq ? eq + 1 : NULL};
            if (!eq && takes_value(c, name, len)) {
                if (i + 1 == argc && !c->help)
                    return gr_fail(err, -GR_EUSAGE, "option --%s needs a value", name);
                v->value = i + 1 < argc ? argv[++i] : "";
            }
        }
    }
    return 0;
}

static void drop_args(struct gr_cmd_ctx *c, int n)
{
    memmove(c->args, c->args + n, (size_t)(c->n_args - n) * sizeof(*c->args));
    c->n_args -= n;
}

/* Find the command the words name; *ret_noun is set when only a noun was given. */
static int find_command(struct gr_cmd_ctx *c, const char **ret_noun, struct gr_err *err)
{
    const char *first = c->n_args > 0 ? c->args[0] : NULL, *second = c->n_args > 1 ? c->args[1] : NULL;
    bool noun_known = false;
    *ret_noun = NULL;
    for (const struct gr_cmd *cmd = cmd_next(c->tables, NULL); cmd; cmd = cmd_next(c->tables, cmd)) {
        if (cmd_is_program(cmd)) {
            c->cmd = cmd;
            return 0;
        }
        if (!first || strcmp(cmd->noun ? cmd->noun : cmd->verb, first) != 0)
            continue;
        if (!cmd->noun || (second && strcmp(cmd->verb, second) == 0)) {
            c->cmd = cmd;
            drop_args(c, cmd->noun ? 2 : 1);
            return 0;
        }
        noun_known = true;
    }
    if (!first)
        return c->help || c->version ? 0 : gr_fail(err, -GR_EUSAGE, "which command? %s --help lists them", c->program);
    if (!noun_known)
        return gr_fail(err, -GR_EUSAGE, "no command '%s': %s --help lists them", first, c->program);
    *ret_noun = first;
    if (c->help && !second)
        return 0;
    if (!second)
        return gr_fail(err, -GR_EUSAGE, "%s what? %s %s --help lists its commands", first, c->program, first);
    return gr_fail(err, -GR_EUSAGE, "no command '%s %s': %s %s --help lists what there is", first, second, c->program, first);
}

static int check_options(const struct gr_cmd_ctx *c, struct gr_err *err)
{
    for (int i = 0; i < c->n_opts; i++) {
        const struct cmd_value *v = &c->opts[i];
        const struct gr_opt *o = find_opt(c->cmd, v->name, v->name_len);
        int len = (int)GR_MIN(v->name_len, (size_t)64);
        if (!o)
            return gr_fail(err, -GR_EUSAGE, "no option --%.*s here", len, v->name);
        if (o->arg && !v->value)
            return gr_fail(err, -GR_EUSAGE, "option --%s needs a value (%s)", o->name, o->arg);
        if (!o->arg && v->value)
            return gr_fail(err, -GR_EUSAGE, "option --%s takes no value", o->name);
        for (int k = 0; k < i && !o->repeat; k++)
            if (find_opt(c->cmd, c->opts[k].name, c->opts[k].name_len) == o)
                return gr_fail(err, -GR_EUSAGE, "option --%s is given twice", o->name);
    }
    if (c->n_args < c->cmd->min_args)
        return gr_fail(err, -GR_EUSAGE, "too few arguments");
    if (c->cmd->max_args >= 0 && c->n_args > c->cmd->max_args)
        return gr_fail(err, -GR_EUSAGE, "too many arguments: what is '%s'?", c->args[c->cmd->max_args]);
    return 0;
}

const char *gr_cmd_arg(const struct gr_cmd_ctx *c, int i)
{
    return i >= 0 && i < c->n_args ? c->args[i] : NULL;
}

int gr_cmd_nargs(const struct gr_cmd_ctx *c)
{
    return c->n_args;
}

static const struct cmd_value *option(const struct gr_cmd_ctx *c, const char *name, int nth)
{
    for (int i = 0; i < c->n_opts; i++)
        if (is_word(c->opts[i].name, c->opts[i].name_len, name) && nth-- == 0)
            return &c->opts[i];
    return NULL;
}

const char *gr_cmd_opt_n(const struct gr_cmd_ctx *c, const char *name, int i)
{
    const struct cmd_value *v = option(c, name, i);
    return v ? v->value : NULL;
}

const char *gr_cmd_opt(const struct gr_cmd_ctx *c, const char *name)
{
    const char *last = NULL;
    for (int i = 0; gr_cmd_opt_n(c, name, i); i++)
        last = gr_cmd_opt_n(c, name, i);
    return last;
}

bool gr_cmd_flag(const struct gr_cmd_ctx *c, const char *name)
{
    return option(c, name, 0) != NULL;
}

void gr_cmd_told(struct gr_cmd_ctx *c)
{
    c->told = true;
}

bool gr_cmd_json(const struct gr_cmd_ctx *c)
{
    return c->json;
}

struct gr_loop *gr_cmd_loop(const struct gr_cmd_ctx *c)
{
    return c->loop;
}

void *gr_cmd_app(const struct gr_cmd_ctx *c)
{
    return c->app;
}

struct run {
    struct gr_cmd_ctx *ctx;
    struct gr_err *err;
};

static int run_fiber(void *arg)
{
    struct run *run = arg;
    return run->ctx->cmd->fn(run->ctx, run->err);
}

static int run_command(struct gr_cmd_ctx *c, struct gr_err *err)
{
    int r = gr_loop_new(NULL, &c->loop, err);
    if (r < 0)
        return r;
    r = gr_fiber_run(c->loop, run_fiber, &(struct run){c, err});
    gr_loop_free(c->loop);
    if (fflush(stdout) != 0 && r >= 0)
        r = gr_fail(err, -errno, "cannot write the output: %s", strerror(errno));
    return r;
}

static int usage_failure(const struct gr_cmd_ctx *c, const struct gr_err *err)
{
    fprintf(stderr, "%s: %s\n", c->program, gr_err_text(err, err->code));
    if (c->cmd) {
        fputs("usage: ", stderr);
        cmd_usage_line(stderr, c, c->cmd);
    }
    return gr_code_exit(-GR_EUSAGE);
}

int gr_cmd_main(int argc, char **argv, const char *program, const char *about, const struct gr_cmd *const *tables, void *app)
{
    struct gr_err err = {0};
    const char *noun = NULL;
    size_t n = argc > 0 ? (size_t)argc : 1;
    gr_auto_free const char **args = gr_zalloc(n * sizeof(*args));
    gr_auto_free struct cmd_value *opts = gr_zalloc(n * sizeof(*opts));
    struct gr_cmd_ctx c = {.program = program, .about = about, .tables = tables, .args = args, .opts = opts, .app = app};
    if (!args || !opts) {
        fprintf(stderr, "%s: out of memory\n", program);
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    int r = split(&c, argc, argv, &err);
    if (r == 0)
        r = find_command(&c, &noun, &err);
    if (r < 0)
        return usage_failure(&c, &err);
    if (c.help)
        return cmd_help(&c, noun);
    if (c.version) {
        printf("%s %s\n", program, GR_VERSION);
        return 0;
    }
    r = check_options(&c, &err);
    if (r < 0)
        return usage_failure(&c, &err);
    r = run_command(&c, &err);
    cmd_progress_clear(&c);
    if (r == -GR_EUSAGE && !c.told)
        return usage_failure(&c, &err);
    if (r < 0 && !c.told)
        fprintf(stderr, "%s: %s\n", program, gr_err_text(&err, r));
    return gr_code_exit(r);
}
