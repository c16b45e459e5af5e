/* What the files that make plans share: rows, and how each form lays them out. */
#ifndef GSP_PLAN_H
#define GSP_PLAN_H

#include "gsp_kernels.h"

/* An element of a row. Its key is a position of x as the kernel sees it. */
typedef struct gspi_element {
    int32_t key;
    float value;
} gspi_element;

#define GSPI_NO_KEY INT32_MAX
#define GSPI_MOST_WIDTH 256 /* of tables */

/* A dense row: values, and a bit for each that is there. All bits are 0 between rows. */
typedef struct gspi_dense {
    float *values;
    uint64_t *bits;
    uint64_t
        *words; /* a bit for each word of bits; NULL for rows so short that all are looked at */
    int64_t size;
} gspi_dense;

/* What is left of up to 64 rows, by columns: bit r of rows[i] says that row r has an element in column first + i.
 * Holds the columns below `end`, at most `size` of them. All bits are 0 between uses. */
typedef struct gspi_marks {
    int64_t first, end, size;
    uint64_t *rows;
    uint64_t *
        blocks; /* a bit for each 64 columns that may hold any; NULL for so few that all are looked at */
} gspi_marks;

/* The rows of a matrix in the order of a plan, and the elements of those that were read last: as floats, in the order
 * of x, and behind each row one that no window reaches, with key GSPI_NO_KEY and value 0. */
typedef struct gspi_rows {
    gsp_context *context;
    const gsp_matrix *matrix;
    int64_t rows;
    uint64_t entries; /* without those behind the rows */
    uint64_t *start; /* place -> elements of all rows before, and one for each of these */
    uint32_t *order; /* place -> row */
    uint32_t *position; /* place -> where the matrix stores the row */

    int64_t first; /* elements begin with the row of this place */
    gspi_element *elements;
    uint64_t room;

    int64_t *bank_key; /* where each bank begins, for groups of one row */
    int64_t place_step; /* from one place in a bank to the next */
    gspi_dense dense;
    gspi_marks marks;
} gspi_rows;

/* Elements that a matrix stores. */
uint64_t gspi_count_elements(const gsp_matrix *matrix);
/* Opens the rows of a matrix that gspi_validate has passed: the natural order, or fullest first, else as they are
 * stored. bank_stride 0: keys are columns; else place i of bank b has key b * bank_stride + i, for matrices whose
 * groups are single rows. */
gsp_status gspi_open_rows(gsp_context *context, const gsp_matrix *matrix, bool fullest_first,
                          int64_t bank_stride, gspi_rows *list);
void gspi_close_rows(gspi_rows *list);
/* Reads the rows [first, last) in place of those that were read before. GSP_ERROR_DUPLICATE if a column is twice in one
 * of them. */
gsp_status gspi_read_rows(gspi_rows *list, int64_t first, int64_t last);
/* Marks the columns of rows [first, last), at most 64, which need not have been read. */
void gspi_mark_rows(gspi_rows *list, int64_t first, int64_t last);
/* Forgets the columns below `begin`, and marks as many more of the same rows as there is space for. */
void gspi_move_marks(gspi_rows *list, int64_t first, int64_t last, int64_t begin);

/* The next column from `at` on that a row is marked in, `end` if there is none. */
static inline int64_t gspi_next_column(const gspi_marks *marks, int64_t at) {
    int64_t i = at - marks->first;
    while (i < marks->size && marks->rows[i] == 0) {
        i++;
        if (marks->blocks == NULL || i % 64 != 0) continue;
        while (i < marks->size && marks->blocks[i / 4096] >> i / 64 % 64 == 0)
            i = (i / 4096 + 1) * 4096;
        if (i < marks->size) i += 64 * __builtin_ctzll(marks->blocks[i / 4096] >> i / 64 % 64);
    }
    return marks->first + gspi_min(i, marks->size);
}

/* A step: takes the first elements of each row, one, two or four (slots), out of a window, and gives the rows that have
 * any. Of one slot: */
static inline uint64_t gspi_take_one(uint64_t *here, int64_t width) {
    uint64_t before = 0;
    /* Four columns together, so that the next four wait for one operation. */
    for (int64_t i = 0; i < width; i += 4) {
        const uint64_t a = here[i], b = here[i + 1], c = here[i + 2], d = here[i + 3], ab = a | b;
        here[i] = a & before;
        here[i + 1] = b & (before | a);
        here[i + 2] = c & (before | ab);
        here[i + 3] = d & (before | ab | c);
        before |= ab | (c | d);
    }
    return before;
}

/* The same for each number of slots. */
static inline uint64_t gspi_take_window(uint64_t *here, int64_t width, int64_t slots) {
    if (slots == 1) return gspi_take_one(here, width);
    uint64_t once = 0, twice = 0, thrice = 0, four = 0; /* rows of which so many are taken */
    for (int64_t i = 0; i < width; i++) {
        const uint64_t rows = here[i];
        here[i] = rows & (slots == 2 ? twice : four);
        four |= rows & thrice;
        thrice |= rows & twice;
        twice |= rows & once;
        once |= rows;
    }
    return once;
}

/* A row that has been read. */
static inline const gspi_element *gspi_row(const gspi_rows *list, int64_t place) {
    return list->elements + (list->start[place] - list->start[list->first]);
}
/* Elements of a row, that behind it not counted. */
static inline uint64_t gspi_row_size(const gspi_rows *list, int64_t place) {
    return list->start[place + 1] - list->start[place] - 1;
}

/* Counts what the plan holds as it is allocated. Not cleared. */
void *gspi_plan_alloc(gsp_plan *plan, uint64_t count, size_t size);

/* Finds the cheapest kernel of [first, end) and plan->most; lays the matrix out for it, as register tables, gathers, or
 * runs of blocks, if n is not more than that. */
gsp_status gspi_plan_rows(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                          const gspi_entry *end, int64_t n);
/* The same for x in 8 or 16 bits, as gsp_plan_create_for takes it. */
gsp_status gspi_plan_narrow(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, uint32_t features, int64_t n);
/* GSPI_TILES: whether an entry takes the matrix; samples up to which a kernel for few that costs so much for 64
 * elements is not slower, which needs plan->entries; and the packing of rows in their natural order. */
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
