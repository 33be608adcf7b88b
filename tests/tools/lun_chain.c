/* Writes that depend on each other: lun_chain SECONDS URL URL…
 * The number 1 goes to the first block of each unit in turn, each after the one before was acknowledged, then 2, and so on. So at any instant
 * no unit holds a smaller number than one behind it, nor a number larger by more than one. Prints the last number and the longest time that
 * a write took. A connection that is lost is made anew, and the write done again. SIGTERM ends it before its time; in either case a few more
 * numbers follow, so that whoever waits for its end knows that all units could be written then. */
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define UNITS 16
#define MORE 3
#define PATIENCE_S 30.0

static volatile sig_atomic_t enough;

static void on_term(int sig)
{
    (void)sig;
    enough = 1;
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static struct iscsi_context *dial(const char *text)
{
    struct iscsi_context *iscsi = iscsi_create_context("iqn.2026-11.local.granary:lun-chain");
    struct iscsi_url *url = iscsi ? iscsi_parse_full_url(iscsi, text) : NULL;
    bool good = url != NULL;
    if (good) {
        iscsi_set_targetname(iscsi, url->target);
        iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
        iscsi_set_noautoreconnect(iscsi, 1);
        iscsi_set_timeout(iscsi, 5);
        good = iscsi_full_connect_sync(iscsi, url->portal, url->lun) == 0;
        iscsi_destroy_url(url);
    }
    if (iscsi && !good) {
        iscsi_destroy_context(iscsi);
        iscsi = NULL;
    }
    return iscsi;
}

static bool put(struct iscsi_context *iscsi, unsigned char *block)
{
    struct scsi_task *task = iscsi ? iscsi_write10_sync(iscsi, 0, 0, block, 512, 512, 0, 0, 0, 0, 0) : NULL;
    bool good = task && task->status == SCSI_STATUS_GOOD;
    bool again = task && task->status == SCSI_STATUS_CHECK_CONDITION && task->sense.key == SCSI_SENSE_UNIT_ATTENTION;
    scsi_free_scsi_task(task);
    return again ? put(iscsi, block) : good;
}

int main(int argc, char **argv)
{
    struct iscsi_context *at[UNITS] = {NULL};
    unsigned char block[512] = {0};
    unsigned long long n = 0, last = 0;
    double longest = 0, end = now() + (argc > 2 ? strtod(argv[1], NULL) : 0);
    if (argc < 3 || argc > 2 + UNITS)
        return fprintf(stderr, "usage: lun_chain SECONDS URL URL...\n"), 2;
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_term, .sa_flags = SA_RESTART}, NULL);
    while (!last || n < last) {
        if (!last && (enough || now() >= end))
            last = n + MORE;
        n++;
        memcpy(block, &n, sizeof n);
        for (int i = 0; i < argc - 2; i++) {
            double begin = now();
            while (!put(at[i], block)) {
                if (at[i])
                    iscsi_destroy_context(at[i]);
                at[i] = dial(argv[2 + i]);
                if (!at[i])
                    usleep(50000);
                if (now() - begin > PATIENCE_S)
                    return fprintf(stderr, "lun_chain: %s does not come back\n", argv[2 + i]), 1;
            }
            if (now() - begin > longest && n > 1)
                longest = now() - begin;
        }
    }
    printf("{\"last\":%llu,\"longest-ms\":%.1f}\n", n, longest * 1e3);
    return 0;
}
