/* Linked in place of vmfs/feature_known.c, it makes programs of a release from before quotas and mirrored journals, for tests of hosts of
 * different age. */
#include "vmfs/internal.h"

uint64_t vmfs_features_known(void)
{
    return VMFS_INCOMPAT_KNOWN & ~(VMFS_INCOMPAT_QUOTA | VMFS_INCOMPAT_MIRRORED);
}
