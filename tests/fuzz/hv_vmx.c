/* A .vmx file of anybody's making: refused with a sentence, or read the same again after it was written. */
#include "common/cleanup.h"
#include "hv/vm.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gr_auto(hv_vm_done) struct hv_vm vm = {0}, again = {0};
    gr_auto_buf struct gr_buf one = {0}, two = {0};
    struct gr_err err = {0};
    if (hv_vm_decode("ds1/web", (const char *)data, size, &vm, &err) < 0) {
        if (!err.text[0])
            __builtin_trap();
        return 0;
    }
    if (hv_vm_encode(&vm, &one) < 0)
        return 0; /* too many keys */
    if (hv_vm_decode("ds1/web", one.data, one.len, &again, &err) < 0)
        return one.len > HV_VMX_MAX ? 0 : (__builtin_trap(), 0);
    if (hv_vm_encode(&again, &two) < 0 || one.len != two.len || memcmp(one.data, two.data, one.len))
        __builtin_trap();
    return 0;
}
