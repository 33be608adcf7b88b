/* Blocks of keys: where an encrypted disk says, nobody else's, one copy sound at least. No key is needed to see that. */
#include "vmfs/check.h"
#include "vmfs/keys.h"

static bool copy_take(struct chk *c, const struct chk_obj *o, unsigned copy, struct vkeys *ret, struct gr_err *err)
{
    uint64_t addr = space_addr_ok(c->v, o->keys_at[copy], 1) ? moved_addr(c->v, o->keys_at[copy], 1, NULL) : 0;
    char at[40];
    if (!addr || !chk_region_of(c, addr, 1)) {
        gr_fail(err, -GR_ECORRUPT, "rule 7: it lies outside the regions");
        return false;
    }
    chk_early(c, addr, 1, chk_print(o->id, UINT64_MAX, 1, addr), "object %llu: copy %c of its keys", (unsigned long long)o->id, "AB"[copy]);
    void *b = vunits_alloc(1);
    int r = b ? chk_read(c, addr, 1, b) : chk_nomem(c);
    if (r < 0)
        gr_fail(err, r, "%s: %s", chk_unit(addr, at), gr_code_text(r));
    if (r == 0)
        r = vkeys_decode(c->v, b, addr, ret, err);
    free(b);
    return r == 0;
}

void chk_keys(struct chk *c, struct chk_obj *o)
{
    struct vkeys k[2];
    struct gr_err err[2] = { 0 };
    if (!o->keys_at[0] != !o->key_id) {
        chk_error(c, "object %llu: rule 7: its inode names key %016llx, its blob says that it is %s", (unsigned long long)o->id,
                  (unsigned long long)o->key_id, o->keys_at[0] ? "encrypted" : "not encrypted");
        return;
    }
    if (!o->key_id)
        return;
    bool a = copy_take(c, o, 0, &k[0], &err[0]), b = copy_take(c, o, 1, &k[1], &err[1]);
    if (!a && !b)
        chk_unread(c, o->keys_at[0], "object %llu: both copies of its keys are damaged: %s; %s", (unsigned long long)o->id, err[0].text, err[1].text);
    else if (!a || !b)
        chk_note(c, "object %llu: one copy of its keys is damaged: %s; 'granary disk rekey --wrap' writes both anew", (unsigned long long)o->id, err[!a ? 0 : 1].text);
    const struct vkeys *now = !a || (b && k[1].generation > k[0].generation) ? &k[1] : &k[0];
    if ((a || b) && now->n)
        o->key_from = now->key[0].from;
}
