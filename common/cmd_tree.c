/* Rows that grow from each other, shown as a tree. */
#include "common/cleanup.h"
#include "common/cmd.h"
#include "common/seam.h"
#include <string.h>

#define INDENT_MAX 32 /* levels: deeper ones stand below each other */

struct node {
    json_t *row;
    size_t up, first, next; /* its parent, the first of its children, the next of its parent's: positions + 1 */
    unsigned depth;
};

/* Who grew from which, in the order of @rows; returns the first of those at the root. */
static size_t link_up(struct node *v, size_t n, const char *id, const char *parent)
{
    size_t root = 0;
    for (size_t i = n; i-- > 0;) {
        json_t *wanted = json_object_get(v[i].row, parent);
        size_t k = 0;
        while (k < n && (k == i || !wanted || !json_equal(json_object_get(v[k].row, id), wanted)))
            k++;
        size_t *list = k < n ? &v[k].first : &root;
        v[i].next = *list;
        *list = i + 1;
        v[i].up = k < n ? k + 1 : 0;
    }
    return root;
}

static int add_row(json_t *out, json_t *row, const char *label, unsigned depth)
{
    const char *text = json_string_value(json_object_get(row, label));
    gr_auto_free char *indented = gr_asprintf("%*s%s", (int)GR_MIN(depth, (unsigned)INDENT_MAX) * 2, "", text ? text : "");
    json_t *copy = json_copy(row);
    if (!indented || !copy || json_object_set_new(copy, label, json_string(indented)) < 0) {
        json_decref(copy);
        return -ENOMEM;
    }
    return json_array_append_new(out, copy) < 0 ? -ENOMEM : 0;
}

static int add_now(json_t *out, const char *label, const char *now, unsigned depth)
{
    json_auto_t *row = json_pack("{s:s}", label, now);
    return row ? add_row(out, row, label, depth) : -ENOMEM;
}

/* Depth first; the present stands behind whatever else grew from where it did. */
static int walk(struct node *v, size_t root, json_t *out, const char *label, const char *now)
{
    int r = 0;
    for (size_t i = root; r == 0 && i;) {
        struct node *n = &v[i - 1];
        n->depth = n->up ? v[n->up - 1].depth + 1 : 0;
        r = add_row(out, n->row, label, n->depth);
        if (n->first) {
            i = n->first;
            continue;
        }
        for (; r == 0 && i; i = n->up) { /* it, and all below it, are through */
            n = &v[i - 1];
            if (json_is_true(json_object_get(n->row, "current")))
                r = add_now(out, label, now, n->depth + 1);
            if (n->next)
                break;
        }
        i = i ? v[i - 1].next : 0;
    }
    return r;
}

int gr_cmd_tree(struct gr_cmd_ctx *c, const struct gr_col *cols, json_t *rows, const char *id, const char *parent, const char *now)
{
    size_t n = json_array_size(rows);
    if (gr_cmd_json(c))
        return gr_cmd_rows(c, cols, rows);
    gr_auto_free struct node *v = gr_zalloc((n + 1) * sizeof *v);
    json_auto_t *out = json_array();
    if (!v || !out)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        v[i].row = json_array_get(rows, i);
    int r = walk(v, link_up(v, n, id, parent), out, cols[0].key, now);
    return r < 0 ? r : gr_cmd_rows(c, cols, out);
}
