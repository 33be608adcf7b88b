/* Rows of lun.stat as Prometheus text (exposition format 0.0.4), for node_exporter's textfile collector or any other reader. */
#ifndef TGT_PROMETHEUS_H
#define TGT_PROMETHEUS_H
#include <jansson.h>
#include <stdio.h>

/* Counters granary_lun_{reads,writes,read_bytes,write_bytes,others,errors}_total, gauge granary_lun_sessions and histogram
 * granary_lun_latency_seconds{op="read|write"}, each with the label disk. 0, or -EIO when @out does not take it. */
int tgt_prometheus_print(json_t *rows, FILE *out);
#endif
