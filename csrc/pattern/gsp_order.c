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
#include <stdlib.h>
#include <string.h>

#include "gsp_task.h"

#define GSPI_PASSES 4
#define GSPI_PARTNERS 16 /* rows of the next group that a row may change places with */

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

gsp_status gspi_order_rows(gsp_context *context, const gspi_task *work, gspi_order order,
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
