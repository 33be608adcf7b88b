/* Rules that the test build in tests/broken breaks on purpose, to see that the check finds it. In every other build they are not there. */
#ifndef VMFS_BROKEN_H
#define VMFS_BROKEN_H
enum vmfs_rule {
    VMFS_RULE_NONE,
    VMFS_RULE_IN_PLACE,     /* only what was born in the current epoch is overwritten where it lies */
    VMFS_RULE_BIRTH,        /* what is new is born in the current epoch */
    VMFS_RULE_OVERWRITTEN,  /* what is replaced stays while a snapshot has it, and goes when none has */
    VMFS_RULE_LEFT,
    VMFS_RULE_DELETED,      /* a deleted snapshot gives back what nobody names, and no more */
    VMFS_RULE_LEAKED,
};
#ifdef VMFS_BROKEN_BUILD
extern enum vmfs_rule vmfs_broken; /* of the test */
#define VMFS_BROKEN(rule) (vmfs_broken == VMFS_RULE_##rule)
#else
#define VMFS_BROKEN(rule) false
#endif
#endif
