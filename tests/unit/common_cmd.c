#include "common/buf.h"
#include "common/cleanup.h"
#include "common/cmd.h"
#include "tests/lib/test.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* ---- a small program with every kind of command ---- */
static const struct gr_col cols[] = {{"name", "NAME", GR_COL_TEXT},   {"size", "SIZE", GR_COL_SIZE}, {"n", "N", GR_COL_NUMBER},
                                     {"ready", "READY", GR_COL_BOOL}, {"tags", "TAGS", GR_COL_LIST}, {NULL, NULL, GR_COL_TEXT}};

static json_t *row(const char *name, json_int_t size, int n)
{
    return json_pack("{s:s,s:I,s:i,s:b,s:[s,s]}", "name", name, "size", size, "n", n, "ready", n > 1, "tags", "a", "b");
}

static int c_list(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *rows = json_array();
    json_array_append_new(rows, row("web01", 1536, 7));
    json_array_append_new(rows, row("b\xc3\xa4r", 10737418240, 1234567));
    json_array_append_new(rows, row("evil\033[2J\nname", 5, 1));
    json_array_append_new(rows, json_pack("{s:s}", "name", "bare"));
    int r = gr_cmd_rows(c, cols, rows);
    json_decref(rows);
    return r;
}

static int c_create(struct gr_cmd_ctx *c, struct gr_err *err)
{
    uint64_t size = 0;
    const char *text = gr_cmd_opt(c, "size");
    int r = text ? gr_parse_size(text, &size, err) : 0;
    if (r < 0)
        return r;
    if (strcmp(gr_cmd_arg(c, 0), "locked") == 0)
        return gr_fail(err, -GR_ELOCKED, "%s: in use by host 2", gr_cmd_arg(c, 0));
    if (strcmp(gr_cmd_arg(c, 0), "bare") == 0)
        return -ENOENT;
    json_t *obj = json_pack("{s:s,s:I,s:i,s:b}", "name", gr_cmd_arg(c, 0), "size", (json_int_t)size, "n", gr_cmd_nargs(c), "ready",
                            gr_cmd_flag(c, "force"));
    json_t *labels = json_array();
    for (int i = 0; gr_cmd_opt_n(c, "label", i); i++)
        json_array_append_new(labels, json_string(gr_cmd_opt_n(c, "label", i)));
    json_object_set_new(obj, "tags", labels);
    r = gr_cmd_done(c, obj, "created %s", gr_cmd_arg(c, 0));
    json_decref(obj);
    return r;
}

static int c_info(struct gr_cmd_ctx *c, struct gr_err *err)
{
    json_t *obj = row("web01", 1024, 2);
    int r = gr_cmd_object(c, cols, obj);
    json_decref(obj);
    return r;
}

static int c_stream(struct gr_cmd_ctx *c, struct gr_err *err)
{
    uint64_t n = 0;
    int r = gr_parse_u64(gr_cmd_arg(c, 0), 0, 1000000, &n, err);
    if (r == 0)
        r = gr_cmd_stream_begin(c, cols);
    for (uint64_t i = 0; r == 0 && i < n; i++) {
        json_t *one = row("x", (json_int_t)i * 4096, (int)i);
        r = gr_cmd_stream_row(c, one);
        json_decref(one);
        gr_cmd_progress(c, "rows", i, n, false);
    }
    return r < 0 ? r : gr_cmd_stream_end(c);
}

static int c_up(struct gr_cmd_ctx *c, struct gr_err *err)
{
    gr_fiber_sleep_ms(1); /* a command may suspend */
    return gr_cmd_done(c, NULL, "up on loop %d, app %s", gr_cmd_loop(c) == gr_fiber_loop(), (const char *)gr_cmd_app(c));
}

static const struct gr_opt create_opts[] = {{"size", "SIZE", "how large", false},
                                            {"label", "TEXT", "a label", true},
                                            {"force", NULL, "even so", false},
                                            {NULL, NULL, NULL, false}};
static const struct gr_cmd disks[] = {
    {"disk", "create", "NAME [DEVICE...]", 1, 3, "make a disk", create_opts, c_create},
    {"disk", "list", "", 0, 0, "show disks", NULL, c_list},
    {"disk", "info", "NAME", 1, 1, "show one", NULL, c_info},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
static const struct gr_cmd empty[] = {{NULL, NULL, NULL, 0, 0, NULL, NULL, NULL}};
static const struct gr_opt diff_opts[] = {{"force", "HOW", "here it has a value", false}, {"size", NULL, "and this has none", false}, {NULL, NULL, NULL, false}};
static const struct gr_cmd others[] = {
    {NULL, "up", "", 0, 0, "start", NULL, c_up},
    {"snap", "diff", "N", 1, 1, "stream rows", diff_opts, c_stream},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
static const struct gr_cmd alone[] = {
    {NULL, "", "NAME", 1, 1, "one program", create_opts, c_create},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL},
};
static const struct gr_cmd *const tables[] = {disks, empty, others, NULL};
static const struct gr_cmd *const alone_tables[] = {alone, NULL};

/* ---- run it as a process would, stdout and stderr caught ---- */
static char out[65536], errout[65536];

static void slurp(const char *path, char *buf)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    buf[fread(buf, 1, 65535, f)] = 0;
    fclose(f);
}

static int run_tables(const struct gr_cmd *const *t, const char *line, char **extra)
{
    char copy[512], program[] = "granary", app[] = "app", *argv[32] = {program}, *save = NULL;
    int argc = 1;
    gr_auto_free char *op = test_path("stdout"), *ep = test_path("stderr");
    snprintf(copy, sizeof(copy), "%s", line);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    for (; extra && *extra; extra++)
        argv[argc++] = *extra;
    fflush(stdout);
    fflush(stderr);
    int old_out = dup(1), old_err = dup(2), o = open(op, O_RDWR | O_CREAT | O_TRUNC, 0600), e = open(ep, O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(o, 1);
    dup2(e, 2);
    int status = gr_cmd_main(argc, argv, "granary", "storage", t, app);
    fflush(stdout);
    dup2(old_out, 1);
    dup2(old_err, 2);
    close(old_out);
    close(old_err);
    close(o);
    close(e);
    slurp(op, out);
    slurp(ep, errout);
    return status;
}

static int run(const char *line)
{
    return run_tables(tables, line, NULL);
}

static void assert_says(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("'%s' is not in: %s", part, text);
}

static json_t *parsed(void)
{
    json_t *v = json_loads(out, 0, NULL);
    if (!v)
        fail_msg("not JSON: %s", out);
    return v;
}

static void options_anywhere(void **state)
{
    static const char *const same[] = {"disk create web01 dev --size 10G --force --label a --label b --json",
                                       "--json --label a disk --force create --size 10G web01 --label b dev",
                                       "disk --size=10G create --force web01 --label=a --label=b --json -- dev"};
    for (size_t i = 0; i < GR_ARRAY_LEN(same); i++) {
        assert_int_equal(run(same[i]), 0);
        json_t *v = parsed();
        assert_string_equal(json_string_value(json_object_get(v, "name")), "web01");
        assert_int_equal(json_integer_value(json_object_get(v, "size")), 10737418240);
        assert_int_equal(json_integer_value(json_object_get(v, "n")), 2);
        assert_true(json_is_true(json_object_get(v, "ready")));
        assert_int_equal(json_array_size(json_object_get(v, "tags")), 2);
        assert_string_equal(json_string_value(json_array_get(json_object_get(v, "tags"), 1)), "b");
        assert_string_equal(errout, "");
        json_decref(v);
    }
    assert_int_equal(run("disk create web01"), 0);
    assert_string_equal(out, "created web01\n");
    assert_int_equal(run("disk create --force web01"), 0); /* another command's has a value */
    assert_string_equal(out, "created web01\n");
    assert_int_equal(run("snap diff --size --force so 1"), 0);
    assert_int_equal(run("disk create -- --odd"), 0);
    assert_string_equal(out, "created --odd\n");
    assert_int_equal(run("disk create -"), 0);
    assert_int_equal(run("up"), 0);
    assert_string_equal(out, "up on loop 1, app app\n");
    assert_int_equal(run("up --json"), 0);
    assert_string_equal(out, "{}\n");
    assert_int_equal(run_tables(alone_tables, "web02 --size 1K", NULL), 0);
    assert_string_equal(out, "created web02\n");
}

static void wrong_usage(void **state)
{
    static const struct {
        const char *line, *says;
    } bad[] = {{"", "which command"},
               {"dsk list", "no command 'dsk'"},
               {"disk", "disk what?"},
               {"disk lst", "no command 'disk lst'"},
               {"disk create", "too few arguments"},
               {"disk create a b c d", "too many arguments: what is 'd'"},
               {"disk create a --sise 1G", "no option --sise"},
               {"disk create a --size", "--size needs a value"},
               {"disk create a --size 1G --size 2G", "--size is given twice"},
               {"disk create a --force=yes", "--force takes no value"},
               {"disk create a --size 1X", "only K, M, G, T or P"},
               {"disk create a --size -5", "not a size"},
               {"disk list --force", "no option --force"},
               {"disk list -l", "no option '-l'"},
               {"disk list --json=yes", "no option --json"},
               {"snap diff x", "not a whole number"}};
    for (size_t i = 0; i < GR_ARRAY_LEN(bad); i++) {
        if (run(bad[i].line) != 2)
            fail_msg("'%s' is not refused as wrong usage", bad[i].line);
        assert_says(errout, bad[i].says);
        assert_string_equal(out, "");
    }
    run("disk create a b c d");
    assert_says(errout, "usage: granary disk create NAME [DEVICE...] [options]\n");
}

static void exit_status(void **state)
{
    assert_int_equal(run("disk create locked"), 4);
    assert_string_equal(errout, "granary: locked: in use by host 2\n");
    assert_int_equal(run("disk create bare --json"), 1);
    assert_string_equal(errout, "granary: No such file or directory\n");
    assert_string_equal(out, "");
}

static void text_tables(void **state)
{
    assert_int_equal(run("disk list"), 0);
    assert_string_equal(out, "NAME                    SIZE        N  READY  TAGS\n"
                             "web01                1.5 KiB        7  yes    a, b\n"
                             "b\xc3\xa4r                   10 GiB  1234567  yes    a, b\n"
                             "evil\\x1b[2J\\x0aname      5 B        1  no     a, b\n"
                             "bare                       -        -  -      -\n");
    assert_int_equal(run("disk info x"), 0);
    assert_string_equal(out, "NAME:  web01\nSIZE:  1 KiB\nN:     2\nREADY: yes\nTAGS:  a, b\n");
    assert_int_equal(run("disk list --json"), 0);
    json_t *v = parsed();
    assert_int_equal(json_array_size(v), 4);
    assert_string_equal(json_string_value(json_object_get(json_array_get(v, 2), "name")), "evil\033[2J\nname");
    json_decref(v);
    /* an argument with control characters comes back harmless */
    char hostile[] = "a\nb\033", *extra[] = {hostile, NULL};
    assert_int_equal(run_tables(tables, "disk create", extra), 0);
    assert_string_equal(out, "created a\\x0ab\\x1b\n");
}

static void streams(void **state)
{
    assert_int_equal(run("snap diff 3"), 0);
    assert_says(out, "NAME");
    assert_says(out, "8 KiB");
    for (int n = 0; n < 300; n += 100) {
        char line[64];
        snprintf(line, sizeof(line), "snap diff %d --json", n);
        assert_int_equal(run(line), 0);
        json_t *v = parsed();
        assert_int_equal(json_array_size(v), n);
        json_decref(v);
    }
    /* nobody reads the output any more, or it does not fit: not "done" */
    fflush(stdout);
    int full = open("/dev/full", O_WRONLY), old = dup(1);
    char w[5][8] = {"granary", "snap", "diff", "100", "--json"}, *argv[] = {w[0], w[1], w[2], w[3], w[4], NULL};
    dup2(full, 1);
    int old_err = dup(2), null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    int status = gr_cmd_main(5, argv, "granary", "storage", tables, NULL);
    fflush(stdout);
    clearerr(stdout);
    dup2(old, 1);
    dup2(old_err, 2);
    close(full);
    close(old);
    close(old_err);
    close(null);
    assert_int_equal(status, 1);
}

static void help(void **state)
{
    assert_int_equal(run("--help"), 0);
    assert_says(out, "granary: storage\n");
    assert_says(out, "  disk create NAME [DEVICE...]           make a disk\n");
    assert_says(out, "  up ");
    assert_says(out, "snap diff N");
    assert_int_equal(run("disk --help"), 0);
    assert_says(out, "disk list");
    assert_null(strstr(out, "snap diff"));
    assert_int_equal(run("--help disk create"), 0);
    assert_says(out, "usage: granary disk create NAME [DEVICE...] [options]\n\nmake a disk\n");
    assert_says(out, "  --size SIZE                how large\n");
    assert_says(out, "--json");
    assert_int_equal(run("disk create -h"), 0);
    assert_says(out, "--label TEXT");
    assert_int_equal(run("dsk --help"), 2);
    assert_int_equal(run("--version"), 0);
    assert_string_equal(out, "granary " GR_VERSION "\n");
    assert_int_equal(run("--help --json"), 0);
    json_t *v = parsed();
    assert_int_equal(json_array_size(v), 5);
    assert_string_equal(json_string_value(json_object_get(json_array_get(v, 0), "verb")), "create");
    assert_int_equal(json_array_size(json_object_get(json_array_get(v, 0), "options")), 3);
    json_decref(v);
    assert_int_equal(run_tables(alone_tables, "--help", NULL), 0);
    assert_says(out, "usage: granary NAME [options]\n");
}

TEST_MAIN(TEST(options_anywhere), TEST(wrong_usage), TEST(exit_status), TEST(text_tables), TEST(streams), TEST(help))
