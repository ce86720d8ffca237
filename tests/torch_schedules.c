/* The half of tests/test_torch.sh that is pipemlp's: writes schedules as text for PyTorch to read
   and reads those that PyTorch wrote.

       torch_schedules write DIR [quick]   DIR/KIND_pP_vV_mM.csv for every kind and several sizes,
                                           and the same lowered in DIR/lowered; prints the kinds
       torch_schedules check FILE...       a line for each: `ok`, or the error's name and sentence
       torch_schedules print FILE          the schedule, parsed and printed again

   Exit status 1 only if something else goes wrong.

   cc -std=c99 -O2 tests/torch_schedules.c -o torch_schedules -lm -lpthread */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what, const char *which) {
    fprintf(stderr, "torch_schedules: %s: %s\n", which, what);
    exit(1);
}

/* The text of a schedule; the caller frees it. */
static char *text_of(const pmlp_schedule *schedule) {
    size_t length;
    char *text;
    if (pmlp_schedule_print(schedule, NULL, 0, &length) != PMLP_OK) die("fails", "printing");
    text = (char *)malloc(length + 1);
    if (!text || pmlp_schedule_print(schedule, text, length + 1, NULL) != PMLP_OK)
        die("fails", "printing");
    return text;
}

static void write_schedule(const char *path, const pmlp_schedule *schedule) {
    char *text = text_of(schedule);
    FILE *file = fopen(path, "wb");
    const bool written = file && fwrite(text, 1, strlen(text), file) == strlen(text);
    if (!file || fclose(file) || !written) die("cannot be written", path);
    free(text);
}

/* False if the library has no such schedule, or none that PyTorch could run. */
static bool write_one(const char *directory, pmlp_schedule_kind kind, int p, int v, int m) {
    pmlp_schedule_desc desc = {0};
    pmlp_schedule *schedule, *lowered;
    pmlp_error error;
    char path[1024];
    const char *name = pmlp_schedule_kind_name(kind);
    desc.kind = kind;
    desc.workers = p;
    desc.microbatches = m;
    desc.virtual_stages = v;
    if (pmlp_schedule_create(&desc, &schedule, &error) != PMLP_OK) return false;
    /* PyTorch has no updates in its schedules, and so none without a flush */
    if (!pmlp_schedule_is_synchronous(schedule)) {
        pmlp_schedule_destroy(schedule);
        return false;
    }
    snprintf(path, sizeof path, "%s/%s_p%d_v%d_m%d.csv", directory, name, p, v, m);
    write_schedule(path, schedule);
    if (pmlp_schedule_lower(schedule, &lowered, &error) != PMLP_OK) die(error.text, path);
    snprintf(path, sizeof path, "%s/lowered/%s_p%d_v%d_m%d.csv", directory, name, p, v, m);
    write_schedule(path, lowered);
    pmlp_schedule_destroy(lowered);
    pmlp_schedule_destroy(schedule);
    return true;
}

static void write_all(const char *directory, bool quick) {
    static const int ps[] = {1, 2, 3, 4, 8}, vs[] = {0, 3}, ms[] = {1, 2, 3, 4, 6, 8, 12, 16};
    int kind, i, j, k;
    for (kind = 1; kind < PMLP_SCHEDULE_KIND_COUNT; kind++) {
        int count = 0;
        for (i = 0; i < 5; i++)
            for (j = 0; j < 2; j++)
                for (k = 0; k < 8; k++)
                    if (!quick || (ps[i] != 3 && ps[i] != 8 && (ms[k] == 2 || ms[k] == 8)))
                        count +=
                            write_one(directory, (pmlp_schedule_kind)kind, ps[i], vs[j], ms[k]);
        if (count > 0) printf("%s %d\n", pmlp_schedule_kind_name((pmlp_schedule_kind)kind), count);
    }
}

static pmlp_result parse(const char *path, pmlp_schedule **schedule, pmlp_error *error) {
    static char text[1 << 20];
    FILE *file = fopen(path, "rb");
    size_t size;
    if (!file) die("cannot be read", path);
    size = fread(text, 1, sizeof text, file);
    fclose(file);
    if (size == sizeof text) die("is too long", path);
    return pmlp_schedule_parse(text, size, NULL, schedule, error);
}

int main(int argc, char **argv) {
    pmlp_schedule *schedule;
    pmlp_error error;
    int i;
    if (argc >= 3 && !strcmp(argv[1], "write")) {
        write_all(argv[2], argc > 3);
    } else if (argc >= 3 && !strcmp(argv[1], "check")) {
        for (i = 2; i < argc; i++) {
            pmlp_result result = parse(argv[i], &schedule, &error);
            if (result == PMLP_OK) {
                result = pmlp_schedule_check(schedule, 0, NULL, &error);
                pmlp_schedule_destroy(schedule);
            }
            if (result == PMLP_OK)
                printf("ok\n");
            else
                printf("%s %s\n", pmlp_result_name(result), error.text);
        }
    } else if (argc == 3 && !strcmp(argv[1], "print")) {
        char *text;
        if (parse(argv[2], &schedule, &error) != PMLP_OK) die(error.text, argv[2]);
        text = text_of(schedule);
        fputs(text, stdout);
        free(text);
        pmlp_schedule_destroy(schedule);
    } else {
        fprintf(stderr, "usage: torch_schedules write DIR [quick] | check FILE... | print FILE\n");
        return 2;
    }
    return 0;
}
