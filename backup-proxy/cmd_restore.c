/* granary restore …: jobs in granary-proxy. */
#include "backup-proxy/cmd_proxy.h"
#include "common/cleanup.h"
#include <string.h>

static int run_restore(struct gr_cmd_ctx *c, const char *verb, const char *target, const char *done, struct gr_err *err)
{
    gr_auto_free char *repo = NULL;
    json_t *res = NULL;
    int r = bp_cmd_repo_path(c, &repo, err);
    if (r < 0)
        return r;
    const char *plain[] = {verb, "--json", "--repo", repo, "--", gr_cmd_arg(c, 0), target, NULL};
    const char *encrypted[] = {verb, "--json", "--repo", repo, "--encrypt", "--", gr_cmd_arg(c, 0), target, NULL};
    r = bp_run_proxy(gr_cmd_flag(c, "encrypt") ? encrypted : plain, &res, err);
    if (r < 0)
        return r;
    r = gr_cmd_done(c, res, "%s %s from %s in %.1f s", done, target, json_string_value(json_object_get(res, "point")),
                    json_real_value(json_object_get(res, "duration")));
    json_decref(res);
    return r;
}
static int cmd_vm(struct gr_cmd_ctx *c, struct gr_err *err)
{
    const char *as = gr_cmd_opt(c, "as");
    return as ? run_restore(c, "restore-vm", as, "restored VM", err)
              : gr_fail(err, -GR_EUSAGE, "say the new name: --as DATASTORE/NEWNAME; a restore never replaces a VM");
}
static int cmd_disk(struct gr_cmd_ctx *c, struct gr_err *err)
{
    return run_restore(c, "restore-disk", gr_cmd_arg(c, 1), "restored disk", err);
}
static const struct gr_opt vm_opts[] = {{"repo", "DIR", "the repository; default: the one used last", false},
                                        {"as", "DS/NEWNAME", "name of the restored VM; must not exist", false},
                                        {"encrypt", NULL, "keep its disks encrypted on the datastore", false},
                                        {NULL, NULL, NULL, false}};
static const struct gr_opt disk_opts[] = {{"repo", "DIR", "the repository; default: the one used last", false},
                                          {"encrypt", NULL, "keep it encrypted on the datastore", false},
                                          {NULL, NULL, NULL, false}};
static const struct gr_opt file_opts[] = {{"repo", "DIR", "the repository; default: the one used last", false},
                                          {"keep-owner", NULL, "set the guest's owners and groups (needs root)", false},
                                          {NULL, NULL, NULL, false}};
const struct gr_cmd bp_restore_commands[] = {
    {"restore", "vm", "POINT", 1, 1, "make a new VM from a restore point", vm_opts, cmd_vm},
    {"restore", "disk", "POINT[:DISK] DS/PATH", 2, 2, "make a new disk from a disk of a restore point", disk_opts, cmd_disk},
    {"restore", "file", "POINT[:DISK] PATH OUT", 3, 3, "copy a file or a tree out of a guest's file system", file_opts, bp_restore_file},
    {NULL, NULL, NULL, 0, 0, NULL, NULL, NULL}};
