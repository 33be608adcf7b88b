#include "iscsi-target/latency.h"
#include "common/cleanup.h"

/* 0 to 3 µs have buckets of their own; above, an octave [2^e, 2^(e+1)) has four. */
static unsigned bucket(uint64_t us)
{
    if (us < 4)
        return (unsigned)us;
    unsigned e = 63u - (unsigned)__builtin_clzll(us);
    return GR_MIN((e - 1) * 4 + (unsigned)(us >> (e - 2) & 3u), TGT_LATENCY_BUCKETS - 1);
}

uint64_t tgt_latency_limit(unsigned i)
{
    if (i < 4)
        return i;
    return ((uint64_t)(4 + i % 4 + 1) << (i / 4 - 1)) - 1;
}

void tgt_latency_add(struct tgt_latency *l, uint64_t us)
{
    l->n[bucket(us)]++;
    l->count++;
    l->sum_us += us;
    l->max_us = GR_MAX(l->max_us, us);
}

void tgt_latency_merge(struct tgt_latency *sum, const struct tgt_latency *l)
{
    for (unsigned i = 0; i < TGT_LATENCY_BUCKETS; i++)
        sum->n[i] += l->n[i];
    sum->count += l->count;
    sum->sum_us += l->sum_us;
    sum->max_us = GR_MAX(sum->max_us, l->max_us);
}

uint64_t tgt_latency_permille(const struct tgt_latency *l, unsigned permille)
{
    uint64_t seen = 0, want = (l->count * permille + 999) / 1000;
    for (unsigned i = 0; i < TGT_LATENCY_BUCKETS && want; i++) {
        seen += l->n[i];
        if (seen >= want)
            return GR_MIN(tgt_latency_limit(i), l->max_us);
    }
    return l->max_us;
}

json_t *tgt_latency_json(const struct tgt_latency *l)
{
    json_t *buckets = json_array();
    uint64_t seen = 0;
    for (unsigned i = 0; i < TGT_LATENCY_BUCKETS && (seen < l->count || i % 4); i++) {
        seen += l->n[i];
        if (i % 4 == 3)
            json_array_append_new(buckets, json_pack("{s:I,s:I}", "le-us", (json_int_t)tgt_latency_limit(i), "count", (json_int_t)seen));
    }
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:o}", "count", (json_int_t)l->count, "sum-us", (json_int_t)l->sum_us, "p50-us",
                     (json_int_t)tgt_latency_permille(l, 500), "p99-us", (json_int_t)tgt_latency_permille(l, 990), "p999-us",
                     (json_int_t)tgt_latency_permille(l, 999), "max-us", (json_int_t)l->max_us, "buckets", buckets);
}

json_t *tgt_latency_save(const struct tgt_latency *l)
{
    json_t *n = json_array();
    uint64_t seen = 0;
    for (unsigned i = 0; i < TGT_LATENCY_BUCKETS && seen < l->count; i++) {
        seen += l->n[i];
        json_array_append_new(n, json_integer((json_int_t)l->n[i]));
    }
    return json_pack("{s:I,s:I,s:o}", "sum-us", (json_int_t)l->sum_us, "max-us", (json_int_t)l->max_us, "n", n);
}

void tgt_latency_load(struct tgt_latency *l, json_t *o)
{
    struct tgt_latency saved = {.sum_us = (uint64_t)json_integer_value(json_object_get(o, "sum-us")),
                                .max_us = (uint64_t)json_integer_value(json_object_get(o, "max-us"))};
    json_t *n = json_object_get(o, "n"), *v;
    size_t i;
    json_array_foreach(n, i, v)
    {
        if (i >= TGT_LATENCY_BUCKETS || json_integer_value(v) < 0)
            return;
        saved.n[i] = (uint64_t)json_integer_value(v);
        saved.count += saved.n[i];
    }
    tgt_latency_merge(l, &saved);
}
