/* Fuzz target: schedules as text, as libFuzzer makes them up.

       make fuzz                    or, for this one alone and for longer:
       clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_schedule.c -o fuzz -lm
       ./fuzz NEW_CORPUS tests/corpus/schedule

   What can be read must read the same once it was printed. What the checker calls good must lower,
   replay to its end without a deadlock, and simulate. */
#define PIPEMLP_IMPLEMENTATION
#include "../pipemlp.h"

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static char *printed(const pmlp_schedule *s, size_t *length) {
    char *text;
    MUST(pmlp_schedule_print(s, NULL, 0, length) == PMLP_OK);
    text = (char *)malloc(*length + 1);
    MUST(text && pmlp_schedule_print(s, text, *length + 1, NULL) == PMLP_OK);
    return text;
}

static void run(const pmlp_schedule *s) {
    pmlp_schedule *lowered = NULL, *in_order = NULL;
    pmlp_timeline *timeline = NULL;
    pmlp_error error;
    MUST(pmlp_schedule_lower(s, &lowered, &error) == PMLP_OK);
    MUST(pmlp_schedule_replay(lowered, PMLP_TRANSPORT_SLOTS, 1 << 20, NULL, &error) == PMLP_OK);
    MUST(pmlp_schedule_lower_in_order(s, NULL, &in_order, &error) == PMLP_OK);
    MUST(pmlp_schedule_replay(in_order, PMLP_TRANSPORT_RENDEZVOUS, 0, NULL, &error) == PMLP_OK);
    MUST(pmlp_schedule_timeline(s, NULL, &timeline, &error) == PMLP_OK);
    pmlp_timeline_destroy(timeline);
    pmlp_schedule_destroy(lowered);
    pmlp_schedule_destroy(in_order);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    pmlp_schedule *s = NULL, *again = NULL;
    pmlp_error error;
    char *text, *text_again;
    size_t length, length_again;
    memset(&error, 0, sizeof error);
    if (pmlp_schedule_parse((const char *)bytes, size, NULL, &s, &error) != PMLP_OK) {
        MUST(s == NULL && error.result != PMLP_OK && strlen(error.text) > 8);
        return 0;
    }
    text = printed(s, &length);
    MUST(pmlp_schedule_parse(text, length, NULL, &again, &error) == PMLP_OK);
    text_again = printed(again, &length_again);
    MUST(length == length_again && memcmp(text, text_again, length) == 0);
    if (pmlp_schedule_check(s, 0, NULL, &error) == PMLP_OK)
        run(s);
    else
        MUST(error.result != PMLP_OK && strlen(error.text) > 8);
    free(text);
    free(text_again);
    pmlp_schedule_destroy(s);
    pmlp_schedule_destroy(again);
    return 0;
}
