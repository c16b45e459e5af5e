/* Is a mask valid (two histograms per group), and the least valid mask that contains another. */
#include <string.h>

#include "gsp_choose.h"

/* Where violations go: all are counted, the first `capacity` kept. */
typedef struct {
    gsp_violation *list;
    size_t capacity, count;
} report;

static void add(report *out, int64_t group, int64_t row, int64_t bank, int64_t count,
                int64_t expected) {
    if (out->count < out->capacity)
        out->list[out->count] = (gsp_violation){group, row, bank, count, expected};
    out->count++;
}

static gsp_status check_gs(gsp_context *context, const uint8_t *mask, int64_t rows, int64_t cols,
                           const gsp_pattern *pattern, const uint32_t *row_order, report *out) {
    const int64_t banks = pattern->banks, group_rows = gsp_group_rows(pattern);
    const int64_t most_rows = gspi_min(group_rows, rows);
    int64_t *in_row = gspi_alloc(context, (size_t)most_rows, sizeof *in_row);
    int64_t *in_bank = gspi_alloc(context, (size_t)banks, sizeof *in_bank);
    int64_t *bank_begin = gspi_alloc(context, (size_t)banks + 1, sizeof *bank_begin);
    if (in_row == NULL || in_bank == NULL || bank_begin == NULL) {
        gspi_free(context, in_row);
        gspi_free(context, in_bank);
        gspi_free(context, bank_begin);
        return GSP_ERROR_MEMORY;
    }
    for (int64_t bank = 0; bank <= banks; bank++)
        bank_begin[bank] = gsp_bank_begin(bank, cols, banks);

    for (int64_t first = 0, group = 0; first < rows; first += group_rows, group++) {
        const int64_t in_group = gspi_min(group_rows, rows - first);
        int64_t total = 0;
        memset(in_bank, 0, (size_t)banks * sizeof *in_bank);
        for (int64_t place = 0; place < in_group; place++) {
            const int64_t row =
                row_order == NULL ? first + place : (int64_t)row_order[first + place];
            const uint8_t *kept = mask + row * cols;
            in_row[place] = 0;
            for (int64_t col = 0; col < cols; col++) in_row[place] += kept[col] != 0;
            total += in_row[place];
            if (pattern->layout == GSP_INTERLEAVED) {
                for (int64_t begin = 0; begin < cols; begin += banks)
                    for (int64_t bank = 0; bank < gspi_min(banks, cols - begin); bank++)
                        in_bank[bank] += kept[begin + bank] != 0;
            } else {
                for (int64_t bank = 0; bank < banks; bank++)
                    for (int64_t col = bank_begin[bank]; col < bank_begin[bank + 1]; col++)
                        in_bank[bank] += kept[col] != 0;
            }
        }
        const int64_t size = in_group * pattern->per_row;
        const int64_t bundles = (2 * total + size) / (2 * size);
        for (int64_t place = 0; place < in_group; place++) {
            const int64_t row =
                row_order == NULL ? first + place : (int64_t)row_order[first + place];
            const int64_t expected = bundles * pattern->per_row;
            if (in_row[place] != expected) add(out, group, row, -1, in_row[place], expected);
        }
        for (int64_t bank = 0; bank < banks; bank++)
            if (in_group == group_rows ? in_bank[bank] != bundles : in_bank[bank] > bundles)
                add(out, group, -1, bank, in_bank[bank], bundles);
    }
    gspi_free(context, in_row);
    gspi_free(context, in_bank);
    gspi_free(context, bank_begin);
    return GSP_OK;
}

static int64_t count_box(const uint8_t *mask, int64_t cols, int64_t row, int64_t row_end,
                         int64_t col, int64_t col_end) {
    int64_t count = 0;
    for (int64_t r = row; r < row_end; r++)
        for (int64_t c = col; c < col_end; c++) count += mask[r * cols + c] != 0;
    return count;
}

gsp_status gsp_check(gsp_context *context, const uint8_t *mask, int64_t rows, int64_t cols,
                     const gsp_pattern *pattern, const uint32_t *row_order,
                     gsp_violation *violations, size_t capacity, size_t *count) {
    report out = {.list = violations, .capacity = capacity};
    GSP_TRY(gspi_check_shape(rows, cols));
    GSP_TRY(gspi_check_pattern(pattern));
    GSP_TRY(gspi_check_row_order(context, row_order, rows));
    if (pattern->kind == GSP_GS && cols > 0) {
        GSP_TRY(check_gs(context, mask, rows, cols, pattern, row_order, &out));
    } else if (pattern->kind == GSP_BLOCK) {
        const int64_t height = pattern->block_rows, width = pattern->block_cols;
        for (int64_t row = 0; row < rows; row += height)
            for (int64_t col = 0; col < cols; col += width) {
                const int64_t row_end = gspi_min(row + height, rows),
                              col_end = gspi_min(col + width, cols);
                const int64_t kept = count_box(mask, cols, row, row_end, col, col_end);
                const int64_t whole = (row_end - row) * (col_end - col);
                if (kept != 0 && kept != whole)
                    add(&out, row / height, -1, col / width, kept, whole);
            }
    } else if (pattern->kind == GSP_NM) {
        for (int64_t row = 0; row < rows; row++)
            for (int64_t col = 0; col < cols; col += pattern->nm_m) {
                const int64_t col_end = gspi_min(col + pattern->nm_m, cols);
                const int64_t kept = count_box(mask, cols, row, row + 1, col, col_end);
                if (kept > pattern->nm_n)
                    add(&out, row, -1, col / pattern->nm_m, kept, pattern->nm_n);
            }
    }
    *count = out.count;
    return GSP_OK;
}

/* ---------------------------------------------------------------- completing */

typedef struct {
    gspi_grid grid; /* its scores are the mask in float: 1 where an element must be kept */
    gspi_flow **flows;
    uint8_t *mask;
} completion;

static gsp_status complete_group(void *argument, int64_t group, int worker) {
    completion *work = argument;
    const gspi_grid *grid = &work->grid;
    gspi_flow *flow = work->flows[worker];
    const int64_t rows = gspi_rows_of_group(grid, group);
    const int64_t most = gsp_max_bundles(&grid->pattern, grid->cols, rows);
    int64_t total = 0, least = 0;
    for (int64_t place = 0; place < rows; place++) {
        const float *must = grid->scores + gspi_row(grid, group, place) * grid->cols;
        int64_t in_row = 0;
        for (int64_t col = 0; col < grid->cols; col++) in_row += must[col] > 0;
        total += in_row;
        least = gspi_max(least, gspi_ceil_div(in_row, grid->per_row));
    }
    gspi_flow_load(flow, group, NULL);
    for (int64_t bundles = least; bundles <= most; bundles++) {
        gspi_flow_solve(flow, bundles);
        if (gspi_flow_value(flow) < (double)total) continue;
        gspi_flow_mark(flow, work->mask);
        return GSP_OK;
    }
    return GSP_ERROR_MASK;
}

static gsp_status complete_gs(gsp_context *context, uint8_t *mask, int64_t rows, int64_t cols,
                              const gsp_pattern *pattern, const uint32_t *row_order,
                              int64_t *fault) {
    const size_t size = (size_t)(rows * cols);
    const int64_t groups = gsp_groups(pattern, rows);
    const int workers = gspi_workers(context, groups);
    completion work = {.mask = mask};
    float *must = gspi_alloc(context, size, sizeof *must);
    uint8_t *before = gspi_alloc(context, size, 1);
    int64_t *bank_begin = gspi_alloc(context, (size_t)pattern->banks + 1, sizeof *bank_begin);
    work.flows = gspi_calloc(context, (size_t)workers, sizeof *work.flows);
    gsp_status status = must && before && bank_begin && work.flows ? GSP_OK : GSP_ERROR_MEMORY;
    if (status == GSP_OK) {
        for (size_t i = 0; i < size; i++) must[i] = mask[i] != 0;
        memcpy(before, mask, size);
        const gsp_choice choice = {.scores = must, .rows = rows, .cols = cols, .pattern = *pattern};
        gspi_grid_init(&work.grid, &choice, row_order, bank_begin);
        for (int worker = 0; worker < workers && status == GSP_OK; worker++) {
            work.flows[worker] = gspi_flow_create(context, &work.grid);
            if (work.flows[worker] == NULL) status = GSP_ERROR_MEMORY;
        }
    }
    if (status == GSP_OK)
        status = gspi_parallel_on(context, workers, groups, complete_group, &work);
    if (status == GSP_ERROR_MASK) {
        /* Name the first group that failed, and leave the mask as it was. */
        for (*fault = 0; complete_group(&work, *fault, 0) == GSP_OK;) ++*fault;
        memcpy(mask, before, size);
    }
    for (int worker = 0; work.flows != NULL && worker < workers; worker++)
        gspi_flow_destroy(context, work.flows[worker]);
    gspi_free(context, work.flows);
    gspi_free(context, must);
    gspi_free(context, before);
    gspi_free(context, bank_begin);
    return status;
}

gsp_status gsp_complete(gsp_context *context, uint8_t *mask, int64_t rows, int64_t cols,
                        const gsp_pattern *pattern, const uint32_t *row_order, int64_t *group) {
    GSP_TRY(gspi_check_shape(rows, cols));
    GSP_TRY(gspi_check_pattern(pattern));
    GSP_TRY(gspi_check_row_order(context, row_order, rows));
    *group = -1;
    if (rows == 0 || cols == 0) return GSP_OK;
    if (pattern->kind == GSP_GS) {
        GSP_CHECK(pattern->banks <= cols, GSP_ERROR_PATTERN);
        return complete_gs(context, mask, rows, cols, pattern, row_order, group);
    }
    if (pattern->kind == GSP_BLOCK) {
        for (int64_t row = 0; row < rows; row += pattern->block_rows)
            for (int64_t col = 0; col < cols; col += pattern->block_cols) {
                const int64_t row_end = gspi_min(row + pattern->block_rows, rows);
                const int64_t col_end = gspi_min(col + pattern->block_cols, cols);
                const bool kept = count_box(mask, cols, row, row_end, col, col_end) > 0;
                for (int64_t r = row; r < row_end; r++)
                    memset(mask + r * cols + col, kept, (size_t)(col_end - col));
            }
        return GSP_OK;
    }
    for (size_t i = 0; i < (size_t)(rows * cols); i++) mask[i] = mask[i] != 0;
    if (pattern->kind == GSP_NM) {
        for (int64_t row = 0; row < rows; row++)
            for (int64_t col = 0; col < cols; col += pattern->nm_m) {
                const int64_t col_end = gspi_min(col + pattern->nm_m, cols);
                if (count_box(mask, cols, row, row + 1, col, col_end) <= pattern->nm_n) continue;
                *group = row;
                return GSP_ERROR_MASK;
            }
    }
    return GSP_OK;
}
