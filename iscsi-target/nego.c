#include "iscsi-target/nego.h"
#include "iscsi-target/iscsi.h"
#include "common/cleanup.h"
#include <stddef.h>

enum kind { KIND_MIN, KIND_MAX, KIND_AND, KIND_OR, KIND_DIGEST, KIND_DECLARED, KIND_FIXED_NO, KIND_IRRELEVANT };
struct key {
    const char *name;
    enum kind kind;
    size_t field;           /* offset in tgt_params */
    unsigned long low, high; /* range of the key (RFC 7143) */
    unsigned long ours;      /* our side of the negotiation */
    unsigned long dflt;
    bool not_in_discovery;   /* Irrelevant when SessionType=Discovery */
    bool leading_only;       /* Irrelevant when a connection is added to a session */
};
#define F(name) offsetof(struct tgt_params, name)
#define MAX24 16777215ul
static const struct key keys[] = {
    {"HeaderDigest", KIND_DIGEST, F(header_digest), 0, 1, 1, 0, false, false},
    {"DataDigest", KIND_DIGEST, F(data_digest), 0, 1, 1, 0, false, false},
    {"MaxConnections", KIND_MIN, F(max_connections), 1, 65535, 8, 1, true, true},
    {"InitialR2T", KIND_OR, F(initial_r2t), 0, 1, 0, 1, true, true},
    {"ImmediateData", KIND_AND, F(immediate_data), 0, 1, 1, 1, true, true},
    {"MaxRecvDataSegmentLength", KIND_DECLARED, F(max_send_dsl), 512, MAX24, 0, 8192, false, false},
    {"MaxBurstLength", KIND_MIN, F(max_burst), 512, MAX24, 1048576, 262144, true, true},
    {"FirstBurstLength", KIND_MIN, F(first_burst), 512, MAX24, 262144, 65536, true, true},
    {"DefaultTime2Wait", KIND_MAX, F(time2wait), 0, 3600, 0, 2, false, true},
    {"DefaultTime2Retain", KIND_MIN, F(time2retain), 0, 3600, 20, 20, false, true},
    {"MaxOutstandingR2T", KIND_MIN, F(max_outstanding_r2t), 1, 65535, 8, 1, true, true},
    {"DataPDUInOrder", KIND_OR, F(data_pdu_in_order), 0, 1, 1, 1, true, true},
    {"DataSequenceInOrder", KIND_OR, F(data_sequence_in_order), 0, 1, 1, 1, true, true},
    {"ErrorRecoveryLevel", KIND_MIN, F(error_recovery_level), 0, 2, 2, 0, false, true},
    {"iSCSIProtocolLevel", KIND_MIN, F(protocol_level), 0, 31, 1, 1, false, true},
    {"IFMarker", KIND_FIXED_NO, 0, 0, 1, 0, 0, false, false}, /* markers: obsolete (RFC 7143 13.25) */
    {"OFMarker", KIND_FIXED_NO, 0, 0, 1, 0, 0, false, false},
    {"IFMarkInt", KIND_IRRELEVANT, 0, 0, 0, 0, 0, false, false},
    {"OFMarkInt", KIND_IRRELEVANT, 0, 0, 0, 0, 0, false, false},
};
#define N_KEYS (sizeof keys / sizeof keys[0])

static uint32_t *field(struct tgt_params *p, const struct key *k)
{
    return (uint32_t *)(void *)((char *)p + k->field);
}

static bool has_field(const struct key *k)
{
    return k->kind != KIND_FIXED_NO && k->kind != KIND_IRRELEVANT;
}

void tgt_params_default(struct tgt_params *p)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (has_field(&keys[i]))
            *field(p, &keys[i]) = (uint32_t)keys[i].dflt;
}

bool tgt_params_ok(const struct tgt_params *p)
{
    struct tgt_params copy = *p;
    for (size_t i = 0; i < N_KEYS; i++) {
        if (!has_field(&keys[i]))
            continue;
        uint32_t v = *field(&copy, &keys[i]);
        unsigned long high = keys[i].kind == KIND_MIN ? GR_MAX(keys[i].ours, keys[i].dflt) : keys[i].high;
        if (v < keys[i].low || v > high)
            return false;
    }
    return p->first_burst <= p->max_burst;
}

void tgt_nego_init(struct tgt_nego *n, bool discovery)
{
    *n = (struct tgt_nego){.discovery = discovery};
    tgt_params_default(&n->params);
}

static int boolean(const char *value, unsigned long *ret)
{
    if (strcmp(value, "Yes") && strcmp(value, "No"))
        return -GR_EPROTO;
    *ret = value[0] == 'Y';
    return 0;
}

/* The digest list is in the initiator's order of preference: the first that both know. */
static void digest(struct tgt_nego *n, const struct key *k, const char *value, struct tgt_text_out *out)
{
    for (const char *p = value; *p;) {
        size_t len = strcspn(p, ",");
        if (len == 6 && !memcmp(p, "CRC32C", 6) && !n->discovery) {
            *field(&n->params, k) = 1;
            tgt_text_add(out, k->name, "CRC32C");
            return;
        }
        if (len == 4 && !memcmp(p, "None", 4)) {
            *field(&n->params, k) = 0;
            tgt_text_add(out, k->name, "None");
            return;
        }
        p += len + (p[len] == ',');
    }
    tgt_text_add(out, k->name, "Reject");
}

static void numeric(struct tgt_nego *n, const struct key *k, unsigned long v, struct tgt_text_out *out)
{
    unsigned long r = k->kind == KIND_MIN ? (v < k->ours ? v : k->ours) : (v > k->ours ? v : k->ours);
    if (field(&n->params, k) == &n->params.first_burst)
        r = GR_MIN(r, n->params.max_burst);
    *field(&n->params, k) = (uint32_t)r;
    tgt_text_add_num(out, k->name, r);
}

static int one_key(struct tgt_nego *n, const struct key *k, const char *value, struct tgt_text_out *out)
{
    unsigned long v = 0;
    switch (k->kind) {
    case KIND_DIGEST:
        digest(n, k, value, out);
        return 1;
    case KIND_AND:
    case KIND_OR:
        if (boolean(value, &v) < 0) {
            tgt_text_add(out, k->name, "Reject");
            return 1;
        }
        v = k->kind == KIND_AND ? (v && k->ours) : (v || k->ours);
        *field(&n->params, k) = (uint32_t)v;
        tgt_text_add(out, k->name, v ? "Yes" : "No");
        return 1;
    case KIND_MIN:
    case KIND_MAX:
        if (tgt_text_number(value, k->high, &v) < 0 || v < k->low)
            tgt_text_add(out, k->name, "Reject");
        else
            numeric(n, k, v, out);
        return 1;
    case KIND_DECLARED:
        if (tgt_text_number(value, k->high, &v) < 0 || v < k->low)
            return -GR_EPROTO;
        *field(&n->params, k) = (uint32_t)v;
        return 1;
    case KIND_FIXED_NO:
        tgt_text_add(out, k->name, boolean(value, &v) < 0 ? "Reject" : "No");
        return 1;
    case KIND_IRRELEVANT:
        tgt_text_add(out, k->name, "Irrelevant");
        return 1;
    }
    return 0;
}

int tgt_nego_key(struct tgt_nego *n, const struct tgt_text_pair *pair, struct tgt_text_out *out)
{
    for (size_t i = 0; i < N_KEYS; i++) {
        if (strcmp(keys[i].name, pair->key))
            continue;
        if (n->seen & 1ull << i)
            return -GR_EPROTO;
        n->seen |= 1ull << i;
        if ((n->discovery && keys[i].not_in_discovery) || (n->joining && keys[i].leading_only)) {
            tgt_text_add(out, pair->key, "Irrelevant");
            return 1;
        }
        return one_key(n, &keys[i], pair->value, out);
    }
    return 0;
}

void tgt_nego_finish(struct tgt_nego *n)
{
    struct tgt_params *p = &n->params;
    if (p->first_burst > p->max_burst)
        p->first_burst = p->max_burst;
}
