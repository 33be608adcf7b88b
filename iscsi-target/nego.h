/* Negotiation of the operational keys (RFC 7143 section 13), one table row per key. A key that the initiator does not
 * send keeps its RFC default. */
#ifndef TGT_NEGO_H
#define TGT_NEGO_H
#include "iscsi-target/iscsi_text.h"
#include <stdint.h>

/* Results; plain numbers, so that they can cross to the parent process and be checked there. */
struct tgt_params {
    uint32_t header_digest, data_digest; /* 0 or 1 (CRC32C) */
    uint32_t initial_r2t, immediate_data;
    uint32_t max_send_dsl;               /* the initiator's MaxRecvDataSegmentLength */
    uint32_t max_burst, first_burst;
    uint32_t max_outstanding_r2t;
    uint32_t max_connections;
    uint32_t time2wait, time2retain;
    uint32_t error_recovery_level;
    uint32_t data_pdu_in_order, data_sequence_in_order;
    uint32_t protocol_level;
};
void tgt_params_default(struct tgt_params *p);
/* True when every value lies in the range that negotiation can give (what a login process hands over is checked). */
bool tgt_params_ok(const struct tgt_params *p);

/* Which keys were seen (each may be negotiated once). */
struct tgt_nego {
    struct tgt_params params;
    uint64_t seen; /* bit per table row */
    bool declared; /* our MaxRecvDataSegmentLength was sent */
    bool discovery;
    bool joining;  /* a connection more of a session whose keys are agreed */
};
void tgt_nego_init(struct tgt_nego *n, bool discovery);
/* One pair from the initiator; the answer, if one is due, is appended to @out. 1: it was an operational key; 0: not ours;
 * -GR_EPROTO: negotiated twice, or a declaration out of range: the login fails. */
int tgt_nego_key(struct tgt_nego *n, const struct tgt_text_pair *pair, struct tgt_text_out *out);
/* Fit the results to each other (FirstBurst within MaxBurst). */
void tgt_nego_finish(struct tgt_nego *n);
#endif
