/* The least that C tests need: checks that report and go on, random numbers, and an allocator that counts
 * what it gave and fails when told to. A test file is a program: it calls its tests from main and returns
 * gsp_test_done(). */
#ifndef GSP_TEST_H
#define GSP_TEST_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gsp_internal.h"
#include "gspattern.h"

static int gsp_test_checks, gsp_test_failures;

/* Counts a failure; true for the first ones, which are worth a line each. */
static inline bool gsp_test_failed(void) { return ++gsp_test_failures <= 20; }

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        gsp_test_checks++;                                                                         \
        if (!(condition) && gsp_test_failed())                                                     \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
    } while (0)

#define EXPECT_INT(got, wanted)                                                                    \
    do {                                                                                           \
        const int64_t gsp_got = (int64_t)(got), gsp_wanted = (int64_t)(wanted);                    \
        gsp_test_checks++;                                                                         \
        if (gsp_got != gsp_wanted && gsp_test_failed())                                            \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got,             \
                    (long long)gsp_got, (long long)gsp_wanted);                                    \
    } while (0)

static inline int gsp_test_done(const char *name) {
    printf("%s: %d checks, %d failed\n", name, gsp_test_checks, gsp_test_failures);
    return gsp_test_failures != 0;
}

/* xorshift64*: the same numbers on every machine. */
static inline uint64_t gsp_test_random(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

/* In [0, n). */
static inline int64_t gsp_test_below(uint64_t *state, int64_t n) {
    return (int64_t)((gsp_test_random(state) >> 16) % (uint64_t)n);
}

/* Memory that is counted. The request number `fail_at` (from 0) fails, none if it is negative. For work on
 * one thread. */
typedef struct gsp_test_memory {
    int64_t requests, outstanding, fail_at;
} gsp_test_memory;

static inline void *gsp_test_allocate(void *user, size_t bytes) {
    gsp_test_memory *memory = user;
    if (memory->requests++ == memory->fail_at) return NULL;
    void *given = malloc(bytes);
    if (given != NULL) memory->outstanding++;
    return given;
}

static inline void gsp_test_release(void *user, void *given) {
    gsp_test_memory *memory = user;
    if (given != NULL) memory->outstanding--;
    free(given);
}

#endif
