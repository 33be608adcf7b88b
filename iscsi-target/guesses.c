#include "iscsi-target/guesses.h"
#include "common/cleanup.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define STEP_NS (TGT_GUESS_S * 1000000000ull)

static uint64_t mix(uint64_t h, const void *data, size_t len)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++) {
        h = (h ^ p[i]) * 0x9e3779b97f4a7c15ull;
        h ^= h >> 29;
    }
    return h;
}

/* What counts of an address; its text where it is none. */
static size_t host(const char *address, uint8_t ret[64])
{
    char text[64];
    bool v6 = address[0] == '[';
    const char *end = strrchr(address, v6 ? ']' : ':');
    snprintf(text, sizeof text, "%.*s", end ? (int)GR_MIN(end - address - v6, (ptrdiff_t)sizeof text - 1) : (int)sizeof text - 1, address + v6);
    if (v6 && inet_pton(AF_INET6, text, ret) == 1)
        return 8;
    size_t len = strlen(text);
    memcpy(ret, text, len);
    return len;
}

static size_t bucket(const struct tgt_guesses *g, const char *address, const char *disk)
{
    uint8_t who[64];
    uint64_t h = mix(g->key[0], who, host(address, who));
    h = mix(h ^ g->key[1], disk, strlen(disk));
    return (size_t)(h ^ h >> 32) % GR_ARRAY_LEN(g->until_ns);
}

bool tgt_guess_allowed(const struct tgt_guesses *g, const char *address, const char *disk, uint64_t now_ns)
{
    return g->until_ns[bucket(g, address, disk)] <= now_ns + (TGT_GUESSES - 1) * STEP_NS;
}

bool tgt_guess_wrong(struct tgt_guesses *g, const char *address, const char *disk, uint64_t now_ns)
{
    uint64_t *until = &g->until_ns[bucket(g, address, disk)];
    *until = (*until > now_ns ? *until : now_ns) + STEP_NS;
    return !tgt_guess_allowed(g, address, disk, now_ns);
}

void tgt_guess_right(struct tgt_guesses *g, const char *address, const char *disk)
{
    g->until_ns[bucket(g, address, disk)] = 0;
}
