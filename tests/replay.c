/* Runs a fuzz target's corpus without libFuzzer, so that `make check` replays what was found before: every file of the
 * directories given, and of each some seeded mutations (bytes changed, cut, doubled). */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUTATIONS 300
#define LARGEST (1u << 20)

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint64_t next_random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

/* Exact heap copies, so that ASan sees one byte too far. */
static void run_one(const uint8_t *data, size_t len)
{
    uint8_t *copy = calloc(1, len ? len : 1);
    if (!copy)
        abort();
    memcpy(copy, data, len);
    LLVMFuzzerTestOneInput(copy, len);
    free(copy);
}

static void mutate(const uint8_t *data, size_t len)
{
    uint8_t *m = malloc(2 * len + 1);
    if (!m)
        abort();
    for (int i = 0; i < MUTATIONS; i++) {
        size_t n = len;
        memcpy(m, data, len);
        for (uint64_t k = next_random() % 4 + 1; k > 0 && n > 0; k--) {
            size_t at = next_random() % n;
            switch (next_random() % 5) {
            case 0:
                m[at] = (uint8_t)next_random();
                break;
            case 1:
                m[at] ^= (uint8_t)(1u << next_random() % 8);
                break;
            case 2:
                m[at] = next_random() % 2 ? 0xff : 0;
                break;
            case 3:
                n = at;
                break;
            case 4:
                if (n + (n - at) <= 2 * len) {
                    memmove(m + n, m + at, n - at);
                    n += n - at;
                }
                break;
            }
        }
        run_one(m, n);
    }
    free(m);
}

static int run_file(const char *path)
{
    uint8_t *data = malloc(LARGEST);
    FILE *f = fopen(path, "rb");
    if (!f || !data) {
        perror(path);
        return 1;
    }
    size_t len = fread(data, 1, LARGEST, f);
    fclose(f);
    run_one(data, len);
    mutate(data, len);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned files = 0;
    run_one((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) {
        DIR *d = opendir(argv[i]);
        if (!d) {
            perror(argv[i]);
            return 1;
        }
        for (struct dirent *e; (e = readdir(d));) {
            char path[4096];
            if (e->d_name[0] == '.')
                continue;
            snprintf(path, sizeof(path), "%s/%s", argv[i], e->d_name);
            if (run_file(path))
                return 1;
            files++;
        }
        closedir(d);
    }
    printf("# %u corpus files, %u inputs\n", files, files * (MUTATIONS + 1) + 1);
    return files == 0; /* a target without a corpus tests nothing */
}
