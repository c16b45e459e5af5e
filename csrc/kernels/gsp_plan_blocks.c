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

typedef struct {
    const gsp_matrix *matrix;
    gsp_plan *plan;
} packing;

static void put_in_run(void *argument, int64_t row, int64_t col, uint64_t element) {
    const packing *p = argument;
    const gsp_pattern *pattern = &p->matrix->pattern;
    const gspi_entry *entry = p->plan->entry;
    const int64_t height = pattern->block_rows, width = pattern->block_cols, lanes = entry->lanes;
    const int64_t unit = row / height, begin = (int64_t)p->plan->start[unit];
    const int64_t count = (int64_t)p->plan->start[unit + 1] - begin;
    const int64_t block = (int64_t)(element / (uint64_t)(height * width)) - p->matrix->indptr[unit];
    const int64_t in_row = row % height, in_block = col % width;
    const bool wide = entry->form == GSPI_WIDE;
    const int64_t run =
        block * (int64_t)runs_per_block(pattern, entry) + (wide ? in_block / lanes : in_block);
    const int64_t part = wide ? in_row : in_row / lanes;
    /* A run that would reach past x begins earlier. */
    const int64_t from =
        wide ? gspi_max(0, gspi_min(col - in_block % lanes, p->matrix->cols - lanes)) : col;
    const int64_t lane = wide ? col - from : in_row % lanes;
    p->plan->tables[begin + run] = (uint32_t)from;
    float *values = (float *)p->plan->packed;
    values[((begin * gspi_parts(pattern, entry->form, entry->lanes)) + part * count + run) * lanes +
           lane] = gspi_value(p->matrix, p->matrix->dtype, element);
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
    packing p = {matrix, plan};
    gspi_visit(matrix, 0, plan->units, put_in_run, &p);
    return GSP_OK;
}
