/* What a session counted: added up, and told to a process that goes on counting. */
#include "iscsi-target/target_int.h"

void tgt_stats_add(struct tgt_sess_stats *sum, const struct tgt_sess_stats *st)
{
    sum->reads += st->reads;
    sum->writes += st->writes;
    sum->read_bytes += st->read_bytes;
    sum->write_bytes += st->write_bytes;
    sum->others += st->others;
    sum->errors += st->errors;
    tgt_latency_merge(&sum->read_latency, &st->read_latency);
    tgt_latency_merge(&sum->write_latency, &st->write_latency);
}

json_t *tgt_stats_save(const struct tgt_sess_stats *st)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "reads", (json_int_t)st->reads, "read-bytes", (json_int_t)st->read_bytes, "writes",
                     (json_int_t)st->writes, "write-bytes", (json_int_t)st->write_bytes, "others", (json_int_t)st->others, "errors",
                     (json_int_t)st->errors, "read-latency", tgt_latency_save(&st->read_latency), "write-latency",
                     tgt_latency_save(&st->write_latency));
}

static uint64_t number(json_t *o, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(o, key));
    return n > 0 ? (uint64_t)n : 0;
}

void tgt_stats_load(struct tgt_sess_stats *sum, json_t *o)
{
    struct tgt_sess_stats st = {.reads = number(o, "reads"), .read_bytes = number(o, "read-bytes"), .writes = number(o, "writes"),
                                .write_bytes = number(o, "write-bytes"), .others = number(o, "others"), .errors = number(o, "errors")};
    tgt_latency_load(&st.read_latency, json_object_get(o, "read-latency"));
    tgt_latency_load(&st.write_latency, json_object_get(o, "write-latency"));
    tgt_stats_add(sum, &st);
}
