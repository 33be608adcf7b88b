/* What decides whether the recorded history of a file system has an order (tests/lib/fs_order.h) tells histories that have one from those that have none. */
#include "tests/lib/fs_order.h"
#include "tests/lib/test.h"
#include <errno.h>

static void judge(const struct fo_op *ops, size_t n, bool legal, const char *which)
{
    struct fo_op copy[16];
    struct fo_found f;
    assert_true(n <= 16);
    memcpy(copy, ops, n * sizeof *ops);
    int r = fo_check(copy, n, &f);
    assert_false(f.too_many);
    if ((r == 0) != legal)
        fail_msg("%s: %s", which, legal ? "there is an order" : "there is no order");
}

#define HAS(which, ...) judge((const struct fo_op[]){__VA_ARGS__}, sizeof((const struct fo_op[]){__VA_ARGS__}) / sizeof(struct fo_op), true, which)
#define HAS_NONE(which, ...) judge((const struct fo_op[]){__VA_ARGS__}, sizeof((const struct fo_op[]){__VA_ARGS__}) / sizeof(struct fo_op), false, which)
#define AT(from, to, who) .start_ns = from, .end_ns = to, .proc = who, .host = (who) % 2
#define OPENS(from, to, who, ...) {AT(from, to, who), .kind = FO_OPEN, .create = true, __VA_ARGS__}
#define WRITES(from, to, who, what) {AT(from, to, who), .kind = FO_WRITE, .n = 1, .tag = what}
#define APPENDS(from, to, who, what) {AT(from, to, who), .kind = FO_APPEND, .n = 1, .tag = what}
#define READS(from, to, who, ...) {AT(from, to, who), .kind = FO_READ, .n = 1, __VA_ARGS__}
#define SIZE(from, to, who, is) {AT(from, to, who), .kind = FO_FSTAT, .size = is}
#define LISTS(from, to, who, folder, what) {AT(from, to, who), .kind = FO_LIST, .dir = folder, .names = what}
#define RENAMES(from, to, who, old, new) {AT(from, to, who), .kind = FO_RENAME, .name = old, .name2 = new}
#define KEEPS(from, to, who, old, new) {AT(from, to, who), .kind = FO_RENAME, .name = old, .name2 = new, .keep = true, .err = EEXIST}
#define UNLINKS(from, to, who, ...) {AT(from, to, who), .kind = FO_UNLINK, __VA_ARGS__}
#define MAKES(from, to, who, folder) {AT(from, to, who), .kind = FO_MKDIR, .dir = folder}
#define MOVES(from, to, who, old, new) {AT(from, to, who), .kind = FO_RENAME_DIR, .dir = old, .dir2 = new}

static void content(void **state)
{
    HAS("a read beside a write sees it", OPENS(1, 2, 0), OPENS(3, 4, 1), WRITES(5, 9, 0, 7), READS(6, 8, 1, .size = 1, .cells = {7}));
    HAS("or does not", OPENS(1, 2, 0), OPENS(3, 4, 1), WRITES(5, 9, 0, 7), READS(6, 8, 1, .size = 0));
    HAS_NONE("what was answered is seen", OPENS(1, 2, 0), OPENS(3, 4, 1), WRITES(5, 6, 0, 7), READS(7, 8, 1, .size = 0));
    HAS_NONE("and goes on to be seen, while the write is under way", OPENS(1, 2, 0), OPENS(3, 4, 1), WRITES(5, 19, 0, 7), READS(6, 8, 1, .size = 1, .cells = {7}),
             READS(9, 10, 1, .size = 0));
    HAS_NONE("by others, too", OPENS(1, 2, 0), OPENS(1, 2, 1), OPENS(1, 2, 2), WRITES(5, 19, 0, 7), READS(6, 8, 1, .size = 1, .cells = {7}), READS(9, 10, 2, .size = 0));
    HAS_NONE("two that look see two writes in one order", OPENS(1, 2, 0), OPENS(1, 2, 1), OPENS(1, 2, 2), OPENS(1, 2, 3), WRITES(5, 30, 0, 7), WRITES(5, 30, 1, 8),
             READS(6, 8, 2, .size = 1, .cells = {7}), READS(9, 10, 2, .size = 1, .cells = {8}), READS(6, 8, 3, .size = 1, .cells = {8}),
             READS(9, 10, 3, .size = 1, .cells = {7}));
    HAS("two lengths", OPENS(1, 2, 0), OPENS(3, 4, 1), APPENDS(5, 9, 0, 7), APPENDS(5, 9, 1, 8), SIZE(10, 11, 0, 2));
    HAS_NONE("an append is lost", OPENS(1, 2, 0), OPENS(3, 4, 1), APPENDS(5, 9, 0, 7), APPENDS(5, 9, 1, 8), SIZE(10, 11, 0, 1));
    HAS_NONE("a length that is kept too long", OPENS(1, 2, 0), OPENS(3, 4, 1), SIZE(5, 6, 1, 0), APPENDS(7, 8, 0, 7), SIZE(9, 10, 1, 0));
    HAS("without a name it is read", OPENS(1, 2, 0), WRITES(3, 4, 0, 7), UNLINKS(5, 6, 1), READS(7, 8, 0, .size = 1, .cells = {7}));
    HAS_NONE("and is not the one that was made since", OPENS(1, 2, 0), WRITES(3, 4, 0, 7), UNLINKS(5, 6, 1), OPENS(7, 8, 1, .exclusive = true),
             READS(9, 10, 1, .size = 1, .cells = {7}));
    HAS("it is opened, and cut later", OPENS(1, 2, 0), WRITES(3, 4, 0, 7), OPENS(5, 12, 1, .cut = true), READS(6, 7, 0, .size = 1, .cells = {7}), UNLINKS(8, 9, 0),
        READS(10, 11, 0, .size = 0));
}

static void names(void **state)
{
    HAS_NONE("two made it, and nobody removed it", OPENS(1, 5, 0, .exclusive = true), OPENS(1, 5, 1, .exclusive = true));
    HAS("one of them did", OPENS(1, 5, 0, .exclusive = true), OPENS(1, 5, 1, .exclusive = true, .err = EEXIST));
    HAS("a list beside a renaming has one of both", OPENS(1, 2, 0), RENAMES(3, 9, 0, 0, 1), LISTS(4, 5, 1, 0, 1), LISTS(6, 7, 1, 0, 2));
    HAS_NONE("not both", OPENS(1, 2, 0), RENAMES(3, 9, 0, 0, 1), LISTS(4, 5, 1, 0, 3));
    HAS_NONE("not none", OPENS(1, 2, 0), RENAMES(3, 9, 0, 0, 1), LISTS(4, 5, 1, 0, 0));
    HAS_NONE("not the old one again", OPENS(1, 2, 0), RENAMES(3, 9, 0, 0, 1), LISTS(4, 5, 1, 0, 2), LISTS(6, 7, 1, 0, 1));
    HAS_NONE("a name that was removed", OPENS(1, 2, 0), UNLINKS(3, 4, 0), LISTS(5, 6, 1, 0, 1));
    HAS_NONE("what is replaced is there at any time", OPENS(1, 2, 0), OPENS(3, 4, 0, .fd = 1, .name = 1), RENAMES(5, 9, 0, 1, 0), UNLINKS(6, 7, 1, .err = ENOENT));
    HAS("another host renamed it the same way, between two looks", OPENS(1, 2, 0), RENAMES(3, 9, 0, 0, 1), RENAMES(4, 8, 1, 0, 1));
    HAS_NONE("renamed twice", OPENS(1, 2, 0), RENAMES(3, 4, 0, 0, 1), RENAMES(5, 6, 1, 0, 1));
    HAS("it moved there between the two looks of who must not replace it", OPENS(1, 2, 0), RENAMES(3, 9, 0, 0, 1), KEEPS(4, 8, 1, 0, 1));
    HAS_NONE("it had moved there before", OPENS(1, 2, 0), RENAMES(3, 4, 0, 0, 1), KEEPS(5, 6, 1, 0, 1));
    HAS_NONE("there was nothing", OPENS(1, 2, 0), KEEPS(3, 4, 1, 0, 1));
    HAS_NONE("removed twice", OPENS(1, 2, 0), UNLINKS(3, 9, 0), UNLINKS(3, 9, 1));
    HAS_NONE("an error that nothing explains", OPENS(1, 2, 0), UNLINKS(3, 4, 0, .err = EIO));
}

static void folders(void **state)
{
    HAS("made in the folder that has moved since it was looked up", MAKES(1, 2, 0, 1), OPENS(3, 9, 1, .dir = 1), MOVES(4, 5, 0, 1, 2), LISTS(6, 7, 0, 2, 0), LISTS(10, 11, 0, 2, 1));
    HAS_NONE("it moved before that", MAKES(1, 2, 0, 1), MOVES(3, 4, 0, 1, 2), OPENS(5, 9, 1, .dir = 1));
    HAS_NONE("a folder that is not empty is not replaced", MAKES(1, 2, 0, 1), MAKES(3, 4, 0, 2), OPENS(5, 6, 0, .dir = 2), MOVES(7, 8, 1, 1, 2));
    HAS_NONE("made where nothing can be", MAKES(1, 2, 0, 1), {AT(3, 4, 0), .kind = FO_RMDIR, .dir = 1}, OPENS(5, 9, 1, .dir = 1));
    HAS("its list is empty", MAKES(1, 2, 0, 1), LISTS(3, 9, 1, 1, 0), {AT(4, 5, 0), .kind = FO_RMDIR, .dir = 1});
}

TEST_MAIN(TEST(content), TEST(names), TEST(folders))
