/* What the files that make plans share: rows, and how each form lays them out. */
#ifndef GSP_PLAN_H
#define GSP_PLAN_H

#include "gsp_kernels.h"

/* An element of a row. Its key is a position of x as the kernel sees it. */
typedef struct gspi_element {
    int32_t key;
    float value;
} gspi_element;

/* Elements by row, as floats, in the order of x. Row p of the list has the elements [start[p], start[p + 1] - 1),
 * and behind them one that no window reaches: key GSPI_NO_KEY, value 0. */
typedef struct gspi_rows {
    int64_t rows;
    uint64_t entries; /* without those behind the rows */
    uint64_t *start;
    gspi_element *elements;
} gspi_rows;

#define GSPI_NO_KEY INT32_MAX

/* Elements that each row stores: counts [rows]. */
void gspi_count_rows(const gsp_matrix *matrix, uint32_t *counts);
/* Places of rows: fullest first, else as the matrix has them. order [rows]: place -> row. */
gsp_status gspi_fullest_first(gsp_context *context, const gsp_matrix *matrix,
                              const uint32_t *counts, uint32_t *order);
/* Decodes a matrix that gspi_validate has passed; GSP_ERROR_DUPLICATE if a column is twice in a row. order [rows]:
 * row p of the list is row order[p] of the matrix, NULL for the natural order. bank_stride 0: keys are columns; else
 * place i of bank b has key b * bank_stride + i, for matrices whose groups are single rows. */
gsp_status gspi_decode_rows(gsp_context *context, const gsp_matrix *matrix, const uint32_t *order,
                            int64_t bank_stride, gspi_rows *list);
void gspi_free_rows(gsp_context *context, gspi_rows *list);

/* Counts what the plan holds as it is allocated. Not cleared. */
void *gspi_plan_alloc(gsp_plan *plan, uint64_t count, size_t size);

/* Finds the cheapest kernel of [first, end) and plan->most; lays the matrix out for it, as register tables, gathers, or
 * runs of blocks, if n is not more than that. */
gsp_status gspi_plan_rows(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                          const gspi_entry *end, int64_t n);
/* The same for x in 8 or 16 bits, as gsp_plan_create_for takes it. */
gsp_status gspi_plan_narrow(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, uint32_t features, int64_t n);
/* GSPI_TILES: whether an entry takes the matrix; samples up to which a kernel for few that costs so much for 64 elements
 * is not slower, which needs plan->entries; and the packing of rows in their natural order. */
bool gspi_takes_tiles(const gspi_entry *entry, const gsp_plan *plan, const gsp_matrix *matrix);
int64_t gspi_tiles_most(const gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *tiles,
                        float few_cost);
gsp_status gspi_pack_tiles(gsp_plan *plan, const gspi_rows *list);
/* Places of one bank in x as the kernel sees it: interleaved banks are brought together if rows are balanced over
 * them. 0 leaves x as it is. */
int64_t gspi_bank_stride(const gsp_matrix *matrix);
/* Notes what a kernel would cost that takes the matrix, beside the best: the plan keeps the next best. */
void gspi_weigh(gsp_plan *plan, const gspi_entry *best, float best_cost, const gspi_entry *entry,
                float cost);
/* Whether a kernel of the list takes the matrix, and x in floats. */
bool gspi_takes(const gspi_entry *entry, const gsp_matrix *matrix, gspi_op op);

/* Blocks: slots that an entry would multiply, and the packing. */
uint64_t gspi_block_slots(const gsp_matrix *matrix, const gspi_entry *entry);
gsp_status gspi_pack_blocks(gsp_plan *plan, const gsp_matrix *matrix);

#endif
