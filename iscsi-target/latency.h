/* How long commands took: counts by duration, four buckets an octave, so that a percentile is known to a fifth.
 * Plain data: any thread that owns it. */
#ifndef TGT_LATENCY_H
#define TGT_LATENCY_H
#include <jansson.h>
#include <stdint.h>

#define TGT_LATENCY_BUCKETS 104u /* to 67 s; longer ones count in the last */
struct tgt_latency {
    uint64_t n[TGT_LATENCY_BUCKETS];
    uint64_t count, sum_us, max_us;
};
void tgt_latency_add(struct tgt_latency *l, uint64_t us);
void tgt_latency_merge(struct tgt_latency *sum, const struct tgt_latency *l);
/* The longest duration, in µs, that bucket @i stands for. */
uint64_t tgt_latency_limit(unsigned i);
/* Duration in µs that @permille of the commands did not exceed (as far as buckets tell; never above the longest); 0: none came. */
uint64_t tgt_latency_permille(const struct tgt_latency *l, unsigned permille);
/* {"count","sum-us","p50-us","p99-us","p999-us","max-us","buckets":[{"le-us","count"}]}: buckets are cumulative, an octave each, to the
 * first that holds all. New reference, NULL: out of memory. */
json_t *tgt_latency_json(const struct tgt_latency *l);
/* All of it, for another process to go on with: {"sum-us","max-us","n":[count of each bucket, to the last that has one]}. New reference, NULL:
 * out of memory. load adds what @o says to @l, and takes nothing that cannot be. */
json_t *tgt_latency_save(const struct tgt_latency *l);
void tgt_latency_load(struct tgt_latency *l, json_t *o);
#endif
