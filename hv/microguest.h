/* The guests of a few instructions that the KVM probe runs. Linux KVM API: Documentation/virt/kvm/api.rst. */
#ifndef HV_MICROGUEST_H
#define HV_MICROGUEST_H
#include "hv/probe.h"
/* Fill @ret's verdict, reason and speed. Installs a handler for SIGALRM: for a process of its own. */
void hv_microguests(const char *device, struct hv_probe *ret);
#endif
