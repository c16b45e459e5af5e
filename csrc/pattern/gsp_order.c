/* Row orders for patterns with scatter: which rows share a group.
 *
 * By count: rows with about as many large scores stand together, so that equal counts cost
 * least. This is the order of the paper's authors (a stable sort, ascending). By banks: from
 * there, rows of neighbouring groups are exchanged while that evens out the large scores per
 * bank, weighed against those per row. To add or drop d scores in a row or a bank of a group
 * costs about d^2 over the number of scores there, and a bank of a group has as many as a row,
 * over per_row. With c the counts per row and C those per bank, and S their sum, a group of R
 * rows then costs, up to a factor,
 *     R * sum(c^2) + banks * sum(C^2) - 2 * S^2. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gsp_task.h"

#define GSPI_PASSES 4
#define GSPI_PARTNERS 16 /* rows of the next group that a row may change places with */

/* Orders worth trying; the best by score is kept, so none can make a mask worse. */
typedef enum {
    GSPI_ORDER_NATURAL,
    GSPI_ORDER_BY_COUNT,           /* of the scores above the threshold */
    GSPI_ORDER_BY_INCLUSIVE_COUNT, /* of those not below it */
    GSPI_ORDER_DESCENDING,         /* the same, so that a short last group has the fewest */
    GSPI_ORDER_BY_BANKS,
    GSPI_ORDERS
} gspi_order;

typedef struct {
    int64_t key;
    uint32_t row;
} keyed;

static int by_key(const void *a, const void *b) {
    const keyed *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->row < y->row ? -1 : x->row > y->row;
}

gsp_status gspi_sort_rows(gsp_context *context, const int64_t *key, int64_t rows, bool ascending,
                          uint32_t *row_order) {
    keyed *sorted = gspi_alloc(context, (size_t)rows, sizeof *sorted);
    GSP_CHECK(sorted != NULL, GSP_ERROR_MEMORY);
    for (int64_t row = 0; row < rows; row++)
        sorted[row] = (keyed){ascending ? key[row] : -key[row], (uint32_t)row};
    qsort(sorted, (size_t)rows, sizeof *sorted, by_key);
    for (int64_t p = 0; p < rows; p++) row_order[p] = sorted[p].row;
    gspi_free(context, sorted);
    return GSP_OK;
}

/* count[row * banks + bank]: scores not below the threshold. */
static void count_banks(const gspi_grid *grid, float threshold, int32_t *count) {
    memset(count, 0, (size_t)(grid->rows * grid->banks) * sizeof *count);
    for (int64_t row = 0; row < grid->rows; row++) {
        const float *scores = grid->scores + row * grid->cols;
        int32_t *of_row = count + row * grid->banks;
        if (grid->pattern.layout == GSP_INTERLEAVED) {
            for (int64_t begin = 0; begin < grid->cols; begin += grid->banks)
                for (int64_t bank = 0; bank < gspi_min(grid->banks, grid->cols - begin); bank++)
                    of_row[bank] += scores[begin + bank] >= threshold;
        } else {
            for (int64_t bank = 0; bank < grid->banks; bank++)
                for (int64_t col = grid->bank_begin[bank]; col < grid->bank_begin[bank + 1]; col++)
                    of_row[bank] += scores[col] >= threshold;
        }
    }
}

/* What the cost above rises by if row a of group `g` and row b of group `h` change places. */
static int64_t swap_cost(int64_t banks, const int32_t *a, const int32_t *b, const int64_t *in_g,
                         const int64_t *in_h) {
    int64_t shift = 0, squares = 0, across = 0, gap = 0;
    for (int64_t bank = 0; bank < banks; bank++) {
        const int64_t d = b[bank] - a[bank], apart = in_g[bank] - in_h[bank];
        shift += d;
        squares += d * d;
        across += d * apart;
        gap += apart;
    }
    return 2 * banks * (across + squares) - 4 * (shift * gap + shift * shift);
}

static void exchange_rows(const gspi_grid *grid, const int32_t *count, int64_t *totals,
                          uint32_t *row_order) {
    const int64_t banks = grid->banks, size = grid->group_rows;
    const int64_t groups = grid->rows / size; /* a short last group keeps its rows */
    for (int64_t g = 0; g < groups; g++)
        for (int64_t place = 0; place < size; place++)
            for (int64_t bank = 0; bank < banks; bank++)
                totals[g * banks + bank] += count[row_order[g * size + place] * banks + bank];
    for (int pass = 0; pass < GSPI_PASSES; pass++) {
        for (int64_t g = 0; g + 1 < groups; g++) {
            int64_t *in_g = totals + g * banks, *in_h = in_g + banks;
            for (int64_t place = 0; place < size; place++) {
                uint32_t *mine = &row_order[g * size + place];
                const int32_t *a = count + (int64_t)*mine * banks;
                int64_t least = 0, partner = -1;
                for (int64_t i = 0; i < gspi_min(GSPI_PARTNERS, size); i++) {
                    const int64_t p = (g + 1) * size + (place + i) % size;
                    const int64_t cost =
                        swap_cost(banks, a, count + row_order[p] * banks, in_g, in_h);
                    if (cost < least) least = cost, partner = p;
                }
                if (partner < 0) continue;
                const uint32_t other = row_order[partner];
                const int32_t *b = count + (int64_t)other * banks;
                for (int64_t bank = 0; bank < banks; bank++) {
                    in_g[bank] += b[bank] - a[bank];
                    in_h[bank] += a[bank] - b[bank];
                }
                row_order[partner] = *mine;
                *mine = other;
            }
        }
    }
}

/* Fills row_order with the rows of a task in one of the orders; by banks starts from ascending or
 * descending counts. */
static gsp_status order_rows(gsp_context *context, const gspi_task *work, gspi_order order,
                             bool ascending, uint32_t *row_order) {
    const gspi_grid *grid = &work->grid;
    if (order == GSPI_ORDER_NATURAL) {
        for (int64_t p = 0; p < grid->rows; p++) row_order[p] = (uint32_t)p;
        return GSP_OK;
    }
    const bool inclusive = order != GSPI_ORDER_BY_COUNT, by_banks = order == GSPI_ORDER_BY_BANKS;
    const size_t cells = by_banks ? (size_t)(grid->rows * grid->banks) : 0;
    const size_t sums = by_banks ? (size_t)(grid->groups * grid->banks) : 0;
    int64_t *key = gspi_alloc(context, (size_t)grid->rows, sizeof *key);
    int32_t *count = gspi_alloc(context, cells, sizeof *count);
    int64_t *totals = gspi_calloc(context, sums, sizeof *totals);
    gsp_status status = key && count && totals ? GSP_OK : GSP_ERROR_MEMORY;
    if (status == GSP_OK) {
        for (int64_t row = 0; row < grid->rows; row++)
            key[row] = work->above[row] + (inclusive ? work->equal[row] : 0);
        status = gspi_sort_rows(context, key, grid->rows, ascending, row_order);
    }
    if (status == GSP_OK && by_banks) {
        count_banks(grid, work->threshold, count);
        exchange_rows(grid, count, totals, row_order);
    }
    gspi_free(context, key);
    gspi_free(context, count);
    gspi_free(context, totals);
    return status;
}

/* Sets the bundles that the first look at each group starts from: by its scores above the
 * threshold and its part of those equal to it. */
static void guess_bundles(const gspi_task *work, const gspi_grid *grid, gspi_ladder *ladders) {
    int64_t above = 0, equal = 0;
    for (int64_t row = 0; row < grid->rows; row++) {
        above += work->above[row];
        equal += work->equal[row];
    }
    const double part =
        equal == 0 ? 0 : fmax(0, fmin(1, (double)(work->share - above) / (double)equal));
    for (int64_t group = 0; group < grid->groups; group++) {
        double scores = 0;
        for (int64_t place = 0; place < gspi_rows_of_group(grid, group); place++) {
            const int64_t row = gspi_row(grid, group, place);
            scores += (double)work->above[row] + part * (double)work->equal[row];
        }
        ladders[group].bundles = (int64_t)(scores / (double)ladders[group].size + 0.5);
    }
}

static double total_value(const gspi_task *work) {
    double value = 0;
    for (int64_t i = 0; i < work->count; i++)
        value += gspi_ladder_value(&work->ladders[i], work->ladders[i].bundles);
    return value;
}

/* A survey of the matrix in one row order, solved for its share of the budget, and its score. */
static gsp_status survey_order(gsp_context *context, gspi_task *work, const uint32_t *row_order,
                               gsp_method method, gspi_survey **made, double *value) {
    gspi_grid grid = work->grid;
    grid.row_order = row_order;
    gspi_survey *survey;
    GSP_TRY(gspi_survey_create(context, &grid, work->index, work->choice->min_per_group,
                               work->choice->max_per_group, &survey));
    gspi_ladder *ladders = gspi_survey_ladders(survey);
    gsp_status status;
    if (method == GSP_GREEDY) {
        status = gspi_share_out(context, &grid, ladders, work->above, work->share);
        if (status == GSP_OK) status = gspi_survey_greedy(survey, value);
    } else {
        guess_bundles(work, &grid, ladders);
        status = gspi_survey_begin(survey);
        if (status == GSP_OK) {
            gspi_task one = *work;
            one.survey = survey;
            one.ladders = ladders;
            one.count = grid.groups;
            status = gspi_solve_one(&one, work->share);
            *value = total_value(&one);
        }
    }
    if (status == GSP_OK) *made = survey;
    else gspi_survey_destroy(survey);
    return status;
}

/* Gives the task its survey, and its row order if that is ours to choose. */
gsp_status gspi_survey_task(gsp_context *context, gspi_task *work, gsp_method method) {
    double best;
    if (!work->choice->scatter) {
        GSP_TRY(survey_order(context, work, work->choice->row_order, method, &work->survey, &best));
        work->row_order = work->choice->row_order;
    } else {
        uint32_t *tried = gspi_alloc(context, (size_t)work->choice->rows, sizeof *tried);
        gsp_status status = tried != NULL ? GSP_OK : GSP_ERROR_MEMORY;
        bool ascending = true;
        for (gspi_order order = 0; order < GSPI_ORDERS && status == GSP_OK; order++) {
            const bool descending = order == GSPI_ORDER_DESCENDING;
            if (descending && work->grid.rows % work->grid.group_rows == 0) continue;
            double value = 0;
            gspi_survey *survey = NULL;
            status = order_rows(context, work, order, ascending && !descending, tried);
            if (status == GSP_OK)
                status = survey_order(context, work, tried, method, &survey, &value);
            if (status != GSP_OK) break;
            if (work->survey == NULL || value > best) {
                best = value;
                ascending = !descending;
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
