/* What the files of csrc/kernels share: the plan, the list of kernels, and how a kernel is called. */
#ifndef GSP_KERNELS_H
#define GSP_KERNELS_H

#include "../gsp_internal.h"

/* How a plan lays a matrix out. */
typedef enum gspi_form {
    GSPI_STORED, /* the arrays of the format, copied */
    GSPI_STRIPS, /* blocks of columns; strips of eight rows, each with columns of its own */
    GSPI_STACKS, /* the same; the first and the last four rows of a strip share their columns */
    GSPI_GATHER, /* strips of rows; quads of steps with 32-bit columns */
    GSPI_TABLES, /* register tables: quads of four strips of rows, or of four steps of one strip */
    GSPI_WIDE, /* blocks cut into runs of `lanes` columns of one row */
    GSPI_TALL, /* blocks cut into runs of `lanes` rows of one column */
    /* Narrow: x in 8 or 16 bits. Their kernels take any number of samples and do all of the epilogue. */
    GSPI_ROWS, /* rows one by one, as floats with 32-bit columns */
    GSPI_FLOATS, /* strips of rows; tables of floats, a slot of each row in a step */
    GSPI_PAIRS, /* the same with tables of bfloat16, and two slots of a row side by side */
    GSPI_BYTES, /* the same with tables of 8 bits, and four slots */
    GSPI_TILES, /* dense, but packed: a bit for each element, and those that are there. SpMM */
} gspi_form;

typedef enum gspi_op { GSPI_SPMV, GSPI_SPMM } gspi_op;

/* What a kernel wants on top of its backend; bits. */
#define GSPI_VBMI 1u
#define GSPI_VNNI 2u
#define GSPI_BF16 4u
/* Those that this CPU has. */
uint32_t gspi_features(void);
/* Why AMX cannot be used, or NULL. The first call asks the operating system for it. */
const char *gspi_amx_missing(void);

/* How a sample of x was rounded to 8 bits: q = clamp(rint(x * inverse) + zero, 0, 255). */
typedef struct gspi_quantum {
    float scale, inverse, zero;
} gspi_quantum;

/* One product: x[col * x_col + sample * x_sample], y[row * y_row + sample * y_sample]. For SpMV, x_col = 1 in all forms
 * but GSPI_STORED. For SpMM, one of x_col and x_sample is 1, and one of y_row and y_sample. */
typedef struct gspi_product {
    const void *x;
    void *y;
    int64_t samples;
    int64_t x_col, x_sample, y_row, y_sample;
    const gsp_epilogue
        *epilogue; /* SpMM: residual lies as y does; kernels of stored arrays leave it to others */
    /* SpMM: NULL, or where x and y lie instead: a sample is a pixel of y, counted from sample `first` on through
     * the wanted columns of all rows of all images. */
    const gsp_convolution *convolution;
    int64_t first;
    const gspi_quantum *quanta; /* of each sample, for GSP_INT8; else NULL */
} gspi_product;

/* Does the units [first, last) of the plan's work. */
typedef void gspi_kernel(const gsp_plan *plan, const gspi_product *product, int64_t first,
                         int64_t last);

/* A row of the list in kernels.inc. */
typedef struct gspi_entry {
    const char *name;
    gspi_kernel *kernel;
    gspi_op op;
    gsp_backend backend;
    uint32_t dtypes, kinds; /* bit sets of gsp_dtype and gsp_kind */
    gspi_form form;
    int lanes; /* rows of a strip */
    int width; /* entries of a register table; GSPI_STRIPS, GSPI_STACKS: KiB of the tile of x */
    float cost; /* of 64 slots; measured, only ratios within one backend count */
    float most; /* SpMV: samples up to which SpMM is not faster, if nothing is padded */
    uint32_t operands; /* bit set of gsp_dtype: what gsp_plan_create_for was asked for */
    uint32_t needs; /* features */
    float expand; /* GSPI_TILES: cost of 64 slots, whatever the samples; `cost` is for one */
} gspi_entry;

/* The list, best first, ends in a row without a name. */
extern const gspi_entry gspi_kernels[];

#define GSPI_STRIP_ROWS 8
#define GSPI_STACK_ROWS 4 /* that share their columns */
#define GSPI_STEPS_AHEAD 2 /* of which kernels read the positions */

/* Rows that are summed at once: `rows` of their unit, with the steps from `first` on to that of the next strip; one
 * strip of no rows is behind the last one. */
typedef struct gspi_strip {
    uint64_t first;
    uint16_t rows[GSPI_STRIP_ROWS];
} gspi_strip;

/* GSPI_TABLES: the quads of a unit. First those across, whose four steps belong to the four strips and share a table;
 * then those along one strip after the other, of four steps with a table each. `table`: the first of the unit. */
typedef struct gspi_four {
    uint64_t table, across, along[4];
} gspi_four;

struct gsp_plan {
    gsp_context *context;
    const gspi_entry *entry;
    gsp_dtype operand; /* what gsp_plan_create_for was asked for */
    /* Shape, pattern and dtype. Its arrays are the plan's own, NULL where the form has no use for them. */
    gsp_matrix matrix;
    /* What threads share: groups, rows, strips, fours of strips, or rows of blocks. */
    int64_t units;
    uint64_t bytes, entries, slots;
    int64_t most; /* samples up to which no plan for SpMM is faster; 0 if this is one */
    const gspi_entry *next; /* the next best that takes the matrix, or NULL */
    float cost, next_cost; /* of the chosen one and of that, in one unit of any size */

    /* All but GSPI_STORED. Unit u has the items [start[u], start[u + 1]). An item is
     *   GSPI_TABLES: a quad: `lanes` words, each the table positions of four slots in four bytes, then 4 x lanes
     *       floats. A unit is four strips, and fours[unit] says which of its quads are whose. tables[] has where the
     *       tables of a quad begin in x.
     *   GSPI_GATHER: a quad: 4 x lanes columns, then 4 x lanes floats
     *   GSPI_WIDE, GSPI_TALL: a run: `lanes` floats for each part of the row of blocks, in packed[unit][part][run];
     *       a part is a row, or `lanes` rows; tables[item] is where the run begins in x */
    uint64_t *start;
    unsigned char *packed;
    uint32_t *tables;
    uint32_t *row_map; /* place -> row; NULL for the natural order */
    gspi_four *fours;
    int64_t per_row; /* GSPI_TABLES: 1, or 4 neighbouring lanes are slots of one row */

    /* x as the kernel sees it: x_size entries, in a copy if cols are fewer; bank_stride > 0: in a copy where place i
     * of bank b is at b * bank_stride + i. */
    int64_t x_size, bank_stride;
    bool align_x; /* tables are loaded faster if x is aligned to 64 bytes */

    /* Narrow forms. GSPI_ROWS: unit is a row, item an element; packed holds floats, tables columns. The others: unit is
     * some strips of `lanes` rows, item a step: `slots` elements of each row, from one table, which begins at
     * tables[item]. First their positions, a byte each: strip after strip, [row][slot], but that with fewer than four
     * slots, the positions of 4 / slots strips are the bytes of words; then values as in the matrix,
     * [strip][row][slot]. */
    /* GSPI_TILES: a unit is GSPI_TILE_ROWS rows, its columns are x_size / width steps. A step is two tiles of
     * 16 rows, a tile 16 lines of 64 bytes: those of 4 / value size columns, [row][column]. positions has a bit for
     * every value of a line, lines one after the other; packed the values whose bit is set, those of the unit from
     * value start[unit] on. 64 bytes may be read behind the last. */
    float *scales; /* place -> scale of the row, if the operand is GSP_INT8 */
    int32_t *weights; /* place -> sum of the row's values, GSPI_BYTES and GSPI_TILES */

    /* GSPI_STRIPS, GSPI_STACKS: units of unit_rows rows, and `blocks` blocks of block_cols columns, of which a
     * kernel copies up to x_stride bytes each to a tile. That block of the unit has the strips
     * [start[unit * blocks + block], start[unit * blocks + block + 1]). Step s multiplies the floats
     * packed[s][GSPI_STRIP_ROWS] by the columns positions[s][GSPI_STRIP_ROWS] of the block, one for each row. */
    gspi_strip *strips;
    uint8_t *positions;
    int64_t unit_rows, blocks, block_cols;
    uint32_t x_stride;
};

#define GSPI_TILE_ROWS 32 /* of a unit of GSPI_TILES */
#define GSPI_MOST_TILE_COLS 8192 /* so that 16 samples of x fit a copy on the stack */
#define GSPI_LEAST_UNIT_ROWS 256
#define GSPI_MOST_UNIT_ROWS 1024
#define GSPI_TILE_VECTORS 2 /* of 64 bytes: 32 samples, and x_stride is 64 or 128 */
#define GSPI_MOST_BLOCK_COLS 256 /* so that positions are bytes */

/* gsp_plan_create_for with the kernels [first, end) of the list and these features alone, as tests want it. Of those
 * that take the matrix, the cheapest of the best backend is used; GSP_ERROR_DTYPE if there is none. */
gsp_status gspi_plan_create(gsp_context *context, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, uint32_t features, int64_t n, gsp_dtype x,
                            gsp_plan **plan);
/* The second half for SpMM: lays the matrix out for the cheapest kernel and n columns. */
gsp_status gspi_plan_strips(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, int64_t n);

/* Bytes of one quad. */
static inline size_t gspi_quad_bytes(gspi_form form, int lanes) {
    return (size_t)lanes * (form == GSPI_GATHER ? 32 : 20);
}

/* Parts of a row of blocks. */
static inline int64_t gspi_parts(const gsp_pattern *pattern, gspi_form form, int lanes) {
    return form == GSPI_WIDE ? pattern->block_rows : gspi_ceil_div(pattern->block_rows, lanes);
}

/* GSPI_FLOATS, GSPI_PAIRS, GSPI_BYTES: slots of a row in a step, strips of a unit, bytes of an item. */
static inline int64_t gspi_slots(gspi_form form) {
    return form == GSPI_BYTES ? 4 : form == GSPI_PAIRS ? 2 : 1;
}
static inline int64_t gspi_strips_of(gspi_form form) { return form == GSPI_FLOATS ? 4 : 2; }
static inline size_t gspi_item_bytes(const gsp_plan *plan) {
    const gspi_form form = plan->entry->form;
    return (size_t)(gspi_strips_of(form) * gspi_slots(form) * plan->entry->lanes) *
           (1 + gsp_dtype_size(plan->matrix.dtype));
}

/* Samples that a SpMV kernel may be given at once, so that weights are read once for all of them. */
#define GSPI_MAX_SAMPLES 5
/* Floats of a copy of x, which is on the stack. */
#define GSPI_MAX_COPY 32768
/* Columns of x from which SpMM pays for every matrix: above `most` of all kernels. */
#define GSPI_MANY_COLUMNS 16

/* y[i] = activation(scale * y[i] + bias + residual[i]) for `count` sums that lie one after the other, from `row` on:
 * all of that row (step 0), or of neighbouring rows (step 1). residual may be NULL. */
void gspi_finish(const gsp_plan *plan, void *y, int64_t count, int64_t row, int64_t step,
                 const void *residual, const gsp_epilogue *epilogue);
void gspi_f32_finish__scalar(float *y, int64_t count, const float *scales, const float *bias,
                             int64_t step, const float *residual, const gsp_epilogue *epilogue);
void gspi_f32_finish__avx512(float *y, int64_t count, const float *scales, const float *bias,
                             int64_t step, const float *residual, const gsp_epilogue *epilogue);
void gspi_f32_finish__avx2(float *y, int64_t count, const float *scales, const float *bias,
                           int64_t step, const float *residual, const gsp_epilogue *epilogue);
void gspi_f32_finish__neon(float *y, int64_t count, const float *scales, const float *bias,
                           int64_t step, const float *residual, const gsp_epilogue *epilogue);

/* What the scalar kernels of SpMM do if there is a convolution. */
gspi_kernel gspi_f64_conv__scalar, gspi_f32_conv__scalar, gspi_f16_conv__scalar,
    gspi_bf16_conv__scalar, gspi_i8_conv__scalar;

/* Whether several threads are worth it for so many samples, or pixels; then at most *workers of them are there. */
bool gspi_threads_pay(const gsp_plan *plan, int64_t samples, int64_t *workers);
/* Parts of the work for each thread, so that one that comes late or is interrupted does less of it. */
#define GSPI_PARTS 4
/* For who shares a product out himself: its parts for so many threads, and one of them, with what gsp_multiply checks
 * taken to be right, and no epilogue. All parts together are the product, in any order. */
int64_t gspi_parts_for(const gsp_plan *plan, int64_t workers);
void gspi_multiply_part(const gsp_plan *plan, const void *x, int64_t samples,
                        const gsp_strides *strides, void *y, int64_t part, int64_t parts);
/* GSP_ERROR_SHAPE for an unknown activation, or low > high. */
gsp_status gspi_check_epilogue(const gsp_epilogue *epilogue);

#define GSP_KERNEL(function, ...) gspi_kernel function;
#define GSP_NARROW(function, ...) gspi_kernel function;
#define GSP_TILES(function, ...) gspi_kernel function;
#include "kernels.inc"

#endif
