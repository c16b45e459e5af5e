/* Packs a matrix for SpMM: rows in units, columns in blocks, four rows to a strip.
 *
 * A kernel keeps a block of x in the first cache and the sums of a unit in the second, and goes through the strips of
 * (unit, block) after (unit, block). A strip takes as many steps as its fullest row has elements in the block, so rows
 * are grouped by that number, separately in every block: little is padded whatever the mask, and the loop over the
 * steps is nearly always as long as the last time, which branch prediction needs.
 *
 * Rows of one block of a block pattern have the same columns: there a strip is four rows of a block, and a step one
 * column that they share. */
#include <string.h>

#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

/* Sizes while a plan is packed. counts, cursors [rows][blocks]. */
typedef struct {
    const gsp_matrix *matrix;
    gsp_plan *plan;
    bool shared;
    int64_t blocks;
    uint32_t block_cols;
    uint16_t *counts;
    uint64_t *cursors; /* byte where the next element's step is; its lane in the two lowest bits */
} packing;

static void count_element(void *argument, int64_t row, int64_t col, uint64_t element) {
    (void)element;
    const packing *p = argument;
    p->counts[row * p->blocks + (uint32_t)col / p->block_cols]++;
}

static void put_element(void *argument, int64_t row, int64_t col, uint64_t element) {
    const packing *p = argument;
    const uint32_t block = (uint32_t)col / p->block_cols;
    uint64_t *cursor = &p->cursors[row * p->blocks + block];
    gspi_step *step = (gspi_step *)(p->plan->packed + (*cursor & ~(uint64_t)3));
    const int lane = (int)(*cursor & 3);
    step->values[lane] = gspi_value(p->matrix, p->matrix->dtype, element);
    step->at[lane] = (uint16_t)(((uint32_t)col - block * p->block_cols) * p->plan->x_stride);
    *cursor += sizeof(gspi_step);
}

/* Cuts the rows [first, last) of a unit into items: rows, or up to four rows of one block of the pattern. Item i
 * begins at row begin[i]; begin[items] = last. */
static int cut_unit(const packing *p, int64_t first, int64_t last, int64_t *begin) {
    const int64_t height = p->shared ? p->matrix->pattern.block_rows : 1;
    int items = 0;
    for (int64_t row = first; row < last;) {
        begin[items++] = row;
        const int64_t end_of_block = (row / height + 1) * height;
        row = p->shared ? gspi_min(gspi_min(row + 4, end_of_block), last) : row + 1;
    }
    begin[items] = last;
    return items;
}

/* Items by their number of elements in a block, most first; equal ones stay in order. */
static void sort_items(const packing *p, int64_t block, const int64_t *begin, int items,
                       uint8_t *order) {
    uint16_t next[GSPI_MOST_BLOCK_COLS + 2] = {0};
    uint16_t most = 0;
    for (int i = 0; i < items; i++) {
        const uint16_t count = p->counts[begin[i] * p->blocks + block];
        most = count > most ? count : most;
    }
    for (int i = 0; i < items; i++) next[most - p->counts[begin[i] * p->blocks + block] + 1]++;
    for (int i = 0; i < most; i++) next[i + 1] = (uint16_t)(next[i + 1] + next[i]);
    for (int i = 0; i < items; i++)
        order[next[most - p->counts[begin[i] * p->blocks + block]]++] = (uint8_t)i;
}

/* Lays the strips of one (unit, block) out from byte `at` on, and returns the byte behind them; writes headers and
 * cursors once there is memory. */
static uint64_t place_strips(const packing *p, int64_t unit, int64_t block, uint64_t at) {
    gsp_plan *plan = p->plan;
    const int64_t first = unit * GSPI_UNIT_ROWS,
                  last = gspi_min(first + GSPI_UNIT_ROWS, p->matrix->rows);
    int64_t begin[GSPI_UNIT_ROWS + 1];
    uint8_t order[GSPI_UNIT_ROWS];
    const int items = cut_unit(p, first, last, begin);
    sort_items(p, block, begin, items, order);
    for (int i = 0; i < items; i += p->shared ? 1 : 4) {
        const uint16_t steps = p->counts[begin[order[i]] * p->blocks + block];
        if (steps == 0 && block > 0) break; /* the first block begins the sums of all rows */
        const uint64_t from = at + sizeof(gspi_strip);
        gspi_strip *strip = plan->packed == NULL ? NULL : (gspi_strip *)(plan->packed + at);
        if (strip != NULL) strip->steps = steps;
        for (int lane = 0; lane < 4; lane++) {
            int64_t row = last;
            if (p->shared)
                row = begin[order[i]] + lane < begin[order[i] + 1] ? begin[order[i]] + lane : last;
            else if (i + lane < items) row = begin[order[i + lane]];
            /* Lanes without a row add zeros to the row behind the unit. */
            const int64_t place = row < last ? row - first : GSPI_UNIT_ROWS;
            if (strip != NULL) strip->rows[lane] = (uint16_t)(place * plan->x_stride);
            if (row < last && strip != NULL)
                p->cursors[row * p->blocks + block] = from | (uint64_t)lane;
        }
        plan->slots += plan->packed == NULL ? 4 * (uint64_t)steps : 0;
        at = from + steps * sizeof(gspi_step);
    }
    return at;
}

static uint64_t place_all(const packing *p) {
    uint64_t at = 0;
    for (int64_t unit = 0; unit < p->plan->units; unit++)
        for (int64_t block = 0; block < p->blocks; block++) {
            p->plan->start[unit * p->blocks + block] = at;
            at = place_strips(p, unit, block, at);
        }
    p->plan->start[p->plan->units * p->blocks] = at;
    return at;
}

static gsp_status pack(packing *p) {
    gsp_plan *plan = p->plan;
    gsp_context *context = plan->context;
    const gsp_matrix *matrix = p->matrix;
    const int64_t groups = gsp_groups(&matrix->pattern, matrix->rows);
    const size_t cells = (size_t)(matrix->rows * p->blocks);
    const size_t starts = (size_t)(plan->units * p->blocks) + 1;
    p->counts = gspi_calloc(context, cells, sizeof *p->counts);
    p->cursors = gspi_alloc(context, cells, sizeof *p->cursors);
    plan->start = gspi_alloc(context, starts, sizeof *plan->start);
    GSP_CHECK(p->counts != NULL && p->cursors != NULL && plan->start != NULL, GSP_ERROR_MEMORY);
    gspi_visit(matrix, 0, groups, count_element, p);
    /* Kernels read the positions of one step ahead. */
    const uint64_t bytes = place_all(p) + sizeof(gspi_step);
    plan->packed = gspi_calloc(context, bytes, 1);
    GSP_CHECK(plan->packed != NULL, GSP_ERROR_MEMORY);
    plan->bytes += starts * sizeof *plan->start + bytes;
    place_all(p);
    gspi_visit(matrix, 0, groups, put_element, p);
    return GSP_OK;
}

static float cost_of(const gspi_entry *entry, const gsp_matrix *matrix) {
    const int64_t height = matrix->pattern.block_rows;
    if (entry->form != GSPI_STACKS) return entry->cost;
    return entry->cost * (float)(4 * gspi_ceil_div(height, 4)) / (float)height;
}

gsp_status gspi_plan_fours(gsp_plan *plan, const gsp_matrix *matrix, gsp_backend backend,
                           int64_t n) {
    const gspi_entry *best = NULL;
    for (const gspi_entry *entry = gspi_kernels; entry->name != NULL; entry++) {
        if (entry->backend != backend || entry->op != GSPI_SPMM) continue;
        if (!(entry->dtypes >> matrix->dtype & 1) || !(entry->kinds >> matrix->pattern.kind & 1))
            continue;
        if (best == NULL || cost_of(entry, matrix) < cost_of(best, matrix)) best = entry;
    }
    plan->entry = best;
    plan->units = gspi_ceil_div(matrix->rows, GSPI_UNIT_ROWS);
    const int64_t vectors = gspi_max(1, gspi_min(gspi_ceil_div(n, 16), GSPI_TILE_VECTORS));
    plan->x_stride = (uint32_t)vectors * 64;
    /* As many columns as the tile holds, spread evenly: a multiple of 32, where banks end often. */
    const int64_t most =
        gspi_min(best->width * 1024 / plan->x_stride / 32 * 32, GSPI_MOST_BLOCK_COLS);
    const int64_t parts = gspi_ceil_div(matrix->cols, most);
    plan->block_cols =
        parts == 0 ? most : gspi_ceil_div(gspi_ceil_div(matrix->cols, parts), 32) * 32;
    plan->blocks = gspi_max(1, gspi_ceil_div(matrix->cols, plan->block_cols));
    packing p = {.matrix = matrix,
                 .plan = plan,
                 .shared = best->form == GSPI_STACKS,
                 .blocks = plan->blocks,
                 .block_cols = (uint32_t)plan->block_cols};
    const gsp_status status = pack(&p);
    for (int64_t i = 0; status == GSP_OK && i < matrix->rows * p.blocks; i++)
        plan->entries += p.counts[i];
    gspi_free(plan->context, p.counts);
    gspi_free(plan->context, p.cursors);
    return status;
}
