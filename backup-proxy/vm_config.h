/* As much of a VM's configuration (.vmx: lines of key = "value") as backup and restore need; all else stays as it is. */
#ifndef BP_VM_CONFIG_H
#define BP_VM_CONFIG_H
#include "common/buf.h"
#include "common/err.h"
#define BP_VM_DISKS 32
#define BP_VM_CONFIG_MAX (64u << 10)
/* Value of @key (without case) in @text: new memory, NULL when absent. */
char *bp_vm_config_get(const char *text, const char *key);
/* @text with @key set to @value (NULL: removed), appended to @ret. */
int bp_vm_config_set(const char *text, const char *key, const char *value, struct gr_buf *ret);
/* "DS/NAME" → "DS/NAME/NAME.vmx"; new memory. */
char *bp_vm_config_file(const char *vm);
#endif
