/* The command line of granary-storaged. */
#ifndef TGT_STORAGED_OPTIONS_H
#define TGT_STORAGED_OPTIONS_H
#include "iscsi-target/portals.h"

struct storaged_options { /* texts are borrowed from argv */
    struct tgt_portal_names portals, multipath;
    const char *mover, *isns, *link, *log;
    bool insecure, verbose, take_over;
    int ready_fd; /* -1: none */
    unsigned loops;
};
/* -1: *o is filled in; else the exit status of help that was asked for, or of usage that was shown. */
int storaged_options(int argc, char **argv, struct storaged_options *o);
#endif
