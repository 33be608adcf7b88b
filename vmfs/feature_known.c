/* What this build knows: a function of its own, so that another build can be made beside it that knows less (tests/older). */
#include "vmfs/internal.h"

uint64_t vmfs_features_known(void)
{
    return VMFS_INCOMPAT_KNOWN;
}
