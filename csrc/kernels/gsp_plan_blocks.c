/* Lays blocks out as runs: `lanes` neighbouring columns of one row (WIDE), or rows of one column (TALL). */
#include <string.h>

#include "gsp_plan.h"
#include "../format/gsp_visit.h"

/* Runs that a block is cut into: along its columns, or one for each column. */
static uint64_t runs_per_block(const gsp_pattern *pattern, const gspi_entry *entry) {
    return entry->form == GSPI_WIDE ? (uint64_t)gspi_ceil_div(pattern->block_cols, entry->lanes)
                                    : pattern->block_cols;
}

uint64_t gspi_block_slots(const gsp_matrix *matrix, const gspi_entry *entry) {
    const gsp_pattern *pattern = &matrix->pattern;
    return matrix->units * runs_per_block(pattern, entry) *
           (uint64_t)gspi_parts(pattern, entry->form, entry->lanes) * (uint64_t)entry->lanes;
}

/* The runs of one block of `rows` x `cols` elements that are inside the matrix: tables[run], and the values of part p
 * at values + p * part. */
static void pack_block(const gsp_matrix *matrix, const gspi_entry *entry, uint64_t block,
                       int64_t rows, uint32_t *tables, float *values, int64_t part) {
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols,
                  lanes = entry->lanes;
    const bool wide = entry->form == GSPI_WIDE;
    const int64_t left = (int64_t)gspi_index(matrix->indices, block, matrix->index_bytes) * width;
    const int64_t cols = gspi_min(width, matrix->cols - left);
    for (int64_t c = 0, run = 0; c < cols; c += wide ? lanes : 1, run++) {
        /* A run that would reach past x begins earlier. */
        const int64_t from =
            wide ? gspi_max(0, gspi_min(left + c, matrix->cols - lanes)) : left + c;
        const int64_t count = wide ? gspi_min(lanes, cols - c) : 1, shift = left + c - from;
        tables[run] = (uint32_t)from;
        for (int64_t r = 0; r < rows; r++) {
            float *to =
                values + run * lanes + (wide ? r * part + shift : r / lanes * part + r % lanes);
            const uint64_t element = (block * (uint64_t)height + (uint64_t)r) * (uint64_t)width;
            for (int64_t i = 0; i < count; i++)
                to[i] = gspi_value(matrix, matrix->dtype, element + (uint64_t)(c + i));
        }
    }
}

gsp_status gspi_pack_blocks(gsp_plan *plan, const gsp_matrix *matrix) {
    const uint64_t runs = runs_per_block(&matrix->pattern, plan->entry),
                   slots = gspi_block_slots(matrix, plan->entry);
    plan->units = gsp_groups(&matrix->pattern, matrix->rows);
    plan->slots = slots;
    if (plan->entry->form == GSPI_WIDE) plan->x_size = gspi_max(matrix->cols, plan->entry->lanes);
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    plan->packed = gspi_plan_alloc(plan, slots, sizeof(float));
    plan->tables = gspi_plan_alloc(plan, matrix->units * runs, sizeof *plan->tables);
    GSP_CHECK(plan->start != NULL && plan->packed != NULL && plan->tables != NULL,
              GSP_ERROR_MEMORY);
    for (int64_t unit = 0; unit <= plan->units; unit++)
        plan->start[unit] = matrix->indptr[unit] * runs;
    /* Some lanes and runs of blocks at the edge stand for nothing. */
    memset(plan->packed, 0, slots * sizeof(float));
    memset(plan->tables, 0, matrix->units * runs * sizeof *plan->tables);
    const int64_t parts = gspi_parts(&matrix->pattern, plan->entry->form, plan->entry->lanes);
    for (int64_t unit = 0; unit < plan->units; unit++) {
        const uint64_t begin = plan->start[unit], count = plan->start[unit + 1] - begin;
        const int64_t height = matrix->pattern.block_rows,
                      rows = gspi_min(height, matrix->rows - unit * height);
        float *values = (float *)plan->packed + begin * (uint64_t)(parts * plan->entry->lanes);
        uint32_t *tables = plan->tables + begin;
        for (uint64_t block = matrix->indptr[unit]; block < matrix->indptr[unit + 1]; block++) {
            pack_block(matrix, plan->entry, block, rows, tables, values,
                       (int64_t)count * plan->entry->lanes);
            tables += runs;
            values += runs * (uint64_t)plan->entry->lanes;
        }
    }
    return GSP_OK;
}
