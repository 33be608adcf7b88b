/* A small iSCSI initiator for tests and benchmarks: it can also say what a well-behaved one never would. Blocking, with a
 * deadline on every wait. Functions return 0 or positive, or a negative errno. */
#ifndef TEST_INI_H
#define TEST_INI_H
#include "iscsi-target/iscsi.h"
#include <stddef.h>
#include <stdint.h>

struct ini {
    int fd;
    uint32_t cmdsn, maxcmdsn, expstatsn, itt;
    uint8_t isid[6];
    uint16_t tsih, cid;       /* set tsih before the login to join a session */
    uint16_t login_status;    /* of the last login response */
    unsigned long max_send_dsl, max_burst, first_burst;
    int immediate_data, initial_r2t, header_digest, data_digest;
    int timeout_ms;
    char text[16384];         /* pairs of the last login or text response, NUL-separated */
    size_t text_len;
};
struct ini_result { /* of one SCSI command */
    uint8_t status, response, flags;
    uint32_t residual;
    uint8_t sense[64];
    unsigned sense_len;
    size_t in_len;            /* bytes of Data-In received */
};
#define INI_KEY(c) ((c).sense_len > 2 ? (c).sense[2] & 15 : 0)
#define INI_ASC(c) ((c).sense_len > 13 ? (unsigned)(c).sense[12] << 8 | (c).sense[13] : 0)

int ini_connect(struct ini *i, const char *host, const char *port);
void ini_close(struct ini *i);
/* @keys: NUL-separated pairs, ended by an empty one ("A=1\0B=2\0"). Sends one login request. */
int ini_login_request(struct ini *i, unsigned csg, unsigned nsg, int transit, const char *keys, size_t keys_len);
/* Log in without authentication, straight to the operational stage; @extra: further pairs. login_status tells the outcome. */
int ini_login(struct ini *i, const char *initiator, const char *target, const char *extra, size_t extra_len);
const char *ini_key(const struct ini *i, const char *key); /* value in the last text, NULL */
/* Raw PDUs. Lengths, digests and padding are filled in from what was negotiated; the rest of @bhs is sent as it is. */
int ini_send(struct ini *i, uint8_t *bhs, const void *data, uint32_t len);
int ini_send_raw(struct ini *i, const void *data, size_t len);
/* Next PDU; its data segment into @data (up to @cap). Returns the segment's length, -ETIMEDOUT, -EPIPE (closed). */
int ini_recv(struct ini *i, uint8_t *bhs, void *data, size_t cap);
/* Fill a SCSI command header. */
void ini_cmd_bhs(struct ini *i, uint8_t *bhs, const uint8_t *cdb, unsigned cdb_len, uint8_t flags, uint32_t edtl);
/* One command from start to end; @out/@in may be NULL. */
int ini_cmd(struct ini *i, const uint8_t *cdb, unsigned cdb_len, const void *out, uint32_t out_len, void *in, uint32_t in_len,
            struct ini_result *ret);
int ini_tmf(struct ini *i, unsigned function, uint32_t ref_itt, uint32_t ref_cmdsn, uint8_t *ret_response);
int ini_logout(struct ini *i);
#endif
