/* gsp_choose: from scores to masks.
 *
 * Every pattern is reduced to ladders (gsp_allot.c): a row whose bundles are all known at once (per_row =
 * banks, and irregular as the special case of one bank), a row of blocks, or a group of a survey
 * (gsp_survey.c) that is evaluated on demand. N:M has no budget and needs none of it.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gsp_choose.h"
#include "gsp_order.h"

/* One choice at work. */
typedef struct {
    gsp_choice *choice;
    gspi_grid grid;
    int64_t *bank_begin;
    int64_t *above;      /* per row: scores above the threshold, or equal to it if inclusive */
    int64_t *equal;      /* per row: scores equal to it */
    uint32_t *row_order; /* order of the groups: chosen, given or NULL */
    gspi_survey *survey; /* groups of several rows that keep per_row < banks each */
    gspi_ladder *ladders; /* the survey's, or own */
    int64_t count;
    double *gains; /* of own ladders */
    float *sorted; /* per worker, a row of cells */
    int32_t *counts; /* per worker, 2 x banks */
    double *row_score;
    int64_t *row_kept;
    int workers;
    int64_t index, share; /* which choice, and what the threshold gives it */
    int64_t spare, excess; /* nonzeros by which whole bundles miss max_keep and min_keep */
    bool alone;            /* irregular, and the threshold is the whole answer */
    float threshold;
    bool inclusive;
} task;

static bool is_empty(const gsp_choice *choice) { return choice->rows == 0 || choice->cols == 0; }

/* One matrix whose budget is all that limits it. */
static bool is_alone(const gsp_choice *choices, size_t count, gsp_kind kind) {
    return count == 1 && choices->pattern.kind == kind && choices->min_keep <= 0 && choices->max_keep < 0;
}

static bool is_flow(const task *work) {
    return work->choice->pattern.kind == GSP_GS && work->grid.per_row < work->grid.banks;
}

/* ------------------------------------------------------------- checks */

static gsp_status check_choice(const gsp_choice *choice) {
    GSP_TRY(gspi_check_shape(choice->rows, choice->cols));
    GSP_TRY(gspi_check_pattern(&choice->pattern));
    GSP_CHECK(choice->min_per_group >= 0, GSP_ERROR_BUDGET);
    if (choice->pattern.kind == GSP_GS && choice->rows > 0 && choice->cols > 0)
        GSP_CHECK(choice->pattern.banks <= choice->cols, GSP_ERROR_PATTERN);
    return GSP_OK;
}

/* What the pattern can keep; GSP_ERROR_BUDGET if a group cannot hold min_per_group. */
static gsp_status set_limits(gsp_choice *choice) {
    const gsp_pattern *pattern = &choice->pattern;
    choice->least = 0;
    choice->most = choice->rows * choice->cols;
    if (pattern->kind != GSP_GS) return GSP_OK;
    const int64_t group_rows = gsp_group_rows(pattern), groups = gsp_groups(pattern, choice->rows);
    choice->most = 0;
    for (int64_t group = groups - 1; group >= 0; group--) {
        const int64_t rows = gspi_min(group_rows, choice->rows - group * group_rows);
        int64_t most = choice->cols == 0 ? 0 : gsp_max_bundles(pattern, choice->cols, rows);
        if (choice->max_per_group >= 0) most = gspi_min(most, choice->max_per_group);
        GSP_CHECK(choice->min_per_group <= most, GSP_ERROR_BUDGET);
        /* All groups but the last are alike. */
        const int64_t alike = group == groups - 1 ? 1 : groups - 1;
        choice->least += alike * choice->min_per_group * rows * pattern->per_row;
        choice->most += alike * most * rows * pattern->per_row;
        if (group < groups - 1) break;
    }
    return GSP_OK;
}

/* ---------------------------------------------------- scan of the scores */

/* The keep-th largest score is found in two passes, by the upper and by the lower 16 bits of its float, whose
 * order is that of the scores (they are not negative; -0.0 counts as 0). The first pass checks them too. */
#define GSPI_BINS 65536

static uint32_t bits_of(float score) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x7fffffffu;
}

typedef struct {
    const gsp_choice *choice;
    uint64_t *bins;  /* workers x GSPI_BINS */
    int64_t *fault;  /* per row: first bad column or -1 */
    uint32_t prefix; /* second pass: the upper bits that are looked at */
} scan;

static gsp_status scan_upper(void *argument, int64_t row, int worker) {
    scan *work = argument;
    const float *scores = work->choice->scores + row * work->choice->cols;
    uint64_t *bins = work->bins + (size_t)worker * GSPI_BINS;
    for (int64_t col = 0; col < work->choice->cols; col++) {
        if (!(scores[col] >= 0 && scores[col] <= FLT_MAX)) {
            work->fault[row] = col;
            return GSP_ERROR_SCORE;
        }
        bins[bits_of(scores[col]) >> 16]++;
    }
    return GSP_OK;
}

static gsp_status scan_lower(void *argument, int64_t row, int worker) {
    scan *work = argument;
    const float *scores = work->choice->scores + row * work->choice->cols;
    uint64_t *bins = work->bins + (size_t)worker * GSPI_BINS;
    for (int64_t col = 0; col < work->choice->cols; col++) {
        const uint32_t bits = bits_of(scores[col]);
        if (bits >> 16 == work->prefix) bins[bits & 0xffff]++;
    }
    return GSP_OK;
}

/* Adds a choice to a histogram. */
static gsp_status scan_scores(gsp_context *context, gsp_choice *choice, gspi_body body, uint32_t prefix,
                              uint64_t *bins) {
    const int workers = gspi_workers(context, choice->rows);
    scan work = {.choice = choice, .prefix = prefix};
    work.bins = gspi_calloc(context, (size_t)workers * GSPI_BINS, sizeof *work.bins);
    work.fault = gspi_alloc(context, (size_t)choice->rows, sizeof *work.fault);
    gsp_status status = work.bins && work.fault ? GSP_OK : GSP_ERROR_MEMORY;
    if (status == GSP_OK) {
        for (int64_t row = 0; row < choice->rows; row++) work.fault[row] = -1;
        status = gspi_parallel_on(workers, choice->rows, body, &work);
        for (int64_t row = 0; status == GSP_ERROR_SCORE && row < choice->rows; row++) {
            if (work.fault[row] < 0) continue;
            choice->fault = row * choice->cols + work.fault[row];
            break;
        }
        for (size_t i = 0; status == GSP_OK && i < (size_t)workers * GSPI_BINS; i++)
            bins[i % GSPI_BINS] += work.bins[i];
    }
    gspi_free(context, work.bins);
    gspi_free(context, work.fault);
    return status;
}

/* The bin of the rank-th largest (from 1), and its rank inside the bin; -1 if there are not so many. */
static int64_t bin_of(const uint64_t *bins, uint64_t *rank) {
    for (int64_t bin = GSPI_BINS - 1; bin >= 0; bin--) {
        if (*rank <= bins[bin]) return bin;
        *rank -= bins[bin];
    }
    return -1;
}

/* The keep-th largest of all scores (infinity for none), after a check of them all. */
static gsp_status find_threshold(gsp_context *context, gsp_choice *choices, size_t count, int64_t keep,
                                 float *threshold) {
    uint64_t *bins = gspi_calloc(context, GSPI_BINS, sizeof *bins), rank = (uint64_t)keep;
    gsp_status status = bins != NULL ? GSP_OK : GSP_ERROR_MEMORY;
    for (size_t i = 0; i < count && status == GSP_OK; i++)
        status = scan_scores(context, &choices[i], scan_upper, 0, bins);
    *threshold = keep == 0 ? INFINITY : 0;
    if (status == GSP_OK && keep > 0) {
        const int64_t upper = bin_of(bins, &rank);
        memset(bins, 0, GSPI_BINS * sizeof *bins);
        for (size_t i = 0; i < count && status == GSP_OK && upper >= 0; i++)
            status = scan_scores(context, &choices[i], scan_lower, (uint32_t)upper, bins);
        const int64_t lower = upper < 0 ? -1 : bin_of(bins, &rank);
        if (status == GSP_OK && lower >= 0) {
            const uint32_t bits = (uint32_t)(upper << 16 | lower);
            memcpy(threshold, &bits, sizeof bits);
        }
    }
    gspi_free(context, bins);
    return status;
}

/* --------------------------------------------------- ladders of one matrix */

static gsp_status count_above(void *argument, int64_t row, int worker) {
    (void)worker;
    task *work = argument;
    const float *scores = work->choice->scores + row * work->choice->cols;
    int64_t above = 0, equal = 0;
    for (int64_t col = 0; col < work->choice->cols; col++) {
        above += scores[col] > work->threshold;
        equal += scores[col] == work->threshold;
    }
    work->above[row] = above + (work->inclusive ? equal : 0);
    work->equal[row] = equal;
    return GSP_OK;
}

/* Rows: gain n is the sum over banks of their (n + 1)-th largest scores. */
static gsp_status climb_row(void *argument, int64_t row, int worker) {
    task *work = argument;
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
    task *work = argument;
    const gspi_grid *grid = &work->grid;
    float *sorted = work->sorted + (size_t)worker * (size_t)(grid->depth * grid->banks);
    int32_t *taken = work->counts + (size_t)worker * 2 * (size_t)grid->banks;
    for (int64_t bank = 0; bank < grid->banks; bank++) taken[bank] = (int32_t)work->ladders[row].bundles;
    gspi_sort_row(grid, row, sorted);
    gspi_mark_row(grid, row, sorted, taken, taken + grid->banks, work->choice->mask + row * grid->cols);
    return GSP_OK;
}

/* Blocks: two ladders per row of blocks, one of the whole blocks and one of the narrower block at its end. */
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
    task *work = argument;
    const int64_t whole = work->ladders[2 * block_row].high, all = whole + work->ladders[2 * block_row + 1].high;
    double *gains = work->gains + block_row * all;
    for (int64_t col = 0; col < all; col++) gains[col] = block_score(work->choice, block_row, col);
    qsort(gains, (size_t)whole, sizeof *gains, descending);
    work->ladders[2 * block_row].gain = gains;
    work->ladders[2 * block_row + 1].gain = gains + whole;
    return GSP_OK;
}

static gsp_status mark_blocks(void *argument, int64_t block_row, int worker) {
    (void)worker;
    task *work = argument;
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
        for (int64_t row = block_row * rows; row < gspi_min((block_row + 1) * rows, choice->rows); row++)
            memset(choice->mask + row * choice->cols + begin, kept, (size_t)width);
    }
    return GSP_OK;
}

/* N:M: the largest n of every m columns, the leftmost where equal. */
static gsp_status mark_nm(void *argument, int64_t row, int worker) {
    (void)worker;
    task *work = argument;
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
    task *work = argument;
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
static void share_equal(task *work, int64_t keep) {
    for (int64_t row = 0; row < work->choice->rows; row++) keep -= work->above[row];
    for (int64_t row = 0; row < work->choice->rows; row++) {
        work->above[row] = gspi_min(keep, work->equal[row]);
        keep -= work->above[row];
    }
}

static gsp_status tally_row(void *argument, int64_t row, int worker) {
    (void)worker;
    task *work = argument;
    const gsp_choice *choice = work->choice;
    const float *scores = choice->scores + row * choice->cols;
    const uint8_t *mask = choice->mask + row * choice->cols;
    double score = 0;
    int64_t kept = 0;
    for (int64_t col = 0; col < choice->cols; col++) {
        score += mask[col] ? scores[col] : 0.0f;
        kept += mask[col];
    }
    work->row_score[row] = score;
    work->row_kept[row] = kept;
    return GSP_OK;
}

/* Own ladders of a row each, or of a row of blocks. */
static gsp_status build_ladders(gsp_context *context, task *work) {
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
    return gspi_parallel_on(work->workers, lines, blocks ? climb_blocks : climb_row, work);
}

/* ------------------------------------------------------- one budget, solved */

static gsp_status grow(task *tasks, size_t count, bool *grown) {
    *grown = false;
    for (size_t i = 0; i < count; i++) {
        bool more = false;
        if (tasks[i].survey != NULL) GSP_TRY(gspi_survey_grow(tasks[i].survey, &more));
        *grown |= more;
    }
    return GSP_OK;
}

/* Bundles of the full groups when the short last one has n. */
static int64_t rest_of(const task *work, int64_t keep, int64_t n) {
    return (keep - n * work->ladders[work->count - 1].size) / work->grid.banks;
}

/* Score of the whole with n bundles in the short group, on what is known; -inf if that is not enough. */
static double value_with(task *work, int64_t keep, int64_t n) {
    const int64_t full = work->count - 1, bundles = rest_of(work, keep, n);
    gspi_open_ladders(work->ladders, full);
    if (gspi_allot(work->ladders, full, bundles * work->grid.banks) != bundles * work->grid.banks)
        return -INFINITY;
    double value = gspi_ladder_value(&work->ladders[full], n);
    for (int64_t i = 0; i < full; i++)
        value += gspi_ladder_value(&work->ladders[i], work->ladders[i].bundles);
    return value;
}

/* With a short last group: each number n of its bundles fixes how many the others have. Only numbers whose
 * optimistic score, by the slopes at the best one found, beats that one need a look. */
static gsp_status solve_short(task *work, int64_t keep) {
    gspi_ladder *ladders = work->ladders;
    const int64_t full = work->count - 1;
    gspi_ladder *last = &ladders[full];
    int64_t least = 0, most = 0, low = INT64_MAX, high = -1;
    for (int64_t i = 0; i < full; i++) least += ladders[i].low, most += ladders[i].high;
    for (int64_t n = last->low; n <= last->high; n++) { /* those with which the others can make up the rest */
        if (keep < n * last->size || rest_of(work, keep, n) < least || rest_of(work, keep, n) > most) continue;
        low = gspi_min(low, n);
        high = n;
    }
    GSP_CHECK(high >= 0, GSP_ERROR_BUDGET);

    int64_t best_n = gspi_max(low, gspi_min(high, last->bundles));
    for (bool grown = true; grown;) {
        if (best_n < last->first || best_n > last->last) {
            last->below = best_n < last->first;
            last->above = !last->below;
            GSP_TRY(grow(work, 1, &grown));
            continue;
        }
        const double best = value_with(work, keep, best_n);
        last->bundles = best_n;
        const double up = gspi_next_gain(ladders, full), down = gspi_last_gain(ladders, full);
        const double sure = best + fabs(best) * 1e-14; /* rounding of the sums */
        const double own = gspi_ladder_value(last, best_n);
        bool better = false;
        for (int64_t n = low; n <= high && best > -INFINITY && !better; n++) {
            const int64_t more = rest_of(work, keep, n) - rest_of(work, keep, best_n);
            const int64_t known = gspi_max(last->first, gspi_min(last->last, n));
            double value = best - own + gspi_ladder_value(last, known);
            if (more > 0) value += (double)more * up;
            if (more < 0) value += (double)more * down;
            if (n < known) value -= (double)(known - n) * last->gain[0];
            if (n > known) value += (double)(n - known) * last->gain[known - last->first - 1];
            if (n == best_n || !(value > sure)) continue;
            last->below |= n < known;
            last->above |= n > known;
            if (n == known && value_with(work, keep, n) > best) {
                best_n = n;
                better = true;
            }
        }
        if (!better) GSP_TRY(grow(work, 1, &grown));
    }
    value_with(work, keep, best_n);
    return GSP_OK;
}

/* One matrix by the rule of budgets; fills in the bundles of its ladders. */
static gsp_status solve_one(task *work, int64_t keep) {
    const bool blocks = work->choice->pattern.kind == GSP_BLOCK;
    if (!blocks && work->ladders[work->count - 1].size < work->grid.banks) return solve_short(work, keep);
    for (bool grown = true; grown;) {
        gspi_open_ladders(work->ladders, work->count);
        const int64_t kept = gspi_allot(work->ladders, work->count, keep);
        GSP_TRY(grow(work, 1, &grown));
        if (!grown) GSP_CHECK(blocks || (kept <= keep && kept > keep - work->grid.banks), GSP_ERROR_BUDGET);
    }
    return GSP_OK;
}

static double total_value(const task *work) {
    double value = 0;
    for (int64_t i = 0; i < work->count; i++)
        value += gspi_ladder_value(&work->ladders[i], work->ladders[i].bundles);
    return value;
}

/* ------------------------------------------------------------- greedy counts */

/* Bundles by how many scores each group has above the threshold, the remainders to the largest. */
static gsp_status share_out(gsp_context *context, const gspi_grid *grid, gspi_ladder *ladders, int64_t count,
                            const int64_t *above, int64_t keep) {
    const gspi_ladder *last = &ladders[count - 1];
    const int64_t size = grid->banks, full = last->size < size ? count - 1 : count;
    int64_t least = 0, most = 0;
    for (int64_t i = 0; i < full; i++) least += ladders[i].low, most += ladders[i].high;
    int64_t *wanted = gspi_calloc(context, (size_t)count, sizeof *wanted);
    uint32_t *by_rest = gspi_alloc(context, (size_t)count, sizeof *by_rest);
    gsp_status status = wanted && by_rest ? GSP_OK : GSP_ERROR_MEMORY;

    for (int64_t i = 0; i < count && status == GSP_OK; i++) {
        for (int64_t place = 0; place < gspi_rows_of_group(grid, i); place++)
            wanted[i] += above[gspi_row(grid, i, place)];
        ladders[i].bundles = gspi_max(ladders[i].low, gspi_min(ladders[i].high, wanted[i] / ladders[i].size));
        wanted[i] -= ladders[i].bundles * ladders[i].size;
    }
    if (status == GSP_OK && full < count) {
        /* The number nearest to what the short group wants that leaves the others a whole number. */
        const int64_t near = ladders[full].bundles;
        int64_t best = -1;
        for (int64_t n = last->low; n <= last->high; n++) {
            const int64_t rest = keep - n * last->size;
            if (rest < 0 || rest / size < least || rest / size > most) continue;
            if (best < 0 || llabs(n - near) < llabs(best - near)) best = n;
        }
        if (best < 0) status = GSP_ERROR_BUDGET;
        else ladders[full].bundles = best, keep -= best * last->size;
    }
    if (status == GSP_OK) status = gspi_sort_rows(context, wanted, full, false, by_rest);
    if (status == GSP_OK) {
        int64_t left = keep / size;
        for (int64_t i = 0; i < full; i++) left -= ladders[i].bundles;
        if (keep < 0 || keep / size < least || keep / size > most) status = GSP_ERROR_BUDGET;
        while (status == GSP_OK && left != 0) {
            for (int64_t i = 0; i < full && left > 0; i++) {
                gspi_ladder *ladder = &ladders[by_rest[i]];
                if (ladder->bundles < ladder->high) ladder->bundles++, left--;
            }
            for (int64_t i = full - 1; i >= 0 && left < 0; i--) {
                gspi_ladder *ladder = &ladders[by_rest[i]];
                if (ladder->bundles > ladder->low) ladder->bundles--, left++;
            }
        }
    }
    gspi_free(context, wanted);
    gspi_free(context, by_rest);
    return status;
}

/* ------------------------------------------------------ surveys and row orders */

/* Sets the bundles that the first look at each group starts from: by its scores above the threshold and its
 * part of those equal to it. */
static void guess_bundles(const task *work, const gspi_grid *grid, gspi_ladder *ladders) {
    int64_t above = 0, equal = 0;
    for (int64_t row = 0; row < grid->rows; row++) {
        above += work->above[row] - (work->inclusive ? work->equal[row] : 0);
        equal += work->equal[row];
    }
    const double part = equal == 0 ? 0 : fmax(0, fmin(1, (double)(work->share - above) / (double)equal));
    for (int64_t group = 0; group < grid->groups; group++) {
        double scores = 0;
        for (int64_t place = 0; place < gspi_rows_of_group(grid, group); place++) {
            const int64_t row = gspi_row(grid, group, place);
            scores += (double)(work->above[row] - (work->inclusive ? work->equal[row] : 0));
            scores += part * (double)work->equal[row];
        }
        ladders[group].bundles = (int64_t)(scores / (double)ladders[group].size + 0.5);
    }
}

/* A survey of the matrix in one row order, solved for its share of the budget, and its score. */
static gsp_status survey_order(gsp_context *context, task *work, const uint32_t *row_order, gsp_method method,
                               gspi_survey **made, double *value) {
    gspi_grid grid = work->grid;
    grid.row_order = row_order;
    gspi_survey *survey;
    GSP_TRY(gspi_survey_create(context, &grid, work->index, work->choice->min_per_group,
                               work->choice->max_per_group, &survey));
    gspi_ladder *ladders = gspi_survey_ladders(survey);
    gsp_status status;
    if (method == GSP_GREEDY) {
        status = share_out(context, &grid, ladders, grid.groups, work->above, work->share);
        if (status == GSP_OK) status = gspi_survey_greedy(survey, value);
    } else {
        guess_bundles(work, &grid, ladders);
        status = gspi_survey_begin(survey);
        if (status == GSP_OK) {
            task one = *work;
            one.survey = survey;
            one.ladders = ladders;
            one.count = grid.groups;
            status = solve_one(&one, work->share);
            *value = total_value(&one);
        }
    }
    if (status == GSP_OK) *made = survey;
    else gspi_survey_destroy(survey);
    return status;
}

/* Gives the task its survey, and its row order if that is ours to choose. */
static gsp_status survey_task(gsp_context *context, task *work, gsp_method method) {
    double best;
    if (!work->choice->scatter) {
        GSP_TRY(survey_order(context, work, work->choice->row_order, method, &work->survey, &best));
        work->row_order = work->choice->row_order;
    } else {
        uint32_t *tried = gspi_alloc(context, (size_t)work->choice->rows, sizeof *tried);
        gsp_status status = tried != NULL ? GSP_OK : GSP_ERROR_MEMORY;
        for (gspi_order order = 0; order < GSPI_ORDERS && status == GSP_OK; order++) {
            double value = 0;
            gspi_survey *survey = NULL;
            if (order == GSPI_ORDER_BY_COUNT || order == GSPI_ORDER_BY_INCLUSIVE_COUNT) {
                work->inclusive = order == GSPI_ORDER_BY_INCLUSIVE_COUNT;
                gspi_parallel_on(work->workers, work->choice->rows, count_above, work);
            }
            status = gspi_order_rows(context, &work->grid, order, work->above, work->threshold, tried);
            if (status == GSP_OK) status = survey_order(context, work, tried, method, &survey, &value);
            if (status != GSP_OK) break;
            if (work->survey == NULL || value > best) {
                best = value;
                gspi_survey_destroy(work->survey);
                work->survey = survey;
                uint32_t *swap = work->row_order;
                work->row_order = tried;
                tried = swap;
                if (tried == NULL) {
                    tried = gspi_alloc(context, (size_t)work->choice->rows, sizeof *tried);
                    if (tried == NULL) status = GSP_ERROR_MEMORY;
                }
            } else {
                gspi_survey_destroy(survey);
            }
        }
        gspi_free(context, tried);
        GSP_TRY(status);
    }
    work->ladders = gspi_survey_ladders(work->survey);
    work->count = work->grid.groups;
    return GSP_OK;
}

/* ------------------------------------------------------------ several matrices */

/* Score per nonzero of the best bundle beyond all ceilings (0: none), and of the worst one that the floors
 * force (infinity: none). */
static double beyond_ceiling(const task *work) {
    double best = 0;
    for (int64_t i = 0; i < work->count; i++) {
        const gspi_ladder *ladder = &work->ladders[i];
        if (ladder->ceiling < gspi_min(ladder->high, ladder->last))
            best = fmax(best, ladder->gain[ladder->ceiling - ladder->first] / (double)ladder->size);
    }
    return best;
}

static double below_floor(const task *work) {
    double worst = INFINITY;
    for (int64_t i = 0; i < work->count; i++) {
        const gspi_ladder *ladder = &work->ladders[i];
        if (ladder->floor > gspi_max(ladder->low, ladder->first))
            worst = fmin(worst, ladder->gain[ladder->floor - 1 - ladder->first] / (double)ladder->size);
    }
    return worst;
}

/* Limits of one matrix become floors and ceilings of its ladders. Bundles may not meet a limit to the
 * nonzero; the bound must allow for that part of a bundle. */
static void set_own_limits(task *work) {
    const gsp_choice *choice = work->choice;
    int64_t size = 1;
    gspi_open_ladders(work->ladders, work->count);
    for (int64_t i = 0; i < work->count; i++) size = gspi_max(size, work->ladders[i].size);
    work->spare = work->excess = 0;
    if (choice->max_keep >= 0) {
        work->spare = choice->max_keep - gspi_allot(work->ladders, work->count, choice->max_keep);
        for (int64_t i = 0; i < work->count; i++) work->ladders[i].ceiling = work->ladders[i].bundles;
    }
    if (choice->min_keep > 0) {
        const int64_t kept = gspi_allot(work->ladders, work->count, choice->min_keep + size - 1);
        work->excess = gspi_max(0, kept - choice->min_keep);
        for (int64_t i = 0; i < work->count; i++) work->ladders[i].floor = work->ladders[i].bundles;
    }
}

/* Bundles of all in order of score per nonzero, within each matrix's own limits. */
static gsp_status solve_many(gsp_context *context, task *tasks, size_t count, int64_t keep, double *bound) {
    int64_t total = 0;
    for (size_t i = 0; i < count; i++) total += tasks[i].count;
    gspi_ladder *all = gspi_alloc(context, (size_t)total, sizeof *all);
    GSP_CHECK(all != NULL, GSP_ERROR_MEMORY);
    gsp_status status = GSP_OK;
    for (bool grown = true; grown && status == GSP_OK;) {
        int64_t at = 0;
        for (size_t i = 0; i < count; i++) {
            set_own_limits(&tasks[i]);
            memcpy(all + at, tasks[i].ladders, (size_t)tasks[i].count * sizeof *all);
            at += tasks[i].count;
        }
        const int64_t kept = gspi_allot(all, total, keep);
        at = 0;
        for (size_t i = 0; i < count; i++) {
            memcpy(tasks[i].ladders, all + at, (size_t)tasks[i].count * sizeof *all);
            at += tasks[i].count;
        }
        /* The Lagrangian at the price of the first bundle left out is a bound for any selection. */
        double price = 0;
        *bound = 0;
        for (int64_t i = 0; i < total; i++) {
            const gspi_ladder *ladder = &all[i];
            *bound += gspi_ladder_value(ladder, ladder->bundles);
            if (ladder->bundles < ladder->ceiling)
                price = fmax(price, ladder->gain[ladder->bundles - ladder->first] / (double)ladder->size);
        }
        *bound += (double)(keep - kept) * price;
        for (size_t i = 0; i < count; i++) {
            if (tasks[i].spare > 0)
                *bound += (double)tasks[i].spare * fmax(0, beyond_ceiling(&tasks[i]) - price);
            if (tasks[i].excess > 0)
                *bound += (double)tasks[i].excess * fmax(0, price - below_floor(&tasks[i]));
        }
        status = grow(tasks, count, &grown);
        if (status == GSP_OK && !grown && kept > keep) status = GSP_ERROR_BUDGET;
    }
    gspi_free(context, all);
    return status;
}

/* ------------------------------------------------------------------- results */

/* Prices of rows with per_row = banks: of each bank, between its last score kept and the next, so that they
 * sum to lambda wherever the row may have more and fewer bundles. One entry proves a row for all n. */
static gsp_status price_row(void *argument, int64_t entry, int worker) {
    void **both = argument;
    task *work = both[0];
    gsp_prices *prices = both[1];
    const double lambda = *(double *)both[2];
    const gspi_grid *grid = &work->grid;
    const int64_t banks = grid->banks;
    /* Entries are by grouped position; ladders by row. */
    const int64_t row = work->choice->row_order == NULL ? entry : (int64_t)work->choice->row_order[entry];
    const gspi_ladder *ladder = &work->ladders[row];
    float *sorted = work->sorted + (size_t)worker * (size_t)(grid->depth * banks);
    double *bank_price = prices->bank + entry * banks;
    gspi_sort_row(grid, row, sorted);

    const int64_t n = ladder->bundles;
    const double down = n > 0 ? ladder->gain[n - 1] : INFINITY, up = n < ladder->high ? ladder->gain[n] : -INFINITY;
    double part = 0; /* 0: the next score, 1: the last one kept */
    if (n == ladder->high) part = n > 0;
    else if (n > 0 && down > up) part = fmax(0, fmin(1, (lambda - up) / (down - up)));
    double sum = 0;
    for (int64_t bank = 0; bank < banks; bank++) {
        const double last = n > 0 ? sorted[(n - 1) * banks + bank] : 0;
        const double next = n < grid->depth ? fmax(0, sorted[n * banks + bank]) : 0;
        bank_price[bank] = part == 0 ? next : part == 1 ? last : next + part * (last - next);
        sum += (double)n * bank_price[bank];
        for (int64_t t = 0; t < grid->depth && sorted[t * banks + bank] > bank_price[bank]; t++)
            sum += sorted[t * banks + bank] - bank_price[bank];
    }
    prices->group[entry] = entry;
    prices->bundles[entry] = n;
    prices->row[entry] = 0;
    prices->bound[entry] = sum;
    prices->value[entry] = gspi_ladder_value(ladder, n);
    return GSP_OK;
}

static gsp_status make_prices(gsp_context *context, task *work, gsp_prices **made) {
    const size_t count = work->survey != NULL ? gspi_survey_entries(work->survey) : (size_t)work->count;
    gsp_prices *prices = gspi_calloc(context, 1, sizeof *prices);
    GSP_CHECK(prices != NULL, GSP_ERROR_MEMORY);
    prices->count = count;
    prices->group_rows = work->grid.group_rows;
    prices->banks = work->grid.banks;
    prices->group = gspi_alloc(context, count, sizeof *prices->group);
    prices->bundles = gspi_alloc(context, count, sizeof *prices->bundles);
    prices->row = gspi_alloc(context, count, (size_t)prices->group_rows * sizeof *prices->row);
    prices->bank = gspi_alloc(context, count, (size_t)prices->banks * sizeof *prices->bank);
    prices->value = gspi_alloc(context, count, sizeof *prices->value);
    prices->bound = gspi_alloc(context, count, sizeof *prices->bound);
    if (!prices->group || !prices->bundles || !prices->row || !prices->bank || !prices->value || !prices->bound) {
        gsp_prices_destroy(context, prices);
        return GSP_ERROR_MEMORY;
    }
    if (work->survey != NULL) {
        gspi_survey_prices(work->survey, prices);
    } else {
        double next = gspi_next_gain(work->ladders, work->count), last = gspi_last_gain(work->ladders, work->count);
        double lambda = next > -INFINITY ? next : last < INFINITY ? last : 0;
        void *both[] = {work, prices, &lambda};
        gspi_parallel_on(work->workers, work->count, price_row, both);
    }
    *made = prices;
    return GSP_OK;
}

void gsp_prices_destroy(gsp_context *context, gsp_prices *prices) {
    if (prices == NULL) return;
    gspi_free(context, prices->group);
    gspi_free(context, prices->bundles);
    gspi_free(context, prices->row);
    gspi_free(context, prices->bank);
    gspi_free(context, prices->value);
    gspi_free(context, prices->bound);
    gspi_free(context, prices);
}

/* Mask, row order, bundles, score and count of one finished task. */
static gsp_status finish(gsp_context *context, task *work) {
    gsp_choice *choice = work->choice;
    const gsp_kind kind = choice->pattern.kind;
    if (is_empty(choice)) {
        for (int64_t row = 0; choice->scatter && row < choice->rows; row++)
            choice->row_order[row] = (uint32_t)row;
        for (int64_t group = 0; choice->bundles && group < gsp_groups(&choice->pattern, choice->rows); group++)
            choice->bundles[group] = 0;
        choice->score = 0;
        choice->kept = 0;
        return GSP_OK;
    }
    if (kind == GSP_NM) GSP_TRY(gspi_parallel_on(work->workers, choice->rows, mark_nm, work));
    else if (work->alone) GSP_TRY(gspi_parallel_on(work->workers, choice->rows, mark_above, work));
    else if (kind == GSP_BLOCK) GSP_TRY(gspi_parallel_on(work->workers, work->count / 2, mark_blocks, work));
    else if (is_flow(work)) GSP_TRY(gspi_survey_mark(work->survey, choice->mask));
    else GSP_TRY(gspi_parallel_on(work->workers, choice->rows, mark_row, work));

    if (kind == GSP_GS) {
        if (choice->scatter && is_flow(work)) {
            memcpy(choice->row_order, work->row_order, (size_t)choice->rows * sizeof *choice->row_order);
        } else if (choice->scatter) {
            /* A row is a group: the order only puts equal counts together. */
            int64_t *bundles = work->above;
            for (int64_t row = 0; row < choice->rows; row++) bundles[row] = work->ladders[row].bundles;
            GSP_TRY(gspi_sort_rows(context, bundles, choice->rows, false, choice->row_order));
        }
        for (int64_t group = 0; choice->bundles != NULL && group < work->count; group++) {
            const bool moved = !is_flow(work) && choice->row_order != NULL;
            choice->bundles[group] =
                (uint32_t)work->ladders[moved ? (int64_t)choice->row_order[group] : group].bundles;
        }
    }
    GSP_TRY(gspi_parallel_on(work->workers, choice->rows, tally_row, work));
    choice->score = 0;
    choice->kept = 0;
    for (int64_t row = 0; row < choice->rows; row++) {
        choice->score += work->row_score[row];
        choice->kept += work->row_kept[row];
    }
    return GSP_OK;
}

static gsp_status open_task(gsp_context *context, task *work, gsp_choice *choice, int64_t index) {
    work->choice = choice;
    work->index = index;
    work->workers = gspi_workers(context, choice->rows);
    gsp_choice cells = *choice; /* irregular is one bank with one score a bundle */
    if (choice->pattern.kind != GSP_GS) cells.pattern = (gsp_pattern){.kind = GSP_GS, .banks = 1, .per_row = 1};
    work->bank_begin = gspi_alloc(context, (size_t)cells.pattern.banks + 1, sizeof *work->bank_begin);
    GSP_CHECK(work->bank_begin != NULL, GSP_ERROR_MEMORY);
    gspi_grid_init(&work->grid, &cells, NULL, work->bank_begin);
    const size_t rows = (size_t)choice->rows, workers = (size_t)work->workers;
    const size_t banks = (size_t)work->grid.banks;
    work->above = gspi_calloc(context, rows, sizeof *work->above);
    work->equal = gspi_calloc(context, rows, sizeof *work->equal);
    work->row_score = gspi_alloc(context, rows, sizeof *work->row_score);
    work->row_kept = gspi_alloc(context, rows, sizeof *work->row_kept);
    GSP_CHECK(work->above && work->equal && work->row_score && work->row_kept, GSP_ERROR_MEMORY);
    if (is_flow(work) || choice->pattern.kind == GSP_NM) return GSP_OK;
    work->sorted = gspi_alloc(context, workers * (size_t)work->grid.depth * banks, sizeof *work->sorted);
    work->counts = gspi_alloc(context, workers * 2 * banks, sizeof *work->counts);
    return work->sorted && work->counts ? GSP_OK : GSP_ERROR_MEMORY;
}

static void close_task(gsp_context *context, task *work) {
    if (work->survey == NULL) gspi_free(context, work->ladders);
    gspi_survey_destroy(work->survey);
    if (work->choice != NULL && work->choice->scatter) gspi_free(context, work->row_order);
    gspi_free(context, work->bank_begin);
    gspi_free(context, work->above);
    gspi_free(context, work->equal);
    gspi_free(context, work->gains);
    gspi_free(context, work->sorted);
    gspi_free(context, work->counts);
    gspi_free(context, work->row_score);
    gspi_free(context, work->row_kept);
}

/* From threshold to the bundles of every ladder. */
static gsp_status solve(gsp_context *context, task *tasks, size_t count, int64_t keep, float threshold,
                        gsp_method method, double *bound) {
    for (size_t i = 0; i < count; i++) {
        task *work = &tasks[i];
        gsp_choice *choice = work->choice;
        work->threshold = threshold;
        GSP_TRY(gspi_parallel_on(work->workers, choice->rows, count_above, work));
        work->share = keep;
        if (count > 1) {
            work->share = 0;
            for (int64_t row = 0; row < choice->rows; row++) work->share += work->above[row];
            work->share = gspi_max(choice->least, gspi_min(choice->most, work->share));
        }
        if (is_empty(choice)) continue;
        if (is_alone(choice, count, GSP_IRREGULAR)) {
            work->alone = true;
            share_equal(work, keep);
            return GSP_OK;
        }
        if (is_flow(work)) GSP_TRY(survey_task(context, work, method));
        else GSP_TRY(build_ladders(context, work));
    }
    if (count == 1 && is_empty(tasks[0].choice)) return GSP_OK;
    if (is_alone(tasks[0].choice, count, GSP_GS)) {
        /* A survey is solved with its row order. */
        *bound = INFINITY;
        return tasks[0].survey != NULL ? GSP_OK : solve_one(&tasks[0], keep);
    }
    return solve_many(context, tasks, count, keep, bound);
}

gsp_status gsp_choose(gsp_context *context, gsp_choice *choices, size_t count, int64_t keep, gsp_method method,
                      gsp_prices **prices, double *bound) {
    GSP_CHECK(count >= 1 && keep >= 0, GSP_ERROR_BUDGET);
    double ignored;
    if (bound == NULL) bound = &ignored;
    *bound = 0;
    if (prices != NULL) *prices = NULL;
    if (count > 1) method = GSP_EXACT;
    int64_t least = 0, most = 0;
    for (size_t i = 0; i < count; i++) {
        GSP_TRY(check_choice(&choices[i]));
        GSP_CHECK(choices[i].pattern.kind != GSP_NM || count == 1, GSP_ERROR_PATTERN);
        if (!choices[i].scatter) GSP_TRY(gspi_check_row_order(context, choices[i].row_order, choices[i].rows));
        GSP_TRY(set_limits(&choices[i]));
        least += choices[i].least;
        most += choices[i].most;
    }
    const bool one_gs = is_alone(choices, count, GSP_GS);
    GSP_CHECK(keep >= least && keep < most + (one_gs ? (int64_t)choices[0].pattern.banks : INT64_MAX - most),
              GSP_ERROR_BUDGET);

    task *tasks = gspi_calloc(context, count, sizeof *tasks);
    GSP_CHECK(tasks != NULL, GSP_ERROR_MEMORY);
    float threshold;
    gsp_status status = find_threshold(context, choices, count, keep, &threshold);
    for (size_t i = 0; i < count && status == GSP_OK; i++)
        status = open_task(context, &tasks[i], &choices[i], (int64_t)i);
    if (status == GSP_OK && choices[0].pattern.kind != GSP_NM)
        status = solve(context, tasks, count, keep, threshold, method, bound);
    for (size_t i = 0; i < count && status == GSP_OK; i++) status = finish(context, &tasks[i]);
    if (tasks[0].alone) *bound = choices[0].score;
    if (status == GSP_OK && prices != NULL && one_gs && method == GSP_EXACT)
        status = make_prices(context, &tasks[0], prices);
    for (size_t i = 0; i < count; i++) close_task(context, &tasks[i]);
    gspi_free(context, tasks);
    return status;
}
