/* Proofs of those who log in (RFC 7143 12.1.3): challenges, what is right and what is wrong, and how often one may be wrong. The login process
 * only carries them: secrets stay here. */
#include "common/cleanup.h"
#include "common/seam.h"
#include "iscsi-target/chap.h"
#include "iscsi-target/login_parent.h"
#include <stdio.h>

#define WRONG_PROOF_MS 1000u

bool tgt_on_chap_start(struct tgt_login_parent *p, struct tgt_slot *sl)
{
    const struct gr_world *w = gr_loop_world(p->s->loop);
    if (!sl->approved || !sl->need_chap || sl->challenged)
        return false;
    sl->challenged = true;
    sl->alg = tgt_chap_choose(p->in.u.chap_start.algs);
    w->random(w->arg, &sl->id, 1);
    w->random(w->arg, sl->challenge, sizeof sl->challenge);
    p->out.u.challenge.alg = sl->alg;
    p->out.u.challenge.id = sl->id;
    p->out.u.challenge.len = sizeof sl->challenge;
    memcpy(p->out.u.challenge.bytes, sl->challenge, sizeof sl->challenge);
    tgt_login_answer(p, p->in.slot, sl->gen, TGT_MSG_CHALLENGE);
    return true;
}

/* Our own challenge thrown back at us, from whichever connection. */
static bool reflected(const struct tgt_login_parent *p, const uint8_t *challenge, uint32_t len)
{
    for (unsigned i = 0; i < TGT_SLOTS_MAX; i++)
        if (p->slots[i].challenged && len == TGT_CHALLENGE_LEN && !memcmp(p->slots[i].challenge, challenge, TGT_CHALLENGE_LEN))
            return true;
    return false;
}

static bool proves(struct tgt_login_parent *p, const struct tgt_slot *sl, const struct tgt_chap_secrets *sec)
{
    const struct tgt_msg *m = &p->in;
    uint8_t want[TGT_CHAP_HASH_MAX];
    uint32_t len = tgt_chap_len(sl->alg);
    if (!sl->alg || !sec->secret || tgt_chap_response(sl->alg, sl->id, sec->secret, sl->challenge, sizeof sl->challenge, want) < 0)
        return false;
    bool good = m->u.chap_verify.response_len == len && tgt_chap_equal(want, m->u.chap_verify.response, len);
    return good && sec->user && !strcmp(sec->user, m->u.chap_verify.name);
}

/* A wrong proof is answered late: whoever guesses gets as many tries a second as half-open logins, until he has had too many. A right
 * one never waits. */
static void refuse_late(void *arg)
{
    struct tgt_job *j = arg;
    gr_fiber_sleep_ms(WRONG_PROOF_MS);
    if (tgt_job_slot(j)) {
        memset(&j->s->login->out.u.verified, 0, sizeof j->s->login->out.u.verified);
        j->s->login->out.u.verified.status = j->status;
        tgt_login_answer(j->s->login, j->slot, j->gen, TGT_MSG_VERIFIED);
    }
    tgt_job_end(j);
}

static void refuse(struct tgt_login_parent *p, uint32_t slot, unsigned status)
{
    struct tgt_job *j = tgt_job_new(p, slot, -1, false);
    if (!j)
        return; /* that login times out */
    j->status = status;
    tgt_job_run(j, refuse_late);
}

/* The target's own proof, when it was asked for one. */
static bool prove(struct tgt_login_parent *p, const struct tgt_slot *sl, const struct tgt_chap_secrets *sec)
{
    const struct tgt_msg *m = &p->in;
    struct tgt_msg *o = &p->out;
    if (!m->u.chap_verify.mutual)
        return true;
    if (!sec->mutual_secret || reflected(p, m->u.chap_verify.challenge, m->u.chap_verify.challenge_len) ||
        tgt_chap_response(sl->alg, (uint8_t)m->u.chap_verify.id, sec->mutual_secret, m->u.chap_verify.challenge, m->u.chap_verify.challenge_len,
                          o->u.verified.response) < 0)
        return false;
    o->u.verified.len = tgt_chap_len(sl->alg);
    snprintf(o->u.verified.name, sizeof o->u.verified.name, "%s", sec->mutual_user ? sec->mutual_user : "");
    return true;
}

/* 0, or the login status that refuses it. */
static unsigned judge(struct tgt_login_parent *p, const struct tgt_slot *sl)
{
    struct tgt_chap_secrets sec;
    uint64_t now = gr_loop_now_ns(p->s->loop);
    if (!tgt_guess_allowed(&p->guesses, sl->address, sl->disk, now))
        return TGT_LOGIN_UNAVAILABLE;
    if (tgt_access_chap(p->s->access, sl->disk, &sec) && proves(p, sl, &sec) && prove(p, sl, &sec)) {
        tgt_guess_right(&p->guesses, sl->address, sl->disk);
        return 0;
    }
    tgt_note(p->s, 4, "login of %s (%s) to '%s': CHAP failed", sl->initiator, sl->address, sl->disk);
    if (tgt_guess_wrong(&p->guesses, sl->address, sl->disk, now))
        tgt_note(p->s, 4, "too many wrong proofs of %s to '%s': for %u s none from there is looked at, then one each %u s", sl->address, sl->disk,
                 TGT_GUESS_S, TGT_GUESS_S);
    return TGT_LOGIN_AUTH;
}

bool tgt_on_chap_verify(struct tgt_login_parent *p, struct tgt_slot *sl)
{
    const struct tgt_msg *m = &p->in;
    struct tgt_msg *o = &p->out;
    if (!sl->approved || !sl->challenged || sl->busy || !tgt_msg_str_ok(m->u.chap_verify.name, sizeof m->u.chap_verify.name) ||
        m->u.chap_verify.response_len > sizeof m->u.chap_verify.response || m->u.chap_verify.challenge_len > TGT_CHAP_MAX || m->u.chap_verify.id > 255)
        return false;
    memset(&o->u.verified, 0, sizeof o->u.verified);
    unsigned status = judge(p, sl);
    sl->authenticated = sl->challenged = !status; /* one try per challenge */
    if (status)
        refuse(p, m->slot, status);
    else
        tgt_login_answer(p, m->slot, sl->gen, TGT_MSG_VERIFIED);
    return true;
}
