/* What the fuzz targets share: bytes as a stream of choices. A target is LLVMFuzzerTestOneInput of libFuzzer;
 * replay.c calls it where there is no libFuzzer. */
#ifndef GSP_FUZZ_H
#define GSP_FUZZ_H

#include "../c/gsp_sample.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A condition that must hold for every input; the fuzzer reports the input that broke it. */
#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

typedef struct gsp_bytes {
    const uint8_t *next, *end;
} gsp_bytes;

/* Zeros when the bytes are used up. */
static inline uint64_t gsp_take(gsp_bytes *from, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value = value << 8 | (from->next < from->end ? *from->next++ : 0);
    return value;
}

static inline int64_t gsp_take_below(gsp_bytes *from, int64_t n) {
    return (int64_t)(gsp_take(from, n <= 64 ? 1 : n <= 4096 ? 2 : 4) % (uint64_t)n);
}

/* Mostly well formed, now and then not. */
static inline gsp_pattern gsp_take_pattern(gsp_bytes *from) {
    static const uint32_t banks[] = {1, 2, 3, 4, 6, 8, 16, 32, 0, 65536, 65537, UINT32_MAX};
    gsp_pattern pattern = {.kind =
                               (gsp_kind)gsp_take_below(from, gsp_take_below(from, 20) ? 4 : 5)};
    pattern.banks = banks[gsp_take_below(from, gsp_take_below(from, 20) ? 8 : 12)];
    pattern.per_row = 1 + (uint32_t)gsp_take_below(from, gspi_min(pattern.banks, 16) + 1);
    while (gsp_take_below(from, 20) && pattern.per_row > 1 && pattern.banks % pattern.per_row != 0)
        pattern.per_row--;
    pattern.layout = (gsp_layout)gsp_take_below(from, gsp_take_below(from, 20) ? 2 : 3);
    const uint32_t least = gsp_take_below(from, 20) > 0;
    pattern.block_rows = least + (uint32_t)gsp_take_below(from, 6);
    pattern.block_cols = least + (uint32_t)gsp_take_below(from, 6);
    pattern.nm_n = least + (uint32_t)gsp_take_below(from, 4);
    pattern.nm_m = pattern.nm_n + (uint32_t)gsp_take_below(from, 20);
    return pattern;
}

#endif
