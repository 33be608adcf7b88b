/* Who makes room when too many come who have proved nothing. */
#include "common/strangers.h"
#include "tests/lib/test.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static struct in6_addr peer(const char *text)
{
    struct sockaddr_storage a = {.ss_family = strchr(text, ':') ? AF_INET6 : AF_INET};
    struct in6_addr r;
    void *at = a.ss_family == AF_INET6 ? (void *)&((struct sockaddr_in6 *)(void *)&a)->sin6_addr : &((struct sockaddr_in *)(void *)&a)->sin_addr;
    assert_int_equal(inet_pton(a.ss_family, text, at), 1);
    gr_peer_of(&a, &r);
    return r;
}

/* One comes at the first free place; who had to leave for it, or -1. */
static int comes(struct gr_strangers *s, const char *text)
{
    struct in6_addr p = peer(text);
    uint32_t place = 0;
    int leaver = gr_strangers_room(s, &p);
    if (leaver >= 0)
        gr_strangers_remove(s, (uint32_t)leaver);
    while (s->at[place].there)
        place++;
    gr_strangers_add(s, place, &p);
    assert_true(s->n <= s->max);
    return leaver;
}

static void one_address(void **state)
{
    static struct gr_strangers s = {.max = 64, .per_address = 16};
    for (int i = 0; i < 16; i++)
        assert_int_equal(comes(&s, "2001:db8::1"), -1);
    for (int i = 0; i < 40; i++) /* places are used again, ages not */
        assert_int_equal(comes(&s, i % 2 ? "2001:db8::2" : "2001:db8::ffff:1"), i % 16);
    assert_int_equal(comes(&s, "2001:db8:0:1::1"), -1); /* another network */
    assert_int_equal(s.n, 17);
    gr_strangers_remove(&s, 16);
    gr_strangers_remove(&s, 16);
    assert_int_equal(s.n, 16);
}

static void full(void **state)
{
    static struct gr_strangers s = {.max = 24, .per_address = 16};
    for (int i = 0; i < 4; i++)
        assert_int_equal(comes(&s, "192.0.2.1"), -1);
    for (int i = 0; i < 9; i++)
        assert_int_equal(comes(&s, "192.0.2.2"), -1);
    for (int i = 0; i < 11; i++) {
        char text[16];
        snprintf(text, sizeof(text), "192.0.2.%d", 100 + i);
        assert_int_equal(comes(&s, text), -1);
    }
    assert_int_equal(comes(&s, "192.0.2.3"), 4); /* the oldest of the one that has nine */
    assert_int_equal(comes(&s, "192.0.2.4"), 0); /* none has too many: the oldest of all */
    assert_int_equal(comes(&s, "192.0.2.5"), 1);
}

TEST_MAIN(TEST(one_address), TEST(full))
