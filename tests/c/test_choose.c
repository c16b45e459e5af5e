/* From scores to y in C: masks are compared with the best of all masks of tiny matrices, and larger ones go
 * through check, encode, plan and multiply. Scores are whole numbers, so that sums are exact. */
#include "gsp_sample.h"

/* Valid by the definition: every row of a group holds n * per_row, every bank at most n. */
static bool is_valid(const gsp_shape *shape, uint32_t mask) {
    const gsp_pattern *pattern = &shape->pattern;
    const int64_t full = gsp_group_rows(pattern);
    for (int64_t first = 0; first < shape->rows; first += full) {
        const int64_t end = gspi_min(first + full, shape->rows);
        int64_t bank_sum[16] = {0}, least = INT64_MAX, most = 0;
        for (int64_t row = first; row < end; row++) {
            int64_t sum = 0;
            for (int64_t col = 0; col < shape->cols; col++)
                if (mask >> (row * shape->cols + col) & 1) {
                    sum++;
                    bank_sum[gsp_bank_of(pattern, shape->cols, col)]++;
                }
            least = gspi_min(least, sum);
            most = gspi_max(most, sum);
        }
        if (least != most || most % pattern->per_row != 0) return false;
        for (uint32_t bank = 0; bank < pattern->banks; bank++)
            if (bank_sum[bank] > most / pattern->per_row) return false;
    }
    return true;
}

static void test_against_all_masks(gsp_context *context) {
    static const gsp_shape shapes[] = {
        GSP_SHAPE(2, 2, GSP_INTERLEAVED, 3, 5, false),
        GSP_SHAPE(2, 1, GSP_INTERLEAVED, 3, 4, false),
        GSP_SHAPE(2, 1, GSP_CONTIGUOUS, 3, 5, false),
        GSP_SHAPE(3, 1, GSP_INTERLEAVED, 4, 4, false),
        GSP_SHAPE(4, 2, GSP_CONTIGUOUS, 3, 5, false),
        GSP_SHAPE(3, 3, GSP_CONTIGUOUS, 2, 7, false),
        GSP_SHAPE(4, 1, GSP_INTERLEAVED, 2, 7, false),
    };
    uint64_t state = 5;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const gsp_shape *shape = &shapes[i];
        const int area = (int)(shape->rows * shape->cols);
        for (int round = 0; round < 10; round++) {
            float scores[16];
            for (int e = 0; e < area; e++)
                scores[e] = (float)gsp_test_below(&state, round ? 10 : 2);
            int64_t best[17];
            for (int kept = 0; kept <= area; kept++) best[kept] = -1;
            for (uint32_t mask = 0; mask < 1u << area; mask++) {
                if (!is_valid(shape, mask)) continue;
                int64_t score = 0;
                for (int e = 0; e < area; e++)
                    if (mask >> e & 1) score += (int64_t)scores[e];
                const int kept = __builtin_popcount(mask);
                best[kept] = gspi_max(best[kept], score);
            }
            for (int64_t keep = 0; keep <= area; keep++) {
                int64_t wanted = -1;
                for (int64_t kept = gspi_max(0, keep - shape->pattern.banks + 1); kept <= keep;
                     kept++)
                    wanted = gspi_max(wanted, best[kept]);
                uint8_t mask[16];
                uint32_t bundles[16];
                gsp_choice choice = {
                    .scores = scores,
                    .rows = shape->rows,
                    .cols = shape->cols,
                    .pattern = shape->pattern,
                    .max_per_group = -1,
                    .max_keep = -1,
                    .mask = mask,
                    .bundles = bundles,
                };
                const gsp_status status =
                    gsp_choose(context, &choice, 1, keep, GSP_EXACT, NULL, NULL);
                EXPECT_INT(status, wanted < 0 ? GSP_ERROR_BUDGET : GSP_OK);
                if (status != GSP_OK) continue;
                uint32_t chosen = 0;
                int64_t score = 0;
                for (int e = 0; e < area; e++) {
                    chosen |= (uint32_t)(mask[e] != 0) << e;
                    if (mask[e]) score += (int64_t)scores[e];
                }
                EXPECT(is_valid(shape, chosen));
                EXPECT_INT(choice.kept, __builtin_popcount(chosen));
                EXPECT(choice.kept <= keep && choice.kept > keep - (int64_t)shape->pattern.banks);
                EXPECT_INT(score, wanted);
                EXPECT_INT(choice.score, wanted);
            }
        }
    }
}

/* The whole line for one matrix, with as many threads: y = W x of the weights that the mask keeps. */
static void test_line(gsp_context *context, int threads) {
    const gsp_shape shape = GSP_SHAPE(16, 4, GSP_INTERLEAVED, 61, 96, true);
    const int64_t rows = shape.rows, cols = shape.cols, area = rows * cols;
    EXPECT_INT(gsp_context_set_threads(context, threads), GSP_OK);
    float *weights = gsp_test_bytes((size_t)area * sizeof *weights);
    float *scores = gsp_test_bytes((size_t)area * sizeof *scores);
    uint64_t state = 3;
    for (int64_t i = 0; i < area; i++) {
        weights[i] = (float)(gsp_test_below(&state, 2001) - 1000) / 64;
        scores[i] = weights[i] < 0 ? -weights[i] : weights[i];
    }
    gsp_choice choice = {
        .scores = scores,
        .rows = rows,
        .cols = cols,
        .pattern = shape.pattern,
        .scatter = 1,
        .max_per_group = -1,
        .max_keep = -1,
        .mask = gsp_test_bytes((size_t)area),
        .row_order = gsp_test_bytes((size_t)rows * sizeof(uint32_t)),
        .bundles = gsp_test_bytes((size_t)rows * sizeof(uint32_t)),
    };
    EXPECT_INT(gsp_choose(context, &choice, 1, area / 5, GSP_EXACT, NULL, NULL), GSP_OK);
    EXPECT(choice.kept <= area / 5 && choice.kept > area / 5 - 16);
    size_t violations = 1;
    EXPECT_INT(gsp_check(context, choice.mask, rows, cols, &shape.pattern, choice.row_order, NULL,
                         0, &violations),
               GSP_OK);
    EXPECT_INT(violations, 0);

    gsp_matrix matrix = {.pattern = shape.pattern,
                         .rows = rows,
                         .cols = cols,
                         .dtype = GSP_FLOAT32,
                         .row_order = choice.row_order};
    uint32_t indptr[64];
    gsp_lengths lengths;
    EXPECT_INT(gsp_measure(context, choice.mask, &matrix, indptr), GSP_OK);
    matrix.indptr = indptr;
    EXPECT_INT(gsp_sizes(&matrix, &lengths), GSP_OK);
    void *values = gsp_test_bytes(lengths.values), *indices = gsp_test_bytes(lengths.indices);
    EXPECT_INT(gsp_encode(context, weights, choice.mask, &matrix, values, indices), GSP_OK);
    matrix.values = values;
    matrix.indices = indices;
    EXPECT_INT(gsp_validate(context, &matrix, &lengths, NULL), GSP_OK);

    float x[96], y[61];
    for (int64_t col = 0; col < cols; col++) x[col] = (float)(gsp_test_below(&state, 9) - 4);
    gsp_backend backends[GSP_BACKENDS];
    gsp_backends(backends);
    gsp_plan *plan = NULL;
    EXPECT_INT(gsp_plan_create(context, &matrix, backends[0], 1, &plan), GSP_OK);
    EXPECT_INT(gsp_multiply(plan, x, 1, NULL, y, NULL), GSP_OK);
    for (int64_t row = 0; row < rows; row++) {
        double sum = 0;
        for (int64_t col = 0; col < cols; col++)
            if (choice.mask[row * cols + col]) sum += (double)weights[row * cols + col] * x[col];
        EXPECT(y[row] == sum);
    }
    gsp_plan_destroy(plan);
    free(indices);
    free(values);
    free(choice.bundles);
    free(choice.row_order);
    free(choice.mask);
    free(scores);
    free(weights);
}

/* Of several matrices, the one with a bad score has its place, the others -1. */
static void test_faults(gsp_context *context) {
    const float good[] = {1, 2, 3, 4}, bad[] = {1, 2, -1, 4};
    uint8_t masks[3][4];
    gsp_choice choices[3];
    for (int i = 0; i < 3; i++)
        choices[i] = (gsp_choice){
            .scores = i == 2 ? bad : good,
            .rows = i == 1 ? 0 : 2,
            .cols = 2,
            .pattern = {.kind = GSP_IRREGULAR},
            .max_per_group = -1,
            .max_keep = -1,
            .mask = masks[i],
        };
    EXPECT_INT(gsp_choose(context, choices, 3, 4, GSP_EXACT, NULL, NULL), GSP_ERROR_SCORE);
    EXPECT_INT(choices[0].fault, -1);
    EXPECT_INT(choices[1].fault, -1);
    EXPECT_INT(choices[2].fault, 2);
    EXPECT_INT(gsp_choose(context, choices, 2, 3, GSP_EXACT, NULL, NULL), GSP_OK);
    EXPECT_INT(choices[0].kept, 3);
    EXPECT_INT(choices[0].fault, -1);

    /* What can be kept is said with the refusal. */
    choices[0].pattern = (gsp_pattern){.kind = GSP_GS, .banks = 2, .per_row = 2};
    EXPECT_INT(gsp_choose(context, choices, 1, 9, GSP_EXACT, NULL, NULL), GSP_ERROR_BUDGET);
    EXPECT_INT(choices[0].least, 0);
    EXPECT_INT(choices[0].most, 4);
}

int main(void) {
    gsp_context *context;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    test_against_all_masks(context);
    test_line(context, 1);
    test_line(context, 3);
    test_faults(context);
    gsp_context_destroy(context);
    return gsp_test_done("choose");
}
