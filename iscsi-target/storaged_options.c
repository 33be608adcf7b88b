#include "iscsi-target/storaged_options.h"
#include "common/buf.h"
#include <getopt.h>
#include <stdio.h>

#define LOOPS_MAX 64

static int usage(FILE *f, int status)
{
    fputs("usage: granary-storaged [options]\n\n"
          "Serves the disks of the datastores of $GRANARY_HOME; see granary-storaged(8). \"granary up\" starts it in the background.\n\n"
          "options:\n"
          "  --portal HOST:PORT            iSCSI portal, may be repeated (default: those of last time, at first " TGT_PORTAL_DEFAULT ";\n"
          "                                port 0: any free one)\n"
          "  --multipath-portal HOST:PORT  a portal that never redirects, may be repeated\n"
          "  --isns HOST[:PORT]            register the targets with this iSNS server\n"
          "  --mover HOST:PORT             NBD data mover (default " TGT_MOVER_DEFAULT ", or any free port)\n"
          "  --link ADDRESS[:PORT]         where other hosts of a datastore on LUNs reach this one (default: the first portal's\n"
          "                                address, with the port of last time or any)\n"
          "  --loops N                     event loops, with a thread each, that share the sessions (default 1)\n"
          "  --take-over                   take the place of the daemon that runs, with its portals and sessions\n"
          "  --insecure                    allow other addresses without access control, and the mover without TLS\n"
          "  --log FILE                    log to this file, not to standard error\n"
          "  --verbose                     log more\n"
          "  --ready-fd N                  write \"ok\" or a failure to this descriptor\n"
          "  --help                        print this\n",
          f);
    return status;
}

static int add_name(struct tgt_portal_names *l, const char *name)
{
    if (l->n == TGT_PORTALS)
        return -ENOSPC;
    l->name[l->n++] = name;
    return 0;
}

int storaged_options(int argc, char **argv, struct storaged_options *o)
{
    static const struct option longs[] = {
        {"portal", 1, NULL, 'p'},   {"multipath-portal", 1, NULL, 'm'}, {"mover", 1, NULL, 'n'}, {"isns", 1, NULL, 's'}, {"loops", 1, NULL, 'o'}, {"link", 1, NULL, 'k'}, {"insecure", 0, NULL, 'i'},
        {"ready-fd", 1, NULL, 'r'}, {"log", 1, NULL, 'l'},              {"verbose", 0, NULL, 'v'}, {"take-over", 0, NULL, 't'}, {"help", 0, NULL, 'h'},  {NULL, 0, NULL, 0},
    };
    uint64_t n;
    int c;
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'p':
            if (add_name(&o->portals, optarg) < 0)
                return usage(stderr, 2);
            break;
        case 'm':
            if (add_name(&o->multipath, optarg) < 0)
                return usage(stderr, 2);
            break;
        case 'n':
            o->mover = optarg;
            break;
        case 's':
            o->isns = optarg;
            break;
        case 'k':
            o->link = optarg;
            break;
        case 'o':
            if (gr_parse_u64(optarg, 1, LOOPS_MAX, &n, NULL) < 0)
                return usage(stderr, 2);
            o->loops = (unsigned)n;
            break;
        case 'i':
            o->insecure = true;
            break;
        case 'l':
            o->log = optarg;
            break;
        case 'v':
            o->verbose = true;
            break;
        case 't':
            o->take_over = true;
            break;
        case 'r':
            if (gr_parse_u64(optarg, 3, 1023, &n, NULL) < 0)
                return usage(stderr, 2);
            o->ready_fd = (int)n;
            break;
        case 'h':
            return usage(stdout, 0);
        default:
            return usage(stderr, 2);
        }
    }
    return optind < argc ? usage(stderr, 2) : -1;
}
