#include "iscsi-target/prometheus.h"
#include <errno.h>

/* A label's value: backslash, double quote and line feed are escaped. */
static void put_label(const char *value, FILE *out)
{
    fputs("{disk=\"", out);
    for (const char *p = value; *p; p++) {
        if (*p == '\\' || *p == '"')
            fputc('\\', out);
        fputc(*p, out); /* names hold no control characters */
    }
    fputc('"', out);
}

static void put_metric(json_t *rows, const char *key, const char *name, const char *type, const char *help, FILE *out)
{
    size_t i;
    json_t *row;
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
    json_array_foreach(rows, i, row)
    {
        fputs(name, out);
        put_label(json_string_value(json_object_get(row, "disk")), out);
        fprintf(out, "} %lld\n", (long long)json_integer_value(json_object_get(row, key)));
    }
}

static double seconds(json_t *us)
{
    return (double)json_integer_value(us) / 1e6;
}

static void put_histogram(const char *disk, const char *op, json_t *latency, FILE *out)
{
    static const char name[] = "granary_lun_latency_seconds";
    long long count = json_integer_value(json_object_get(latency, "count"));
    size_t i;
    json_t *b;
    json_array_foreach(json_object_get(latency, "buckets"), i, b)
    {
        fprintf(out, "%s_bucket", name);
        put_label(disk, out);
        fprintf(out, ",op=\"%s\",le=\"%g\"} %lld\n", op, seconds(json_object_get(b, "le-us")), (long long)json_integer_value(json_object_get(b, "count")));
    }
    fprintf(out, "%s_bucket", name);
    put_label(disk, out);
    fprintf(out, ",op=\"%s\",le=\"+Inf\"} %lld\n%s_sum", op, count, name);
    put_label(disk, out);
    fprintf(out, ",op=\"%s\"} %g\n%s_count", op, seconds(json_object_get(latency, "sum-us")), name);
    put_label(disk, out);
    fprintf(out, ",op=\"%s\"} %lld\n", op, count);
}

int tgt_prometheus_print(json_t *rows, FILE *out)
{
    static const struct {
        const char *key, *name, *type, *help;
    } metrics[] = {
        {"reads", "granary_lun_reads_total", "counter", "READ commands answered"},
        {"read-bytes", "granary_lun_read_bytes_total", "counter", "Bytes read"},
        {"writes", "granary_lun_writes_total", "counter", "WRITE commands answered"},
        {"write-bytes", "granary_lun_write_bytes_total", "counter", "Bytes written"},
        {"others", "granary_lun_others_total", "counter", "Other commands answered"},
        {"errors", "granary_lun_errors_total", "counter", "Commands answered with CHECK CONDITION"},
        {"sessions", "granary_lun_sessions", "gauge", "Sessions logged in"},
    };
    size_t i;
    json_t *row;
    for (size_t m = 0; m < sizeof metrics / sizeof metrics[0]; m++)
        put_metric(rows, metrics[m].key, metrics[m].name, metrics[m].type, metrics[m].help, out);
    fputs("# HELP granary_lun_latency_seconds Time from a command's arrival to its answer\n# TYPE granary_lun_latency_seconds histogram\n", out);
    json_array_foreach(rows, i, row)
    {
        const char *disk = json_string_value(json_object_get(row, "disk"));
        put_histogram(disk, "read", json_object_get(row, "read-latency"), out);
        put_histogram(disk, "write", json_object_get(row, "write-latency"), out);
    }
    return fflush(out) == 0 && !ferror(out) ? 0 : -EIO;
}
