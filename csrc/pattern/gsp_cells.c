/* The cells of a group: each row's scores by bank, sorted. */
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "gsp_choose.h"

void gspi_grid_init(gspi_grid *grid, const gsp_choice *choice, const uint32_t *row_order,
                    int64_t *bank_begin) {
    const int64_t banks = choice->pattern.banks;
    *grid = (gspi_grid){
        .scores = choice->scores,
        .rows = choice->rows,
        .cols = choice->cols,
        .pattern = choice->pattern,
        .row_order = row_order,
        .banks = banks,
        .per_row = choice->pattern.per_row,
        .group_rows = gsp_group_rows(&choice->pattern),
        .groups = gsp_groups(&choice->pattern, choice->rows),
        .depth = gspi_ceil_div(choice->cols, banks),
        .bank_begin = bank_begin,
    };
    for (int64_t bank = 0; bank <= banks; bank++)
        bank_begin[bank] = gsp_bank_begin(bank, choice->cols, banks);
}

int64_t gspi_rows_of_group(const gspi_grid *grid, int64_t group) {
    return gspi_min(grid->group_rows, grid->rows - group * grid->group_rows);
}

/* The larger of each of `count` pairs goes to `high`. SSE2 is part of every x86-64; compilers do
 * not make MAXPS of the loop below unless they may ignore NaN, which the caller has excluded and
 * they cannot know. */
static void compare_exchange(float *restrict high, float *restrict low, int64_t count) {
    int64_t i = 0;
#if defined(__SSE2__)
    for (; i + 4 <= count; i += 4) {
        const __m128 a = _mm_loadu_ps(high + i), b = _mm_loadu_ps(low + i);
        _mm_storeu_ps(high + i, _mm_max_ps(a, b));
        _mm_storeu_ps(low + i, _mm_min_ps(a, b));
    }
#endif
    for (; i < count; i++) {
        const float a = high[i], b = low[i];
        high[i] = a > b ? a : b;
        low[i] = a > b ? b : a;
    }
}

/* Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2 M): a fixed network,
 * so all banks are sorted at once, a bank a SIMD lane. */
static void sort_banks(float *sorted, int64_t depth, int64_t banks) {
    int64_t top = 1;
    while (top * 2 < depth) top *= 2;
    for (int64_t p = top; p > 0; p /= 2) {
        int64_t q = top, r = 0, d = p;
        for (;;) {
            for (int64_t first = r; first < depth - d; first += 2 * p) {
                const int64_t end = gspi_min(first + p, depth - d);
                compare_exchange(sorted + first * banks, sorted + (first + d) * banks,
                                 (end - first) * banks);
            }
            if (q == p) break;
            d = q - p;
            q /= 2;
            r = p;
        }
    }
}

void gspi_sort_row(const gspi_grid *grid, int64_t row, float *sorted) {
    const float *scores = grid->scores + row * grid->cols;
    const int64_t banks = grid->banks, depth = grid->depth;
    if (grid->pattern.layout == GSP_INTERLEAVED) {
        memcpy(sorted, scores, (size_t)grid->cols * sizeof *sorted);
        for (int64_t i = grid->cols; i < depth * banks; i++) sorted[i] = GSPI_NO_SCORE;
    } else {
        for (int64_t bank = 0; bank < banks; bank++) {
            const int64_t begin = grid->bank_begin[bank],
                          width = grid->bank_begin[bank + 1] - begin;
            for (int64_t t = 0; t < width; t++) sorted[t * banks + bank] = scores[begin + t];
            for (int64_t t = width; t < depth; t++) sorted[t * banks + bank] = GSPI_NO_SCORE;
        }
    }
    sort_banks(sorted, depth, banks);
}

/* Marks up to *left of the scores that equal `least`, and all above it. */
static inline uint8_t keep(float score, float least, int32_t *left) {
    if (score > least) return 1;
    if (score < least || *left == 0) return 0;
    --*left;
    return 1;
}

void gspi_mark_row(const gspi_grid *grid, int64_t row, const float *sorted, const int32_t *taken,
                   int32_t *left, uint8_t *mask) {
    const float *scores = grid->scores + row * grid->cols;
    const int64_t banks = grid->banks, cols = grid->cols;
    for (int64_t bank = 0; bank < banks; bank++) {
        /* How many of the scores that equal the last one taken are taken. */
        left[bank] = 0;
        for (int32_t t = taken[bank]; t > 0; t--) {
            if (sorted[(t - 1) * banks + bank] != sorted[(taken[bank] - 1) * banks + bank]) break;
            left[bank]++;
        }
    }
    if (grid->pattern.layout == GSP_INTERLEAVED) {
        for (int64_t begin = 0; begin < cols; begin += banks) {
            const int64_t width = gspi_min(banks, cols - begin);
            for (int64_t bank = 0; bank < width; bank++) {
                const int32_t t = taken[bank];
                mask[begin + bank] = t > 0 && keep(scores[begin + bank],
                                                   sorted[(t - 1) * banks + bank], &left[bank]);
            }
        }
    } else {
        for (int64_t bank = 0; bank < banks; bank++) {
            const int32_t t = taken[bank];
            const float least = t > 0 ? sorted[(t - 1) * banks + bank] : 0;
            for (int64_t col = grid->bank_begin[bank]; col < grid->bank_begin[bank + 1]; col++)
                mask[col] = t > 0 && keep(scores[col], least, &left[bank]);
        }
    }
}
