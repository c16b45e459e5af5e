/* Ladders whose bundles are all known at once, and the masks that come of them: rows with
 * per_row = banks, irregular as the special case of one bank, rows of blocks; and the masks of
 * N:M, which need no ladder. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gsp_task.h"

/* Rows: gain n is the sum over banks of their (n + 1)-th largest scores. */
static gsp_status climb_row(void *argument, int64_t row, int worker) {
    gspi_task *work = argument;
    const gspi_grid *grid = &work->grid;
    gspi_ladder *ladder = &work->ladders[row];
    float *sorted = work->sorted + (size_t)worker * (size_t)(grid->depth * grid->banks);
    double *gains = work->gains + row * ladder->high;
    gspi_sort_row(grid, row, sorted);
    for (int64_t n = 0; n < ladder->high; n++) {
        double gain = 0;
        for (int64_t bank = 0; bank < grid->banks; bank++) gain += sorted[n * grid->banks + bank];
        gains[n] = gain;
    }
    ladder->gain = gains;
    return GSP_OK;
}

static gsp_status mark_row(void *argument, int64_t row, int worker) {
    gspi_task *work = argument;
    const gspi_grid *grid = &work->grid;
    float *sorted = work->sorted + (size_t)worker * (size_t)(grid->depth * grid->banks);
    int32_t *taken = work->counts + (size_t)worker * 2 * (size_t)grid->banks;
    for (int64_t bank = 0; bank < grid->banks; bank++)
        taken[bank] = (int32_t)work->ladders[row].bundles;
    gspi_sort_row(grid, row, sorted);
    gspi_mark_row(grid, row, sorted, taken, taken + grid->banks,
                  work->choice->mask + row * grid->cols);
    return GSP_OK;
}

/* Blocks: two ladders per row of blocks, one of the whole blocks and one of the narrower block
 * at its end. */
static double block_score(const gsp_choice *choice, int64_t block_row, int64_t block_col) {
    const int64_t rows = choice->pattern.block_rows, cols = choice->pattern.block_cols;
    const int64_t row_end = gspi_min((block_row + 1) * rows, choice->rows);
    const int64_t col_end = gspi_min((block_col + 1) * cols, choice->cols);
    double sum = 0;
    for (int64_t row = block_row * rows; row < row_end; row++)
        for (int64_t col = block_col * cols; col < col_end; col++)
            sum += choice->scores[row * choice->cols + col];
    return sum;
}

static int descending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

static gsp_status climb_blocks(void *argument, int64_t block_row, int worker) {
    (void)worker;
    gspi_task *work = argument;
    const int64_t whole = work->ladders[2 * block_row].high,
                  all = whole + work->ladders[2 * block_row + 1].high;
    double *gains = work->gains + block_row * all;
    for (int64_t col = 0; col < all; col++) gains[col] = block_score(work->choice, block_row, col);
    qsort(gains, (size_t)whole, sizeof *gains, descending);
    work->ladders[2 * block_row].gain = gains;
    work->ladders[2 * block_row + 1].gain = gains + whole;
    return GSP_OK;
}

static gsp_status mark_blocks(void *argument, int64_t block_row, int worker) {
    (void)worker;
    gspi_task *work = argument;
    const gsp_choice *choice = work->choice;
    const gspi_ladder *whole = &work->ladders[2 * block_row], *narrow = whole + 1;
    const int64_t rows = choice->pattern.block_rows, cols = choice->pattern.block_cols;
    const double least = whole->bundles > 0 ? whole->gain[whole->bundles - 1] : INFINITY;
    int64_t tied = 0; /* blocks equal to the least that are kept */
    for (int64_t n = whole->bundles; n > 0 && whole->gain[n - 1] == least; n--) tied++;
    for (int64_t block_col = 0; block_col < whole->high + narrow->high; block_col++) {
        bool kept = block_col >= whole->high && narrow->bundles > 0;
        if (block_col < whole->high) {
            const double score = block_score(choice, block_row, block_col);
            kept = score > least || (score == least && tied > 0);
            if (score == least && tied > 0) tied--;
        }
        const int64_t begin = block_col * cols, width = gspi_min(cols, choice->cols - begin);
        for (int64_t row = block_row * rows; row < gspi_min((block_row + 1) * rows, choice->rows);
             row++)
            memset(choice->mask + row * choice->cols + begin, kept, (size_t)width);
    }
    return GSP_OK;
}

/* N:M: the largest n of every m columns, the leftmost where equal. */
static gsp_status mark_nm(void *argument, int64_t row, int worker) {
    (void)worker;
    gspi_task *work = argument;
    const gsp_choice *choice = work->choice;
    const float *scores = choice->scores + row * choice->cols;
    uint8_t *mask = choice->mask + row * choice->cols;
    for (int64_t begin = 0; begin < choice->cols; begin += choice->pattern.nm_m) {
        const int64_t end = gspi_min(choice->cols, begin + choice->pattern.nm_m);
        memset(mask + begin, 0, (size_t)(end - begin));
        for (int64_t taken = 0; taken < gspi_min(choice->pattern.nm_n, end - begin); taken++) {
            int64_t best = -1;
            for (int64_t col = begin; col < end; col++)
                if (!mask[col] && (best < 0 || scores[col] > scores[best])) best = col;
            mask[best] = 1;
        }
    }
    return GSP_OK;
}

/* Irregular, alone: all above the threshold, and of those equal to it the first above[row]. */
static gsp_status mark_above(void *argument, int64_t row, int worker) {
    (void)worker;
    gspi_task *work = argument;
    const gsp_choice *choice = work->choice;
    const float *scores = choice->scores + row * choice->cols;
    uint8_t *mask = choice->mask + row * choice->cols;
    int64_t left = work->above[row];
    for (int64_t col = 0; col < choice->cols; col++) {
        mask[col] = scores[col] > work->threshold;
        if (scores[col] == work->threshold && left > 0) mask[col] = 1, left--;
    }
    return GSP_OK;
}

/* Turns counts above the threshold into how many of those equal to it each row keeps. */
void gspi_share_equal(gspi_task *work, int64_t keep) {
    for (int64_t row = 0; row < work->choice->rows; row++) keep -= work->above[row];
    for (int64_t row = 0; row < work->choice->rows; row++) {
        work->above[row] = gspi_min(keep, work->equal[row]);
        keep -= work->above[row];
    }
}

/* Own ladders of a row each, or of a row of blocks. */
gsp_status gspi_build_ladders(gsp_context *context, gspi_task *work) {
    const gsp_choice *choice = work->choice;
    const bool blocks = choice->pattern.kind == GSP_BLOCK;
    const int64_t lines = gsp_groups(&choice->pattern, choice->rows), each = blocks ? 2 : 1;
    const int64_t block_cols = choice->pattern.block_cols;
    int64_t most = blocks ? gspi_ceil_div(choice->cols, block_cols)
                          : gsp_max_bundles(&work->grid.pattern, choice->cols, 1);
    if (!blocks && choice->max_per_group >= 0) most = gspi_min(most, choice->max_per_group);
    work->count = lines * each;
    work->ladders = gspi_calloc(context, (size_t)work->count, sizeof *work->ladders);
    work->gains = gspi_alloc(context, (size_t)(lines * most), sizeof *work->gains);
    GSP_CHECK(work->ladders && work->gains, GSP_ERROR_MEMORY);
    for (int64_t i = 0; i < work->count; i++) {
        gspi_ladder *ladder = &work->ladders[i];
        const int64_t group = i / each;
        ladder->choice = work->index;
        ladder->group = group;
        if (blocks) {
            const int64_t rows = choice->pattern.block_rows;
            const int64_t height = gspi_min(rows, choice->rows - group * rows);
            const bool narrow = i % 2 == 1;
            ladder->size = height * (narrow ? gspi_max(1, choice->cols % block_cols) : block_cols);
            ladder->high = narrow ? choice->cols % block_cols != 0 : choice->cols / block_cols;
        } else {
            ladder->size = work->grid.banks;
            ladder->low = choice->min_per_group;
            ladder->high = most;
        }
        ladder->last = ladder->high;
    }
    return gspi_parallel_on(work->context, work->workers, lines, blocks ? climb_blocks : climb_row,
                            work);
}

gsp_status gspi_mark(gspi_task *work) {
    const gsp_choice *choice = work->choice;
    if (gspi_is_flow(work)) return gspi_survey_mark(work->survey, choice->mask);
    if (choice->pattern.kind == GSP_BLOCK)
        return gspi_parallel_on(work->context, work->workers, work->count / 2, mark_blocks, work);
    const gspi_body body = choice->pattern.kind == GSP_NM ? mark_nm
                           : work->alone                  ? mark_above
                                                          : mark_row;
    return gspi_parallel_on(work->context, work->workers, choice->rows, body, work);
}
