#include "backup-proxy/fs_lvm.h"
#include "common/endian.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define META_MAX (1u << 20)  /* bytes of metadata text that we look at */
#define NODES_MAX 100000u
#define DEPTH_MAX 16
#define PVS_MAX 64u

/* ---- the text: sections, strings, numbers and arrays, as nodes of one pool ---- */
enum kind { SECTION, STRING, NUMBER, ARRAY };
struct node {
    enum kind kind;
    const char *key, *str; /* into the text */
    uint32_t key_len, str_len;
    uint64_t num;
    uint32_t child, next; /* index + 1; 0: none */
};
struct text {
    const char *p, *end;
    struct node *nodes;
    uint32_t n;
    bool bad;
};

static void skip_blank(struct text *t)
{
    while (t->p < t->end) {
        if (*t->p == '#') {
            while (t->p < t->end && *t->p != '\n')
                t->p++;
        } else if (*t->p == ' ' || *t->p == '\t' || *t->p == '\n' || *t->p == '\r' || *t->p == ',') {
            t->p++;
        } else {
            return;
        }
    }
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '+' || c == '.';
}

static uint32_t new_node(struct text *t, enum kind kind)
{
    if (t->n == NODES_MAX) {
        t->bad = true;
        return 0;
    }
    t->nodes[t->n] = (struct node){.kind = kind};
    return ++t->n;
}

static uint32_t parse_value(struct text *t, int depth);

static uint32_t parse_array(struct text *t, int depth)
{
    uint32_t me = new_node(t, ARRAY), last = 0;
    t->p++;
    for (skip_blank(t); !t->bad && t->p < t->end && *t->p != ']'; skip_blank(t)) {
        uint32_t v = parse_value(t, depth + 1);
        if (t->bad)
            return 0;
        if (last)
            t->nodes[last - 1].next = v;
        else
            t->nodes[me - 1].child = v;
        last = v;
    }
    if (t->bad || t->p == t->end)
        t->bad = true;
    else
        t->p++;
    return me;
}

static uint32_t parse_value(struct text *t, int depth)
{
    skip_blank(t);
    if (t->p == t->end || depth > DEPTH_MAX) {
        t->bad = true;
        return 0;
    }
    if (*t->p == '[')
        return parse_array(t, depth);
    if (*t->p == '"') {
        const char *s = ++t->p;
        while (t->p < t->end && *t->p != '"')
            t->p += *t->p == '\\' && t->end - t->p > 1 ? 2 : 1;
        uint32_t me = new_node(t, STRING);
        if (t->bad || t->p >= t->end) {
            t->bad = true;
            return 0;
        }
        t->nodes[me - 1].str = s;
        t->nodes[me - 1].str_len = (uint32_t)(t->p - s);
        t->p++;
        return me;
    }
    uint64_t num = 0;
    const char *s = t->p;
    while (t->p < t->end && is_word(*t->p)) {
        if (*t->p >= '0' && *t->p <= '9' && num < UINT64_MAX / 10 - 1)
            num = num * 10 + (uint64_t)(*t->p - '0');
        t->p++;
    }
    uint32_t me = t->p == s ? 0 : new_node(t, NUMBER);
    if (!me)
        t->bad = true;
    else
        t->nodes[me - 1].num = num;
    return me;
}

/* Contents of a section up to its '}' (or the end of the text at the top); the first child's index. */
static uint32_t parse_section(struct text *t, int depth)
{
    uint32_t first = 0, last = 0;
    for (skip_blank(t); !t->bad && t->p < t->end && *t->p != '}' && *t->p != '\0'; skip_blank(t)) {
        const char *key = t->p;
        while (t->p < t->end && is_word(*t->p))
            t->p++;
        uint32_t key_len = (uint32_t)(t->p - key), me = 0;
        skip_blank(t);
        if (!key_len || t->p == t->end || depth > DEPTH_MAX) {
            t->bad = true;
        } else if (*t->p == '{') {
            t->p++;
            me = new_node(t, SECTION);
            uint32_t child = t->bad ? 0 : parse_section(t, depth + 1);
            if (t->bad || t->p == t->end || *t->p != '}') {
                t->bad = true;
            } else {
                t->nodes[me - 1].child = child;
                t->p++;
            }
        } else if (*t->p == '=') {
            t->p++;
            me = parse_value(t, depth);
        } else {
            t->bad = true;
        }
        if (t->bad)
            return 0;
        t->nodes[me - 1].key = key;
        t->nodes[me - 1].key_len = key_len;
        if (last)
            t->nodes[last - 1].next = me;
        else
            first = me;
        last = me;
    }
    return first;
}

static const struct node *node_at(const struct text *t, uint32_t i)
{
    return i ? &t->nodes[i - 1] : NULL;
}

static const struct node *find(const struct text *t, const struct node *section, const char *key, enum kind kind)
{
    for (const struct node *n = section ? node_at(t, section->child) : NULL; n; n = node_at(t, n->next))
        if (n->kind == kind && n->key_len == strlen(key) && memcmp(n->key, key, n->key_len) == 0)
            return n;
    return NULL;
}

static bool find_num(const struct text *t, const struct node *section, const char *key, uint64_t max, uint64_t *ret)
{
    const struct node *n = find(t, section, key, NUMBER);
    if (!n || n->num > max)
        return false;
    *ret = n->num;
    return true;
}

/* ---- physical volumes ---- */
struct pv {
    char id[32];
    const struct fs_volume *vol;
    uint64_t meta_off, meta_size; /* of the metadata area, in the volume */
};

/* Label in one of the first four sectors, then the header it points at. */
static bool read_pv(const struct fs_image *img, const struct fs_volume *v, struct pv *ret)
{
    uint8_t b[4096];
    if (v->size < sizeof b || fs_parts_read(img, v, 0, b, sizeof b) < 0)
        return false;
    for (size_t s = 0; s < 4; s++) {
        const uint8_t *label = b + 512 * s, *end = b + sizeof b;
        if (memcmp(label, "LABELONE", 8) != 0 || memcmp(label + 24, "LVM2 001", 8) != 0)
            continue;
        uint32_t off = gr_get_le32(label + 20);
        if (off > 512 - 40)
            return false;
        const uint8_t *p = label + off + 40;
        memcpy(ret->id, label + off, 32);
        while (end - p >= 16 && gr_get_le64(p)) /* data areas */
            p += 16;
        if (end - p < 32)
            return false;
        ret->meta_off = gr_get_le64(p + 16);
        ret->meta_size = gr_get_le64(p + 24);
        ret->vol = v;
        return true;
    }
    return false;
}

/* The current text of a metadata area, which is a ring behind a header of 512 bytes. New memory, or NULL. */
static char *read_meta(const struct fs_image *img, const struct pv *pv, size_t *ret_len)
{
    uint8_t h[512];
    if (pv->meta_size < 1024 || pv->meta_size > pv->vol->size || fs_parts_read(img, pv->vol, pv->meta_off, h, sizeof h) < 0 ||
        memcmp(h + 4, " LVM2 x[5A%r0N*>", 16) != 0)
        return NULL;
    uint64_t off = gr_get_le64(h + 40), len = gr_get_le64(h + 48);
    if (off < 512 || off >= pv->meta_size || len == 0 || len > META_MAX || len > pv->meta_size - 512)
        return NULL;
    char *text = malloc((size_t)len + 1);
    uint64_t first = pv->meta_size - off < len ? pv->meta_size - off : len;
    if (!text || fs_parts_read(img, pv->vol, pv->meta_off + off, text, (size_t)first) < 0 ||
        (len > first && fs_parts_read(img, pv->vol, pv->meta_off + 512, text + first, (size_t)(len - first)) < 0)) {
        free(text);
        return NULL;
    }
    text[len] = '\0';
    *ret_len = (size_t)len;
    return text;
}

/* ---- logical volumes ---- */
struct group {
    const struct text *t;
    const struct node *vg;
    const struct pv *pvs;
    unsigned n_pvs;
    uint64_t extent; /* bytes */
};

/* The physical volume that the text calls @name, and where its extents begin. */
static const struct pv *find_pv(const struct group *g, const struct node *name, uint64_t *ret_start)
{
    const struct node *list = find(g->t, g->vg, "physical_volumes", SECTION);
    for (const struct node *n = list ? node_at(g->t, list->child) : NULL; n; n = node_at(g->t, n->next)) {
        uint64_t start = 0;
        const struct node *id = n->kind == SECTION ? find(g->t, n, "id", STRING) : NULL;
        if (!id || n->key_len != name->str_len || memcmp(n->key, name->str, n->key_len) != 0 ||
            !find_num(g->t, n, "pe_start", UINT64_MAX / 512, &start))
            continue;
        char plain[32];
        size_t k = 0;
        for (uint32_t i = 0; i < id->str_len && k < sizeof plain; i++)
            if (id->str[i] != '-')
                plain[k++] = id->str[i];
        for (unsigned i = 0; k == sizeof plain && i < g->n_pvs; i++)
            if (memcmp(g->pvs[i].id, plain, sizeof plain) == 0) {
                *ret_start = start * 512;
                return &g->pvs[i];
            }
    }
    return NULL;
}

/* Append one linear segment of the LV, translated through the (single) piece of its partition. */
static bool add_segment(const struct group *g, const struct node *seg, struct fs_volume *v)
{
    uint64_t first = 0, count = 0, stripes = 0, start = 0, limit = (uint64_t)INT64_MAX / g->extent;
    const struct node *type = find(g->t, seg, "type", STRING), *where = find(g->t, seg, "stripes", ARRAY);
    if (!type || type->str_len != 7 || memcmp(type->str, "striped", 7) != 0 || !where ||
        !find_num(g->t, seg, "start_extent", limit, &first) || !find_num(g->t, seg, "extent_count", limit, &count) ||
        !find_num(g->t, seg, "stripe_count", 1, &stripes) || stripes != 1 || count == 0)
        return false;
    const struct node *name = node_at(g->t, where->child), *at = name ? node_at(g->t, name->next) : NULL;
    if (!name || name->kind != STRING || !at || at->kind != NUMBER || at->num > limit)
        return false;
    const struct pv *pv = find_pv(g, name, &start);
    uint64_t len = count * g->extent, off = at->num * g->extent;
    if (!pv || v->n_segs == FS_SEGS_MAX || first * g->extent != v->size || start > pv->vol->size || off > pv->vol->size - start ||
        len > pv->vol->size - start - off)
        return false;
    v->segs[v->n_segs++] = (struct fs_seg){.volume_off = v->size, .image_off = pv->vol->segs[0].image_off + start + off, .len = len};
    v->size += len;
    return true;
}

static bool make_lv(const struct group *g, const struct node *lv, struct fs_volume *v)
{
    uint64_t count = 0;
    memset(v, 0, sizeof *v);
    v->kind = FS_V_LV;
    if (!find_num(g->t, lv, "segment_count", FS_SEGS_MAX, &count) || count == 0)
        return false;
    for (uint64_t i = 1; i <= count; i++) {
        char key[32];
        snprintf(key, sizeof key, "segment%llu", (unsigned long long)i);
        const struct node *seg = find(g->t, lv, key, SECTION);
        if (!seg || !add_segment(g, seg, v))
            return false;
    }
    int n = snprintf(v->label, sizeof v->label, "%.*s/%.*s", (int)g->vg->key_len, g->vg->key, (int)lv->key_len, lv->key);
    snprintf(v->type, sizeof v->type, "lvm");
    return n > 0 && (size_t)n < sizeof v->label;
}

static bool known(const struct fs_volume *vols, unsigned n, const char *label)
{
    for (unsigned i = 0; i < n; i++)
        if (vols[i].kind == FS_V_LV && strcmp(vols[i].label, label) == 0)
            return true;
    return false;
}

static unsigned add_group(struct group *g, struct fs_volume *vols, unsigned n, unsigned max)
{
    uint64_t sectors = 0;
    if (!find_num(g->t, g->vg, "extent_size", UINT32_MAX, &sectors) || sectors == 0)
        return n;
    g->extent = sectors * 512;
    const struct node *list = find(g->t, g->vg, "logical_volumes", SECTION);
    for (const struct node *lv = list ? node_at(g->t, list->child) : NULL; lv && n < max; lv = node_at(g->t, lv->next))
        if (lv->kind == SECTION && make_lv(g, lv, &vols[n]) && !known(vols, n, vols[n].label))
            n++;
    return n;
}

int fs_lvm_scan(const struct fs_image *img, struct fs_volume *vols, unsigned n, unsigned max)
{
    struct pv pvs[PVS_MAX];
    unsigned n_pvs = 0, total = n;
    for (unsigned i = 0; i < n && n_pvs < PVS_MAX; i++)
        if (read_pv(img, &vols[i], &pvs[n_pvs]))
            n_pvs++;
    if (n_pvs == 0)
        return (int)n;
    struct node *nodes = calloc(NODES_MAX, sizeof *nodes);
    if (!nodes)
        return -ENOMEM;
    for (unsigned i = 0; i < n_pvs; i++) {
        size_t len = 0;
        char *meta = read_meta(img, &pvs[i], &len);
        if (!meta)
            continue;
        struct text t = {.p = meta, .end = meta + len, .nodes = nodes};
        uint32_t top = parse_section(&t, 0);
        for (const struct node *vg = t.bad ? NULL : node_at(&t, top); vg; vg = node_at(&t, vg->next)) {
            struct group g = {.t = &t, .vg = vg, .pvs = pvs, .n_pvs = n_pvs};
            if (vg->kind == SECTION)
                total = add_group(&g, vols, total, max);
        }
        free(meta);
    }
    free(nodes);
    return (int)total;
}
