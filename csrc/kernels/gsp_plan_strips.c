/* Packs a matrix for SpMM: rows in units, columns in blocks, eight rows to a strip.
 *
 * A kernel keeps a block of x in the first cache and the sums of a unit in the second, and goes through the strips of
 * (unit, block) after (unit, block). A strip takes as many steps as its fullest row has elements in the block, so rows
 * are grouped by that number, separately in every block: little is padded whatever the mask, and the loop over the
 * steps is nearly always as long as the last time, which branch prediction needs.
 *
 * Rows of one block of a block pattern have the same columns: there a strip is twice four rows of a block, and a step
 * one column that four of them share. */
#include <string.h>

#include "gsp_plan.h"

/* Sizes while a plan is packed. counts, cursors [rows][blocks]. */
typedef struct {
    const gsp_matrix *matrix;
    gsp_plan *plan;
    gspi_rows list; /* in natural order */
    bool shared;
    int64_t blocks, block_cols;
    uint16_t *counts;
    uint64_t *cursors; /* where the first element goes in packed and positions */
} packing;

static void count_row(const packing *p, int64_t row) {
    const gspi_element *at = gspi_row(&p->list, row);
    for (int64_t block = 0; block < p->blocks; block++) {
        const gspi_element *const from = at;
        const int64_t end = gspi_min((block + 1) * p->block_cols, GSPI_NO_KEY);
        while (at->key < end) at++;
        p->counts[row * p->blocks + block] = (uint16_t)(at - from);
    }
}

static void put_row(const packing *p, int64_t row) {
    const gspi_element *at = gspi_row(&p->list, row);
    float *values = (float *)(void *)p->plan->packed;
    for (int64_t block = 0; block < p->blocks; block++) {
        const int32_t left = (int32_t)(block * p->block_cols);
        uint64_t to = p->cursors[row * p->blocks + block];
        for (int i = p->counts[row * p->blocks + block]; i > 0; i--, at++, to += GSPI_STRIP_ROWS) {
            values[to] = at->value;
            p->plan->positions[to] = (uint8_t)(at->key - left);
        }
    }
}

/* Cuts the rows [first, last) of a unit into items: rows, or up to four rows of one block of the pattern. Item i
 * begins at row begin[i]; begin[items] = last. */
static int cut_unit(const packing *p, int64_t first, int64_t last, int64_t *begin) {
    const int64_t height = p->shared ? p->matrix->pattern.block_rows : 1;
    int items = 0;
    for (int64_t row = first; row < last;) {
        begin[items++] = row;
        const int64_t end_of_block = (row / height + 1) * height;
        row = p->shared ? gspi_min(gspi_min(row + GSPI_STACK_ROWS, end_of_block), last) : row + 1;
    }
    begin[items] = last;
    return items;
}

/* Items by their number of elements in a block, most first; equal ones stay in order. */
static void sort_items(const packing *p, int64_t block, const int64_t *begin, int items,
                       uint16_t *order) {
    uint16_t next[GSPI_MOST_BLOCK_COLS + 2] = {0};
    uint16_t most = 0;
    for (int i = 0; i < items; i++) {
        const uint16_t count = p->counts[begin[i] * p->blocks + block];
        most = count > most ? count : most;
    }
    for (int i = 0; i < items; i++) next[most - p->counts[begin[i] * p->blocks + block] + 1]++;
    for (int i = 0; i < most; i++) next[i + 1] = (uint16_t)(next[i + 1] + next[i]);
    for (int i = 0; i < items; i++)
        order[next[most - p->counts[begin[i] * p->blocks + block]]++] = (uint16_t)i;
}

/* Where strips and steps are laid out. */
typedef struct {
    uint64_t strip, step;
} place;

/* Lays the strips of one (unit, block) out; writes strips and cursors once there is memory. */
static void place_strips(const packing *p, int64_t unit, int64_t block, place *at) {
    gsp_plan *plan = p->plan;
    const int64_t first = unit * plan->unit_rows,
                  last = gspi_min(first + plan->unit_rows, p->matrix->rows);
    int64_t begin[GSPI_MOST_UNIT_ROWS + 1];
    uint16_t order[GSPI_MOST_UNIT_ROWS];
    const int items = cut_unit(p, first, last, begin);
    const int height = p->shared ? GSPI_STACK_ROWS : 1; /* lanes of an item */
    sort_items(p, block, begin, items, order);
    for (int i = 0; i < items; i += GSPI_STRIP_ROWS / height) {
        const uint64_t steps = p->counts[begin[order[i]] * p->blocks + block];
        /* The first block begins the sums of all rows, the last one ends them. */
        if (steps == 0 && block > 0 && block < p->blocks - 1) break;
        for (int lane = 0; plan->strips != NULL && lane < GSPI_STRIP_ROWS; lane++) {
            const int item = i + lane / height;
            int64_t row = last;
            if (item < items) row = begin[order[item]] + lane % height;
            /* Lanes without a row add zeros to the row behind the unit. */
            const bool used = item < items && row < begin[order[item] + 1];
            plan->strips[at->strip].first = at->step;
            plan->strips[at->strip].rows[lane] = (uint16_t)(used ? row - first : plan->unit_rows);
            if (used)
                p->cursors[row * p->blocks + block] = at->step * GSPI_STRIP_ROWS + (uint64_t)lane;
        }
        at->strip++;
        at->step += steps;
    }
}

static place place_all(const packing *p) {
    place at = {0, 0};
    for (int64_t unit = 0; unit < p->plan->units; unit++)
        for (int64_t block = 0; block < p->blocks; block++) {
            p->plan->start[unit * p->blocks + block] = at.strip;
            place_strips(p, unit, block, &at);
        }
    p->plan->start[p->plan->units * p->blocks] = at.strip;
    return at;
}

/* The first slot of a block of a unit. */
static uint64_t slot_of(const gsp_plan *plan, int64_t block) {
    return plan->strips[plan->start[block]].first * GSPI_STRIP_ROWS;
}

static gsp_status pack(packing *p) {
    gsp_plan *plan = p->plan;
    gsp_context *context = plan->context;
    const gsp_matrix *matrix = p->matrix;
    const size_t cells = (size_t)(matrix->rows * p->blocks);
    p->counts = gspi_alloc(context, cells, sizeof *p->counts);
    p->cursors = gspi_alloc(context, cells, sizeof *p->cursors);
    plan->start =
        gspi_plan_alloc(plan, (uint64_t)(plan->units * p->blocks) + 1, sizeof *plan->start);
    GSP_CHECK(p->counts != NULL && p->cursors != NULL && plan->start != NULL, GSP_ERROR_MEMORY);
    GSP_TRY(gspi_open_rows(context, matrix, false, 0, &p->list));
    GSP_TRY(gspi_read_rows(&p->list, 0, matrix->rows));
    plan->entries = p->list.entries;
    for (int64_t row = 0; row < matrix->rows; row++) count_row(p, row);
    const place end = place_all(p);
    plan->slots = end.step * GSPI_STRIP_ROWS;
    const uint64_t positions = plan->slots + GSPI_STEPS_AHEAD * GSPI_STRIP_ROWS;
    plan->strips = gspi_plan_alloc(plan, end.strip + 1, sizeof *plan->strips);
    plan->packed = gspi_plan_alloc(plan, plan->slots, sizeof(float));
    plan->positions = gspi_plan_alloc(plan, positions, 1);
    GSP_CHECK(plan->strips != NULL && plan->packed != NULL && plan->positions != NULL,
              GSP_ERROR_MEMORY);
    place_all(p);
    plan->strips[end.strip] = (gspi_strip){.first = end.step};
    for (int64_t unit = 0; unit < plan->units; unit++) {
        /* Cleared where it is padded, and everywhere else while it is in the cache. */
        const uint64_t first = slot_of(plan, unit * p->blocks),
                       slots = slot_of(plan, (unit + 1) * p->blocks) - first;
        memset((float *)(void *)plan->packed + first, 0, slots * sizeof(float));
        memset(plan->positions + first, 0, slots);
        for (int64_t row = unit * plan->unit_rows;
             row < gspi_min((unit + 1) * plan->unit_rows, matrix->rows); row++)
            put_row(p, row);
    }
    memset(plan->positions + plan->slots, 0, positions - plan->slots);
    return GSP_OK;
}

static float cost_of(const gspi_entry *entry, const gsp_matrix *matrix) {
    const int64_t height = matrix->pattern.block_rows;
    if (entry->form != GSPI_STACKS) return entry->cost;
    return entry->cost * (float)(GSPI_STACK_ROWS * gspi_ceil_div(height, GSPI_STACK_ROWS)) /
           (float)height;
}

/* The more rows are sorted together, the less is padded; but threads share units too, where tiles of samples are few:
 * one or, for any larger n, two, since one plan serves all of these. */
static int64_t rows_of_unit(int64_t rows, int64_t n) {
    const int64_t tiles = n > GSPI_TILE_VECTORS * 16 ? 2 : 1;
    int64_t most = GSPI_MOST_UNIT_ROWS;
    while (most > GSPI_LEAST_UNIT_ROWS && gspi_ceil_div(rows, most) * tiles < GSPI_PARTS) most /= 2;
    return most;
}

gsp_status gspi_plan_strips(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, int64_t n) {
    const gspi_entry *best = NULL;
    for (const gspi_entry *entry = first; entry < end; entry++) {
        if (!gspi_takes(entry, matrix, GSPI_SPMM)) continue;
        if (best == NULL || cost_of(entry, matrix) < cost_of(best, matrix)) best = entry;
    }
    for (const gspi_entry *entry = first; entry < end; entry++)
        if (gspi_takes(entry, matrix, GSPI_SPMM))
            gspi_weigh(plan, best, cost_of(best, matrix), entry, cost_of(entry, matrix));
    plan->entry = best;
    const int64_t vectors = gspi_max(1, gspi_min(gspi_ceil_div(n, 16), GSPI_TILE_VECTORS));
    plan->x_stride = (uint32_t)vectors * 64;
    plan->unit_rows = rows_of_unit(matrix->rows, n);
    plan->units = gspi_ceil_div(matrix->rows, plan->unit_rows);
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
                 .block_cols = plan->block_cols};
    const gsp_status status = pack(&p);
    gspi_close_rows(&p.list);
    gspi_free(plan->context, p.counts);
    gspi_free(plan->context, p.cursors);
    return status;
}
