/* gsp_choose: from scores to masks.
 *
 * Every pattern is reduced to ladders (gsp_allot.c): a row whose bundles are all known at once,
 * a row of blocks (gsp_ladders.c), or a group that is evaluated on demand (gsp_survey.c). A
 * budget is spent on the ladders (gsp_budget.c), and the bundles that each got become a mask. */
#include <math.h>
#include <string.h>

#include "gsp_task.h"

/* ------------------------------------------------------------- checks */

static gsp_status check_choice(const gsp_choice *choice) {
    GSP_TRY(gspi_check_shape(choice->rows, choice->cols));
    GSP_TRY(gspi_check_pattern(&choice->pattern));
    GSP_CHECK(choice->min_per_group >= 0, GSP_ERROR_BUDGET);
    if (choice->pattern.kind == GSP_GS && choice->rows > 0 && choice->cols > 0)
        GSP_CHECK(choice->pattern.banks <= choice->cols, GSP_ERROR_PATTERN);
    return GSP_OK;
}

/* Whether the masks of a choice depend on where an irregular mask would end: as a first guess, or
 * because that is what they are. */
static bool needs_threshold(const gsp_choice *choice, size_t count) {
    return (choice->pattern.kind == GSP_GS && choice->pattern.per_row < choice->pattern.banks) ||
           gspi_is_alone(choice, count, GSP_IRREGULAR);
}

/* What the pattern can keep; GSP_ERROR_BUDGET if a group cannot hold min_per_group. */
static gsp_status set_limits(gsp_choice *choice) {
    const gsp_pattern *pattern = &choice->pattern;
    choice->least = 0;
    choice->most = choice->rows * choice->cols;
    if (pattern->kind != GSP_GS) return GSP_OK;
    choice->most = 0;
    const int64_t group_rows = gsp_group_rows(pattern), rest = choice->rows % group_rows;
    const struct {
        int64_t groups, rows;
    } kinds[] = {{choice->rows / group_rows, group_rows}, {rest > 0, rest}}; /* full, short */
    for (int i = 0; i < 2; i++) {
        if (kinds[i].groups == 0) continue;
        const int64_t size = kinds[i].groups * kinds[i].rows * pattern->per_row;
        int64_t most =
            choice->cols == 0 ? 0 : gsp_max_bundles(pattern, choice->cols, kinds[i].rows);
        if (choice->max_per_group >= 0) most = gspi_min(most, choice->max_per_group);
        GSP_CHECK(choice->min_per_group <= most, GSP_ERROR_BUDGET);
        choice->least += size * choice->min_per_group;
        choice->most += size * most;
    }
    return GSP_OK;
}

static gsp_status tally_row(void *argument, int64_t row, int worker) {
    (void)worker;
    gspi_task *work = argument;
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

/* ------------------------------------------------------------------- results */

/* What price_row works on. */
typedef struct {
    const gspi_task *work;
    gsp_prices *prices;
    double lambda;
} pricing;

/* Prices of rows with per_row = banks: of each bank, between its last score kept and the next,
 * so that they sum to lambda wherever the row may have more and fewer bundles. One entry proves
 * a row for all n. */
static gsp_status price_row(void *argument, int64_t entry, int worker) {
    const pricing *job = argument;
    const gspi_task *work = job->work;
    gsp_prices *prices = job->prices;
    const double lambda = job->lambda;
    const gspi_grid *grid = &work->grid;
    const int64_t banks = grid->banks;
    /* Entries are by grouped position; ladders by row. */
    const int64_t row =
        work->choice->row_order == NULL ? entry : (int64_t)work->choice->row_order[entry];
    const gspi_ladder *ladder = &work->ladders[row];
    float *sorted = work->sorted + (size_t)worker * (size_t)(grid->depth * banks);
    double *bank_price = prices->bank + entry * banks;
    gspi_sort_row(grid, row, sorted);

    const int64_t n = ladder->bundles;
    const double down = n > 0 ? ladder->gain[n - 1] : INFINITY,
                 up = n < ladder->high ? ladder->gain[n] : -INFINITY;
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

static gsp_status make_prices(gsp_context *context, gspi_task *work, gsp_prices **made) {
    const size_t count =
        work->survey != NULL ? gspi_survey_entries(work->survey) : (size_t)work->count;
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
    if (!prices->group || !prices->bundles || !prices->row || !prices->bank || !prices->value ||
        !prices->bound) {
        gsp_prices_destroy(context, prices);
        return GSP_ERROR_MEMORY;
    }
    if (work->survey != NULL) {
        gspi_survey_prices(work->survey, prices);
    } else {
        const double next = gspi_next_gain(work->ladders, work->count);
        const double last = gspi_last_gain(work->ladders, work->count);
        pricing job = {work, prices, next > -INFINITY ? next : last < INFINITY ? last : 0};
        (void)gspi_parallel_on(work->context, work->workers, work->count, price_row, &job);
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
static gsp_status finish(gsp_context *context, gspi_task *work) {
    gsp_choice *choice = work->choice;
    const gsp_kind kind = choice->pattern.kind;
    if (gspi_is_empty(choice)) {
        for (int64_t row = 0; choice->scatter && row < choice->rows; row++)
            choice->row_order[row] = (uint32_t)row;
        for (int64_t group = 0;
             choice->bundles && group < gsp_groups(&choice->pattern, choice->rows); group++)
            choice->bundles[group] = 0;
        choice->score = 0;
        choice->kept = 0;
        return GSP_OK;
    }
    GSP_TRY(gspi_mark(work));

    if (kind == GSP_GS) {
        if (choice->scatter && gspi_is_flow(work)) {
            memcpy(choice->row_order, work->row_order,
                   (size_t)choice->rows * sizeof *choice->row_order);
        } else if (choice->scatter) {
            /* A row is a group: the order only puts equal counts together. */
            int64_t *bundles = work->above;
            for (int64_t row = 0; row < choice->rows; row++)
                bundles[row] = work->ladders[row].bundles;
            GSP_TRY(gspi_sort_rows(context, bundles, choice->rows, false, choice->row_order));
        }
        for (int64_t group = 0; choice->bundles != NULL && group < work->count; group++) {
            const bool moved = !gspi_is_flow(work) && choice->row_order != NULL;
            choice->bundles[group] =
                (uint32_t)work->ladders[moved ? (int64_t)choice->row_order[group] : group].bundles;
        }
    }
    GSP_TRY(gspi_parallel_on(work->context, work->workers, choice->rows, tally_row, work));
    choice->score = 0;
    choice->kept = 0;
    for (int64_t row = 0; row < choice->rows; row++) {
        choice->score += work->row_score[row];
        choice->kept += work->row_kept[row];
    }
    return GSP_OK;
}

static gsp_status open_task(gsp_context *context, gspi_task *work, gsp_choice *choice,
                            int64_t index) {
    work->choice = choice;
    work->index = index;
    work->context = context;
    work->workers = gspi_workers(context, choice->rows);
    gsp_choice cells = *choice; /* irregular is one bank with one score a bundle */
    if (choice->pattern.kind != GSP_GS)
        cells.pattern = (gsp_pattern){.kind = GSP_GS, .banks = 1, .per_row = 1};
    work->bank_begin =
        gspi_alloc(context, (size_t)cells.pattern.banks + 1, sizeof *work->bank_begin);
    GSP_CHECK(work->bank_begin != NULL, GSP_ERROR_MEMORY);
    gspi_grid_init(&work->grid, &cells, NULL, work->bank_begin);
    const size_t rows = (size_t)choice->rows, workers = (size_t)work->workers;
    const size_t banks = (size_t)work->grid.banks;
    work->above = gspi_calloc(context, rows, sizeof *work->above);
    work->equal = gspi_calloc(context, rows, sizeof *work->equal);
    work->row_score = gspi_alloc(context, rows, sizeof *work->row_score);
    work->row_kept = gspi_alloc(context, rows, sizeof *work->row_kept);
    GSP_CHECK(work->above && work->equal && work->row_score && work->row_kept, GSP_ERROR_MEMORY);
    if (gspi_is_flow(work) || choice->pattern.kind == GSP_NM) return GSP_OK;
    work->sorted =
        gspi_alloc(context, workers * (size_t)work->grid.depth * banks, sizeof *work->sorted);
    work->counts = gspi_alloc(context, workers * 2 * banks, sizeof *work->counts);
    return work->sorted && work->counts ? GSP_OK : GSP_ERROR_MEMORY;
}

static void close_task(gsp_context *context, gspi_task *work) {
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
static gsp_status solve(gsp_context *context, gspi_task *tasks, size_t count, int64_t keep,
                        float threshold, gsp_method method, double *bound) {
    for (size_t i = 0; i < count; i++) {
        gspi_task *work = &tasks[i];
        gsp_choice *choice = work->choice;
        work->threshold = threshold;
        if (needs_threshold(choice, count)) GSP_TRY(gspi_count_above(work));
        work->share = keep;
        if (count > 1) {
            work->share = 0;
            for (int64_t row = 0; row < choice->rows; row++) work->share += work->above[row];
            work->share = gspi_max(choice->least, gspi_min(choice->most, work->share));
        }
        if (gspi_is_empty(choice)) continue;
        if (gspi_is_alone(choice, count, GSP_IRREGULAR)) {
            work->alone = true;
            gspi_share_equal(work, keep);
            return GSP_OK;
        }
        if (gspi_is_flow(work)) GSP_TRY(gspi_survey_task(context, work, method));
        else GSP_TRY(gspi_build_ladders(context, work));
    }
    if (count == 1 && gspi_is_empty(tasks[0].choice)) return GSP_OK;
    if (gspi_is_alone(tasks[0].choice, count, GSP_GS)) {
        /* A survey is solved with its row order. */
        *bound = INFINITY;
        return tasks[0].survey != NULL ? GSP_OK : gspi_solve_one(&tasks[0], keep);
    }
    return gspi_solve_many(context, tasks, count, keep, bound);
}

gsp_status gsp_choose(gsp_context *context, gsp_choice *choices, size_t count, int64_t keep,
                      gsp_method method, gsp_prices **prices, double *bound) {
    GSP_CHECK(count >= 1 && keep >= 0, GSP_ERROR_BUDGET);
    double ignored;
    if (bound == NULL) bound = &ignored;
    *bound = 0;
    if (prices != NULL) *prices = NULL;
    if (count > 1) method = GSP_EXACT;
    int64_t least = 0, most = 0;
    for (size_t i = 0; i < count; i++) choices[i].fault = -1;
    for (size_t i = 0; i < count; i++) {
        GSP_TRY(check_choice(&choices[i]));
        GSP_CHECK(choices[i].pattern.kind != GSP_NM || count == 1, GSP_ERROR_PATTERN);
        if (!choices[i].scatter)
            GSP_TRY(gspi_check_row_order(context, choices[i].row_order, choices[i].rows));
        GSP_TRY(set_limits(&choices[i]));
        least += choices[i].least;
        most += choices[i].most;
    }
    const bool one_gs = gspi_is_alone(choices, count, GSP_GS);
    GSP_CHECK(keep >= least &&
                  keep < most + (one_gs ? (int64_t)choices[0].pattern.banks : INT64_MAX - most),
              GSP_ERROR_BUDGET);

    gspi_task *tasks = gspi_calloc(context, count, sizeof *tasks);
    GSP_CHECK(tasks != NULL, GSP_ERROR_MEMORY);
    bool look = false;
    for (size_t i = 0; i < count; i++) look |= needs_threshold(&choices[i], count);
    float threshold; /* without a use for it, the scores are only checked */
    gsp_status status = gspi_find_threshold(context, choices, count, look ? keep : 0, &threshold);
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
