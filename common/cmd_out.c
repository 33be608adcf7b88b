#include "common/buf.h"
#include "common/cleanup.h"
#include "common/cmd_int.h"
#include <string.h>
#include <time.h>

#define PROGRESS_NS 200000000u
#define STREAM_WIDTH 14

/* Bytes from disks, guests and peers must not drive the terminal: controls and broken UTF-8 show as \xNN. */
static int add_escaped(struct gr_buf *b, const char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        size_t n = 1;
        while (n < 4 && i + n < len && ((unsigned char)s[i + n] & 0xc0) == 0x80)
            n++;
        int r;
        if (gr_utf8_ok(s + i, n)) {
            r = gr_buf_add(b, s + i, n);
        } else {
            r = gr_buf_printf(b, "\\x%02x", (unsigned char)s[i]);
            n = 1;
        }
        if (r < 0)
            return r;
        i += n;
    }
    return 0;
}

static int add_time(struct gr_buf *b, json_int_t t)
{
    char text[32];
    struct tm tm;
    time_t when = (time_t)t;
    if (!localtime_r(&when, &tm) || strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm) == 0)
        return gr_buf_printf(b, "%lld", (long long)t);
    return gr_buf_add(b, text, strlen(text));
}

static int add_plain(struct gr_buf *b, json_t *v)
{
    if (json_is_string(v))
        return add_escaped(b, json_string_value(v), json_string_length(v));
    if (json_is_boolean(v))
        return gr_buf_printf(b, "%s", json_is_true(v) ? "yes" : "no");
    if (json_is_integer(v))
        return gr_buf_printf(b, "%lld", (long long)json_integer_value(v));
    if (json_is_real(v))
        return gr_buf_printf(b, "%.3g", json_real_value(v));
    gr_auto_free char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    return text ? add_escaped(b, text, strlen(text)) : -ENOMEM;
}

static int add_cell(struct gr_buf *b, enum gr_col_kind kind, json_t *v)
{
    char size[16];
    int r = 0;
    if (!v || json_is_null(v))
        return gr_buf_add(b, "-", 1);
    if (kind == GR_COL_SIZE && json_is_integer(v) && json_integer_value(v) >= 0) {
        gr_format_size((uint64_t)json_integer_value(v), size);
        return gr_buf_add(b, size, strlen(size));
    }
    if (kind == GR_COL_TIME && json_is_integer(v))
        return add_time(b, json_integer_value(v));
    if (kind != GR_COL_LIST || !json_is_array(v))
        return add_plain(b, v);
    for (size_t i = 0; r == 0 && i < json_array_size(v); i++) {
        if (i > 0)
            r = gr_buf_add(b, ", ", 2);
        if (r == 0)
            r = add_plain(b, json_array_get(v, i));
    }
    return json_array_size(v) == 0 ? gr_buf_add(b, "-", 1) : r;
}

static size_t width(const char *s)
{
    size_t n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void print_padded(const char *s, size_t to, bool right, bool last)
{
    size_t w = width(s), pad = w < to ? to - w : 0;
    if (right)
        printf("%*s", (int)pad, "");
    fputs(s, stdout);
    if (!right && !last)
        printf("%*s", (int)pad, "");
    fputs(last ? "\n" : "  ", stdout);
}

static bool is_right(enum gr_col_kind kind)
{
    return kind == GR_COL_SIZE || kind == GR_COL_NUMBER;
}

static int print_json(json_t *v)
{
    if (json_dumpf(v, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY) < 0)
        return -EIO;
    putchar('\n');
    return 0;
}

static size_t count_cols(const struct gr_col *cols)
{
    size_t n = 0;
    while (cols[n].key)
        n++;
    return n;
}

static int print_table(const struct gr_col *cols, size_t n_cols, json_t *rows, char **cells, size_t *widths)
{
    size_t n_rows = json_array_size(rows);
    for (size_t i = 0; i < n_cols; i++)
        widths[i] = width(cols[i].title);
    for (size_t i = 0; i < n_rows * n_cols; i++) {
        const struct gr_col *col = &cols[i % n_cols];
        gr_auto_buf struct gr_buf b = {0};
        int r = gr_buf_add(&b, "", 0); /* an empty string is a cell, too */
        if (r == 0)
            r = add_cell(&b, col->kind, json_object_get(json_array_get(rows, i / n_cols), col->key));
        if (r < 0)
            return r;
        widths[i % n_cols] = GR_MAX(widths[i % n_cols], width(b.data));
        cells[i] = gr_buf_take(&b);
    }
    for (size_t i = 0; n_rows > 0 && i < n_cols; i++)
        print_padded(cols[i].title, widths[i], is_right(cols[i].kind), i + 1 == n_cols);
    for (size_t i = 0; i < n_rows * n_cols; i++)
        print_padded(cells[i], widths[i % n_cols], is_right(cols[i % n_cols].kind), i % n_cols + 1 == n_cols);
    return 0;
}

int gr_cmd_rows(struct gr_cmd_ctx *c, const struct gr_col *cols, json_t *rows)
{
    cmd_progress_clear(c);
    if (c->json)
        return print_json(rows);
    size_t n_cols = count_cols(cols), n_cells = n_cols * json_array_size(rows);
    gr_auto_free char **cells = gr_zalloc(n_cells * sizeof(*cells));
    gr_auto_free size_t *widths = gr_zalloc(n_cols * sizeof(*widths));
    if (!cells || !widths)
        return -ENOMEM;
    int r = print_table(cols, n_cols, rows, cells, widths);
    for (size_t i = 0; i < n_cells; i++)
        free(cells[i]);
    return r;
}

int gr_cmd_object(struct gr_cmd_ctx *c, const struct gr_col *cols, json_t *obj)
{
    cmd_progress_clear(c);
    if (c->json)
        return print_json(obj);
    size_t widest = 0;
    for (const struct gr_col *col = cols; col->key; col++)
        widest = GR_MAX(widest, width(col->title) + 1);
    for (const struct gr_col *col = cols; col->key; col++) {
        gr_auto_buf struct gr_buf b = {0};
        int r = add_cell(&b, col->kind, json_object_get(obj, col->key));
        if (r < 0)
            return r;
        printf("%s:%*s%s\n", col->title, (int)(widest - width(col->title)), "", b.data ? b.data : "");
    }
    return 0;
}

void gr_cmd_warn(void *arg, const char *text)
{
    fprintf(stderr, "warning: %s\n", text);
}

int gr_cmd_done(struct gr_cmd_ctx *c, json_t *obj, const char *fmt, ...)
{
    cmd_progress_clear(c);
    if (c->json) {
        if (obj)
            return print_json(obj);
        puts("{}");
        return 0;
    }
    gr_auto_free char *text = NULL;
    gr_auto_buf struct gr_buf b = {0};
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        text = NULL;
        return -ENOMEM;
    }
    int r = add_escaped(&b, text, (size_t)n);
    if (r < 0)
        return r;
    puts(b.data ? b.data : "");
    return 0;
}

int gr_cmd_stream_begin(struct gr_cmd_ctx *c, const struct gr_col *cols)
{
    c->stream_cols = cols;
    c->stream_rows = 0;
    if (c->json)
        putchar('[');
    return 0;
}

int gr_cmd_stream_row(struct gr_cmd_ctx *c, json_t *row)
{
    const struct gr_col *cols = c->stream_cols;
    if (c->json) {
        char text[256]; /* at once, for there may be millions */
        size_t n = json_dumpb(row, text, sizeof(text), 0);
        fputs(c->stream_rows++ > 0 ? ",\n " : "\n ", stdout);
        if (n > sizeof(text) ? json_dumpf(row, stdout, 0) < 0 : fwrite(text, 1, n, stdout) != n || n == 0)
            return -EIO;
        return ferror(stdout) ? -EPIPE : 0;
    }
    if (c->stream_rows++ == 0)
        for (const struct gr_col *col = cols; col->key; col++)
            print_padded(col->title, STREAM_WIDTH, is_right(col->kind), !col[1].key);
    for (const struct gr_col *col = cols; col->key; col++) {
        gr_auto_buf struct gr_buf b = {0};
        int r = add_cell(&b, col->kind, json_object_get(row, col->key));
        if (r < 0)
            return r;
        print_padded(b.data ? b.data : "", STREAM_WIDTH, is_right(col->kind), !col[1].key);
    }
    return ferror(stdout) ? -EPIPE : 0;
}

int gr_cmd_stream_end(struct gr_cmd_ctx *c)
{
    if (c->json)
        puts(c->stream_rows > 0 ? "\n]" : "]");
    return ferror(stdout) ? -EPIPE : 0;
}

void gr_cmd_progress(struct gr_cmd_ctx *c, const char *what, uint64_t done, uint64_t total, bool bytes)
{
    char a[16], b[16], rate[16];
    uint64_t now = gr_world_real()->mono_ns(NULL);
    if (now < c->progress_next_ns || !isatty(STDERR_FILENO))
        return;
    if (c->progress_start_ns == 0)
        c->progress_start_ns = now;
    c->progress_next_ns = now + PROGRESS_NS;
    c->progress_shown = true;
    if (!bytes) {
        snprintf(a, sizeof(a), "%llu", (unsigned long long)done);
        snprintf(b, sizeof(b), "%llu", (unsigned long long)total);
        rate[0] = 0;
    } else {
        gr_format_size(done, a);
        gr_format_size(total, b);
        gr_format_size((uint64_t)((double)done * 1e9 / (double)GR_MAX(now - c->progress_start_ns, (uint64_t)PROGRESS_NS)), rate);
    }
    if (total > 0)
        fprintf(stderr, "\r%s: %3.0f%%  %s of %s%s%s%s\033[K", what, 100.0 * (double)GR_MIN(done, total) / (double)total, a, b,
                rate[0] ? "  " : "", rate, rate[0] ? "/s" : "");
    else
        fprintf(stderr, "\r%s: %s%s%s%s\033[K", what, a, rate[0] ? "  " : "", rate, rate[0] ? "/s" : "");
    fflush(stderr);
}

void cmd_progress_clear(struct gr_cmd_ctx *c)
{
    if (c->progress_shown)
        fputs("\r\033[K", stderr);
    c->progress_shown = false;
    c->progress_start_ns = 0;
    c->progress_next_ns = 0;
}
