#include "common/strangers.h"
#include <string.h>

void gr_peer_of(const struct sockaddr_storage *a, struct in6_addr *ret)
{
    memset(ret, 0, sizeof *ret);
    if (a->ss_family == AF_INET)
        memcpy(ret, &((const struct sockaddr_in *)(const void *)a)->sin_addr, 4);
    else if (a->ss_family == AF_INET6)
        memcpy(ret, &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr, 8);
}

/* The oldest of @peer (NULL: of all), and how many there are. */
static int oldest(const struct gr_strangers *s, const struct in6_addr *peer, uint32_t *ret_count)
{
    int best = -1;
    uint32_t count = 0;
    for (uint32_t i = 0; i < GR_STRANGERS_MAX; i++) {
        const struct gr_stranger *c = &s->at[i];
        if (!c->there || (peer && memcmp(&c->peer, peer, sizeof *peer) != 0))
            continue;
        count++;
        if (best < 0 || c->nth < s->at[best].nth)
            best = (int)i;
    }
    *ret_count = count;
    return best;
}

int gr_strangers_room(const struct gr_strangers *s, const struct in6_addr *peer)
{
    uint32_t count, most = s->per_address / 2;
    int c = oldest(s, peer, &count);
    if (count >= s->per_address)
        return c;
    if (s->n < s->max)
        return -1;
    int worst = oldest(s, NULL, &count);
    for (uint32_t i = 0; i < GR_STRANGERS_MAX; i++) {
        if (!s->at[i].there)
            continue;
        c = oldest(s, &s->at[i].peer, &count);
        if (count > most) {
            most = count;
            worst = c;
        }
    }
    return worst;
}

void gr_strangers_add(struct gr_strangers *s, uint32_t place, const struct in6_addr *peer)
{
    s->n += !s->at[place].there;
    s->at[place] = (struct gr_stranger){.there = true, .peer = *peer, .nth = ++s->arrivals};
}

void gr_strangers_remove(struct gr_strangers *s, uint32_t place)
{
    s->n -= s->at[place].there;
    s->at[place].there = false;
}
