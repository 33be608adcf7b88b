/* The host agent: the VMs of one home, their supervisors, and the methods below on run/hostd.sock; the body of granary-hostd.
 * "vm" is "DS/NAME", or NAME where that is unique. A VM in a datastore that this host has not seen becomes known when it is
 * named in full. Supervisors that die are replaced; engines live on meanwhile, and while granary-hostd itself is away.
 *
 * Methods (params → result; ? = optional):
 *   vm.create {"vm","memory"?,"vcpus"?,"disks"?:[{"disk":"DS/PATH"} | {"size":N,"provision"?}],"nic"?:bool,"bus"?:"virtio-blk|virtio-scsi"} → as vm.info
 *   vm.list → [as vm.info]     vm.info {"vm"} → {"vm","uuid","config","state","memory","vcpus","disks":[…],"incarnation","nic",
 *       "snapshot": what it grew from, "resumes": its next start goes on from memory, "reverting": to what its revert was cut short, and while it is on:
 *       "accel","accel-reason","agent":"up|down","frozen","pid","since"; "error" when the configuration cannot be read}
 *   vm.start {"vm","wait"?:"agent","timeout-ms"?} → as vm.info     vm.stop {"vm","force"?,"timeout-ms"?}     vm.reset|suspend|resume {"vm"}
 *   vm.wait {"vm","for":"agent|off","timeout-ms"?}     vm.delete {"vm","keep-disks"?} → {"deleted":[…],"kept":[…],"unread": records of snapshots that could not be read, deleted nevertheless,
 *       "left": what stays in its folder, as it is not known to be the VM's}     vm.register {"vm"}     vm.unregister {"vm"}
 *   vm.exec {"vm","argv":[…],"input-b64"?,"timeout-ms"?} → {"exit-code","out-b64","err-b64","truncated"}
 *   vm.console {"vm","follow"?} parts {"data-b64"}
 *   vm.freeze {"vm","deadline-ms"} → {"filesystems"}     vm.thaw {"vm"} → {"frozen-ms"}
 *   vm.snapshot {"vm","name","quiesce"?:true,"deadline-ms"?,"record"?,"memory"?,"description"?} parts {"done","total"} → {"vm","name",
 *       "disks":[{"disk","snapshot","bookmark"?}],"frozen-ms","consistency":"filesystem|crash|memory","cause","memory": bytes}: an agent that does
 *       not answer makes it crash-consistent, not failed. Without "record" (a backup) nothing of it is kept but the disks' snapshots
 *   vm.snapshots {"vm"} → [{"vm","name","parent","description","state":"whole|incomplete|making|deleting","consistency","group","current","created","unique",
 *       "memory","disks":[…],"missing":[…]}]      vm.delete-snapshot {"vm","name"}
 *   vm.revert {"vm","name","force"?,"memory"?:true} → as vm.info: disks and configuration; with memory it is started and goes on from there
 *   vm.abandon-revert {"vm"} → as vm.info: one that was cut short and cannot be finished; the disks stay as they are
 *   hv.probe → {"verdict":"kvm|tcg","engine": the same,"reason","mips"}     daemon.status → {"pid","home","vms","vms-on"}
 *   host.shutdown {"stop-vms"?:bool,"timeout-ms"?}: with stop-vms, shuts guests down (by force after the time-out) before it ends; else
 *       the VMs run on */
#ifndef HV_HOSTD_H
#define HV_HOSTD_H
#include "common/home.h"
#include "common/rpc.h"

/* (fiber) Serve until host.shutdown or *@stop; @ready (may be NULL) is called once the socket answers. */
int hv_hostd_run(struct gr_loop *loop, struct gr_home *home, const bool *stop, void (*ready)(void *arg), void *arg, struct gr_err *err);
#endif
