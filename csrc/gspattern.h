/* gspattern: load-balanced gather-scatter (GS) patterns for sparse neural networks.
 *
 *     scores --choose--> mask --train--> weights --encode--> matrix --plan--> plan --multiply--> y
 *
 * The one public header, in the order of that line. Rules that hold for every function:
 *   - a status is returned, GSP_OK or the first thing that was wrong; outputs are only defined after GSP_OK;
 *   - the caller owns every array that it passes, and no thread may write to it during the call; what the
 *     library allocates has a *_destroy of its own;
 *   - arrays are aligned as their elements ask, and one without elements may be NULL;
 *   - matrices are rows x cols in C order; rows are outputs (M), cols are inputs (K), n counts columns of x;
 *   - nothing prints, nothing aborts, and there is no global state: memory and threads belong to a gsp_context.
 * The terms (bank, row group, bundle, row order) are those of arXiv 2112.10898; docs/FORMAT.md
 * defines them. */
#ifndef GSPATTERN_H
#define GSPATTERN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define GSP_API __attribute__((visibility("default")))
#else
#define GSP_API
#endif

/* ------------------------------------------------------------------ status */

typedef enum gsp_status {
    GSP_OK = 0,
    GSP_ERROR_MEMORY = 1,      /* an allocation failed */
    GSP_ERROR_SHAPE = 2,       /* negative, too large, or sizes that do not agree */
    GSP_ERROR_PATTERN = 3,     /* the pattern is malformed, or does not fit the matrix */
    GSP_ERROR_SCORE = 4,       /* a score is NaN, infinite or negative */
    GSP_ERROR_BUDGET = 5,      /* no valid mask has as many nonzeros as asked for */
    GSP_ERROR_MASK = 6,        /* the mask is not valid for the pattern */
    GSP_ERROR_ROW_ORDER = 7,   /* the row order is not a permutation */
    GSP_ERROR_INDPTR = 8,      /* indptr must start at 0, never fall, and end at units */
    GSP_ERROR_INDEX = 9,       /* an index points outside its bank or the matrix */
    GSP_ERROR_BANKS = 10,      /* two slots of a bundle share a bank */
    GSP_ERROR_DUPLICATE = 11,  /* one element is stored twice */
    GSP_ERROR_PADDING = 12,    /* a slot that must be empty is not 0 */
    GSP_ERROR_DTYPE = 13,      /* the dtype is unknown or not possible here */
    GSP_ERROR_BACKEND = 14,    /* this CPU or this build cannot run that backend */
    GSP_ERROR_ORDER = 15,      /* slots or indices are not in ascending order */
    GSP_ERROR_SCALES = 16,     /* a scale is NaN or infinite */
} gsp_status;

/* A constant English phrase, never NULL. */
GSP_API const char *gsp_status_text(gsp_status status);

/* ----------------------------------------------------------------- context */

/* Where memory comes from. allocate returns NULL on failure; release accepts NULL. With more than one thread, or
 * a context that several use, both are called from several threads at once. */
typedef struct gsp_allocator {
    void *(*allocate)(void *user, size_t bytes);
    void (*release)(void *user, void *memory);
    void *user;
} gsp_allocator;

typedef struct gsp_context gsp_context;

/* allocator NULL means malloc and free. One context may be used from several threads at once. It is
 * destroyed after all plans and prices that were made with it. */
GSP_API gsp_status gsp_context_create(const gsp_allocator *allocator, gsp_context **context);
GSP_API void gsp_context_destroy(gsp_context *context);
/* 1 (at first) to 256, GSP_ERROR_SHAPE otherwise; may be set at any time. Results never depend on it. */
GSP_API gsp_status gsp_context_set_threads(gsp_context *context, int threads);
GSP_API int gsp_context_threads(const gsp_context *context);

/* ----------------------------------------------------------------- pattern */

typedef enum gsp_kind { GSP_GS = 0, GSP_IRREGULAR = 1, GSP_BLOCK = 2, GSP_NM = 3 } gsp_kind;
typedef enum gsp_layout { GSP_INTERLEAVED = 0, GSP_CONTIGUOUS = 1 } gsp_layout;

/* Only the members of the kind are read. Functions that return a status refuse a malformed pattern; the
 * others in this section want a well-formed one, and cols > 0. */
typedef struct gsp_pattern {
    gsp_kind kind;
    uint32_t banks, per_row; /* GS(B, k): per_row divides banks */
    gsp_layout layout;       /* interleaved: column % banks; contiguous: equal runs of columns */
    uint32_t block_rows, block_cols;
    uint32_t nm_n, nm_m; /* at most n of each m columns */
} gsp_pattern;

/* Rows of a full group of the pattern: banks / per_row for GS, block_rows for blocks, else 1. */
GSP_API int64_t gsp_group_rows(const gsp_pattern *pattern);
/* ceil(rows / gsp_group_rows). */
GSP_API int64_t gsp_groups(const gsp_pattern *pattern, int64_t rows);
/* First column of a bank of the contiguous layout: floor(bank * cols / banks); bank may be
 * banks. */
GSP_API int64_t gsp_bank_begin(int64_t bank, int64_t cols, int64_t banks);
/* Number of columns in a bank, either layout. */
GSP_API int64_t gsp_bank_width(const gsp_pattern *pattern, int64_t cols, int64_t bank);
/* The bank of a column. */
GSP_API int64_t gsp_bank_of(const gsp_pattern *pattern, int64_t cols, int64_t col);
/* Most bundles that a GS group of `group_rows` rows can hold. */
GSP_API int64_t gsp_max_bundles(const gsp_pattern *pattern, int64_t cols, int64_t group_rows);

/* ------------------------------------------------------------------ choose */

typedef enum gsp_method { GSP_EXACT = 0, GSP_GREEDY = 1 } gsp_method;

/* One matrix to choose a mask for. The first block is read, the second is filled in. */
typedef struct gsp_choice {
    const float *scores; /* rows x cols, finite and >= 0 */
    int64_t rows, cols;
    gsp_pattern pattern;
    int scatter;            /* GS: choose the row order too */
    int64_t min_per_group;  /* floor on the bundles of every group; 0 for none */
    int64_t max_per_group;  /* ceiling; negative for none */
    int64_t min_keep;       /* with several matrices: keep at least and at most so many; */
    int64_t max_keep;       /*   0 and negative for no limit */

    uint8_t *mask;          /* rows x cols, 0 or 1 */
    uint32_t *row_order;    /* rows; written if scatter, else read, or NULL */
    uint32_t *bundles;      /* gsp_groups; GS only, else may be NULL */
    double score;           /* sum of the scores kept */
    int64_t kept;
    int64_t least, most;    /* what the pattern can keep, written with GSP_ERROR_BUDGET too */
    int64_t fault;          /* flat index of the first bad score, with GSP_ERROR_SCORE; else -1 */
} gsp_choice;

/* Dual prices that prove a choice optimal. Entry e is for group[e] holding bundles[e] bundles:
 * whatever its mask, such a group keeps at most
 *     sum_r n * per_row * row[r] + sum_b n * bank[b] + sum max(0, score - row[r] - bank[b])     (bound[e])
 * and the best mask keeps value[e]. Entries are sorted by group and bundles; those of one group
 * have no gaps. */
typedef struct gsp_prices {
    size_t count;
    int64_t group_rows, banks;
    int64_t *group, *bundles;
    double *row;  /* count x group_rows, by place in the group */
    double *bank; /* count x banks */
    double *value, *bound;
} gsp_prices;

/* Fills in masks that keep at most `keep` nonzeros in all. One matrix: exact keeps the largest
 * total score over all valid masks (of the given or chosen row order) with more than keep -
 * bundle size and at most keep nonzeros; greedy is read for GS with per_row < banks and takes
 * the largest score that still fits, again and again. Several: bundles in order of score per
 * nonzero until the next does not fit; the result is the best for what it keeps, and no choice
 * within the limits that keeps at most `keep` scores more than *bound (written for several
 * matrices, and for one that is not GS). N:M needs no budget: `keep` is ignored, and there can
 * be only one matrix. prices and bound may be NULL; prices is filled for one GS matrix and
 * exact, else set to NULL. */
GSP_API gsp_status gsp_choose(gsp_context *context, gsp_choice *choices, size_t count, int64_t keep,
                              gsp_method method, gsp_prices **prices, double *bound);
GSP_API void gsp_prices_destroy(gsp_context *context, gsp_prices *prices);

/* Where a mask breaks its pattern: this row (or bank, or block, or window of m) of this group holds
 * `count` nonzeros where `expected` would be right. The other of row and bank is -1. */
typedef struct gsp_violation {
    int64_t group, row, bank, count, expected;
} gsp_violation;

/* Counts all violations and writes the first `capacity` of them. row_order may be NULL (natural
 * order). Linear in rows * cols. */
GSP_API gsp_status gsp_check(gsp_context *context, const uint8_t *mask, int64_t rows, int64_t cols,
                             const gsp_pattern *pattern, const uint32_t *row_order,
                             gsp_violation *violations, size_t capacity, size_t *count);

/* Adds the fewest elements that make `mask` valid for the pattern, in place. row_order as above. If a
 * group cannot hold its elements: GSP_ERROR_MASK, the first such group in *group (-1 otherwise), and the
 * elements are those that they were. GSP_ERROR_PATTERN if there are more banks than columns. */
GSP_API gsp_status gsp_complete(gsp_context *context, uint8_t *mask, int64_t rows, int64_t cols,
                                const gsp_pattern *pattern, const uint32_t *row_order,
                                int64_t *group);

/* ------------------------------------------------------------------ encode */

typedef enum gsp_dtype {
    GSP_FLOAT64 = 0,
    GSP_FLOAT32 = 1,
    GSP_FLOAT16 = 2,
    GSP_BFLOAT16 = 3,
    GSP_INT8 = 4,
} gsp_dtype;

/* Bytes of one value; 0 for an unknown dtype. */
GSP_API size_t gsp_dtype_size(gsp_dtype dtype);

/* A compact matrix, as a view of arrays that somebody else owns. docs/FORMAT.md says what each
 * holds.
 *   GS         values [units, banks], indices [units, banks], indptr [groups + 1]; a unit is a bundle
 *   block      values [units, block_rows, block_cols], indices [units] (block columns), indptr [block rows + 1]
 *   irregular  values [units], indices [units] (columns), indptr [rows + 1]; a unit is a nonzero
 *   N:M        values [units], packed positions, indptr [rows + 1]; a unit is a slot */
typedef struct gsp_matrix {
    gsp_pattern pattern;
    int64_t rows, cols;
    gsp_dtype dtype;
    uint32_t index_bytes; /* 1, 2 or 4; N:M: bits of a position (2, 4 or 8) */
    uint64_t units;
    const void *values;
    const void *indices;
    const uint32_t *indptr;
    const uint32_t *row_order; /* rows: grouped position -> row; NULL without scatter */
    const float *scales;       /* rows; int8 only, else NULL */
} gsp_matrix;

/* Bytes of an index (bits of a position for N:M) in a matrix with so many columns. */
GSP_API uint32_t gsp_index_bytes(const gsp_pattern *pattern, int64_t cols);

/* Lengths of the arrays of a matrix, in bytes. */
typedef struct gsp_lengths {
    size_t values, indices, indptr, row_order, scales;
} gsp_lengths;

/* What the lengths must be. Of the pointers, only whether row_order is NULL is looked at. */
GSP_API gsp_status gsp_sizes(const gsp_matrix *matrix, gsp_lengths *sizes);

/* First half of encoding: reads pattern, rows, cols, dtype and row_order of the matrix, and the
 * mask (rows x cols, nonzero bytes are kept); writes indptr [gsp_groups + 1], and units,
 * index_bytes and indptr of the matrix, so that gsp_sizes tells what to allocate. GSP_ERROR_MASK
 * if the mask is not valid: gsp_check says where. */
GSP_API gsp_status gsp_measure(gsp_context *context, const uint8_t *mask, gsp_matrix *matrix,
                               uint32_t *indptr);
/* Second half: fills values and indices from weights (rows x cols of the dtype, copied bit for
 * bit) and the mask that was measured. Bundles of a group come in ascending order of their
 * column in slot 0. */
GSP_API gsp_status gsp_encode(gsp_context *context, const void *weights, const uint8_t *mask,
                              const gsp_matrix *matrix, void *values, void *indices);

/* Where a matrix breaks a rule: the element of that array has `value`; what `bound` means, the
 * status says. */
typedef struct gsp_fault {
    const char *array; /* "values", "indices", "indptr", "row_order", "scales", or NULL */
    uint64_t element;  /* flat */
    int64_t value, bound;
} gsp_fault;

/* Checks all rules of docs/FORMAT.md and trusts nothing but the lengths; linear time. Reports
 * the first rule that is broken. `lengths` are those of the caller's arrays, fault may be NULL.
 * A matrix that passes may be given to every function below. */
GSP_API gsp_status gsp_validate(gsp_context *context, const gsp_matrix *matrix,
                                const gsp_lengths *lengths, gsp_fault *fault);

/* Dense weights, rows x cols: the values bit for bit, and 0 elsewhere. */
GSP_API gsp_status gsp_decode(gsp_context *context, const gsp_matrix *matrix, void *weights);
/* The column of every value, shaped as values; 0 where a slot stands for no element. */
GSP_API gsp_status gsp_columns(gsp_context *context, const gsp_matrix *matrix, uint32_t *columns);

/* -------------------------------------------------------------------- plan */

/* Instruction sets; of those that one processor may have, worst first. A backend may use the
 * kernels of those before it where it has none of its own. AVX-512 is F, BW, DQ and VL; GSP_AVX512
 * also uses VBMI, VNNI and BF16 where the CPU has them, GSP_AVX512_BASE never does. */
typedef enum gsp_backend {
    GSP_SCALAR = 0,
    GSP_AVX2 = 1,
    GSP_AVX512_BASE = 2,
    GSP_AVX512 = 3,
    GSP_NEON = 4, /* 64-bit Arm */
    GSP_AMX = 5, /* AVX-512 with VBMI2, and AMX with BF16 and INT8 */
} gsp_backend;
#define GSP_BACKENDS 6

/* "scalar", "avx2", "avx512_base", "avx512", "neon", "amx"; NULL for anything else. */
GSP_API const char *gsp_backend_name(gsp_backend backend);
/* Writes the backends that this CPU and this build can run, best first, scalar last; returns how
 * many. */
GSP_API int gsp_backends(gsp_backend backends[GSP_BACKENDS]);
/* Why a backend is not among them, in words; NULL if it is. AMX is one that the operating system
 * must allow: it is asked once, by the first call of this, gsp_backends or gsp_plan_create. */
GSP_API const char *gsp_backend_missing(gsp_backend backend);

/* A matrix laid out for one kernel. Immutable: any number of threads may multiply with one plan
 * at once. */
typedef struct gsp_plan gsp_plan;

typedef struct gsp_plan_info {
    const char *kernel;
    gsp_backend backend; /* that of the kernel: at most the one asked for, never GSP_AVX512_BASE */
    int columns; /* 1: for many samples, best adjacent; 0: x and y are best along cols and rows */
    int strided; /* 0: x must be contiguous along cols; 1: along either */
    int64_t most; /* samples up to which no plan for many is faster; 0 if this is one */
    uint64_t bytes; /* held by the plan */
    uint64_t entries; /* elements that the matrix stores */
    uint64_t slots; /* elements that the kernel multiplies, padding included */
    double efficiency; /* entries / slots; 1 if there are none */
    const char *next; /* the next best kernel that takes the matrix; NULL if there is none */
    double
        next_cost; /* what that would cost, as a multiple of the chosen one, by slots and costs */
} gsp_plan_info;

/* Lays a matrix out for products with n columns of x; few columns get what one does, which also
 * serves batch-major samples of any number. The matrix is validated, its arrays taken to be as long
 * as gsp_sizes says; the plan keeps nothing of it, but the context must outlive the plan.
 * GSP_ERROR_BACKEND if this machine cannot run the backend, GSP_ERROR_SHAPE if n is negative, or
 * what gsp_validate found. */
GSP_API gsp_status gsp_plan_create(gsp_context *context, const gsp_matrix *matrix,
                                   gsp_backend backend, int64_t n, gsp_plan **plan);
/* The same for x of another dtype:
 *   GSP_BFLOAT16, with a bfloat16 matrix: x, y, bias and residual are bfloat16 (uint16_t); sums are
 *       float, and rounded once.
 *   GSP_INT8, with an int8 matrix: x, y, bias and residual are float, and each sample of x is
 *       rounded to 8 bits. With low = min(0, least x), high = max(0, largest x), all in float:
 *           scale = max(high / 255 - low / 255, 2^-126), zero = rint(-low * (1 / scale)),
 *           q = clamp(rint(x * (1 / scale)) + zero, 0, 255),
 *           y = (float)(sum of value * (q - zero)) * scale * scales[row],
 *       with a sum that is exact. A sample with an infinite or NaN entry gives NaN only.
 *   GSP_FLOAT64 for a float64 matrix and GSP_FLOAT32 for all others: as gsp_plan_create.
 * GSP_ERROR_DTYPE for any other. */
GSP_API gsp_status gsp_plan_create_for(gsp_context *context, const gsp_matrix *matrix,
                                       gsp_backend backend, int64_t n, gsp_dtype x,
                                       gsp_plan **plan);
GSP_API void gsp_plan_destroy(gsp_plan *plan);
GSP_API gsp_plan_info gsp_plan_describe(const gsp_plan *plan);

/* ---------------------------------------------------------------- multiply */

typedef enum gsp_activation {
    GSP_NONE = 0,
    GSP_RELU = 1,
    GSP_SIGMOID = 2,
    GSP_TANH = 3,
    GSP_GELU = 4, /* x * Phi(x) by erf, not its tanh approximation */
    GSP_SILU = 5,
    GSP_CLAMP = 6, /* to low at least and high at most; a NaN stays one */
} gsp_activation;

/* What happens to W x: y = activation(W x + bias + residual). Zero-initialised: nothing. */
typedef struct gsp_epilogue {
    const void *bias; /* rows, or NULL */
    const void *residual; /* laid out as y, or NULL; must not overlap y */
    gsp_activation activation;
    double low, high; /* GSP_CLAMP; low <= high */
} gsp_epilogue;

/* Where x and y lie, in elements: x[col * x_col + sample * x_sample], y[row * y_row + sample *
 * y_sample]. */
typedef struct gsp_strides {
    int64_t x_col, x_sample, y_row, y_sample;
} gsp_strides;

/* y = activation(W x + bias + residual) for `samples` vectors. x, y, bias and residual are
 * double for a float64 matrix and float for all others, unless gsp_plan_create_for said something
 * else. A plan for columns (gsp_plan_describe)
 * needs one of x_col and x_sample to be 1, and one of y_row and y_sample; one that is not strided
 * needs x_col = 1: GSP_ERROR_SHAPE otherwise, as for an unknown activation or low > high. strides
 * NULL: x and y contiguous along the samples with a plan for columns, else along cols and rows. y
 * must not overlap x. Neither allocates nor fails once the arguments are right. Up to 400 KiB of
 * the stack are used. But for scalar kernels, an infinite or NaN entry of x may make NaN of rows
 * of its sample that do not use it, as in a dense product. */
GSP_API gsp_status gsp_multiply(const gsp_plan *plan, const void *x, int64_t samples,
                                const gsp_strides *strides, void *y, const gsp_epilogue *epilogue);

/* ---------------------------------------------------------------- convolve */

/* Images of one tensor: channel c of pixel (row, col) of image b is at b * image_step + c * channel_step + row *
 * row_step + col * col_step, in elements. */
typedef struct gsp_images {
    int64_t rows, cols; /* pixels; one-dimensional signals have one row */
    int64_t image_step, channel_step, row_step, col_step;
} gsp_images;

/* Which pixels of x meet which weight: that of tap (i, j) and channel c is in column (i * kernel[1] + j) * channels + c
 * of the matrix, and meets, for pixel (row, col) of y, pixel (row * stride[0] + i * dilation[0] - before[0], col *
 * stride[1] + j * dilation[1] - before[1]) of x, or 0 if there is none. Pairs are rows first, then cols. */
typedef struct gsp_convolution {
    int64_t images, channels; /* channels of x; y has as many as the matrix has rows */
    gsp_images x, y;
    int64_t kernel[2], stride[2], dilation[2], before[2];
    /* For each image, or NULL: columns of x that count, as if those behind were 0, and columns of y that are wanted:
     * those behind become 0. */
    const int64_t *x_cols, *y_cols;
    /* 1, with a bfloat16 matrix: x, y, bias and residual are bfloat16 (uint16_t); sums are float, and rounded once. */
    int bfloat16;
} gsp_convolution;

/* y = activation(x convolved with W + bias + residual); y, residual and x as in gsp_multiply, bias one for each
 * channel of y. The plan is one for columns (gsp_plan_describe), made for any number. channel_step or col_step of x
 * must be 1, and of y; GSP_ERROR_SHAPE otherwise, and if the matrix has not channels * kernel[0] * kernel[1] columns, a
 * size is negative or above 2^30, a kernel, stride or dilation is 0, or x_cols or y_cols are not within the images;
 * GSP_ERROR_DTYPE if bfloat16 is set and the matrix is another.
 * Nothing is copied but a few KiB at a time. Neither allocates nor fails once the arguments are right. */
GSP_API gsp_status gsp_convolve(const gsp_plan *plan, const gsp_convolution *convolution,
                                const void *x, void *y, const gsp_epilogue *epilogue);

/* --------------------------------------------------------------- recurrent */

/* With the sums a = W_ih x + input_bias and b = W_hh h + hidden_bias of each gate, gates in the order of their rows:
 *   LSTM    i, f, o = sigmoid(a + b), g = tanh(a + b)          order i f g o
 *           c = f * c + i * g,  h = o * tanh(c)
 *   GRU     r, z = sigmoid(a + b),  n = tanh(a + r * b)        order r z n
 *           h = (1 - z) * n + z * h */
typedef enum gsp_cell { GSP_LSTM = 0, GSP_GRU = 1 } gsp_cell;

/* Weights of one layer in one direction. A plan for columns (gsp_plan_describe) is best from some ten samples of a
 * product on: the input product has those of many steps, the hidden one those of one. A plan that
 * gsp_plan_create_for made for int8 rounds x, or h at each step, sample by sample; all else is float. */
typedef struct gsp_recurrent_layer {
    const gsp_plan
        *input; /* W_ih: gates * hidden rows; cols: features of x, or of the layer below */
    const gsp_plan *hidden; /* W_hh: gates * hidden rows, hidden cols */
    const void *input_bias, *hidden_bias; /* gates * hidden, or NULL */
} gsp_recurrent_layer;

/* Layers on top of one another: weights[layer * directions + direction]. Direction 1 runs from the end of each
 * sequence to its beginning; what both give lies side by side. All plans are of one context. */
typedef struct gsp_recurrent {
    gsp_cell cell;
    int64_t layers;
    int directions; /* 1 or 2 */
    const gsp_recurrent_layer *weights;
} gsp_recurrent;

/* Sequences in time order, longest first: step t has the first batch_sizes[t] of them, and its samples follow those
 * of step t - 1. Everything is double with float64 plans, else float. No two arrays may overlap, but h0 may be h_n,
 * and c0 c_n. */
typedef struct gsp_sequences {
    int64_t steps; /* at least 1 */
    int64_t batch; /* sequences */
    const int64_t
        *batch_sizes; /* steps, never rising, the first of them batch; NULL: batch at every step */
    const void *x; /* [samples][features] */
    const void *h0, *c0; /* [layers * directions][batch][hidden], or NULL for zeros; c0: LSTM */
    void *y; /* [samples][directions * hidden]: h of the last layer at every step */
    void *h_n, *c_n; /* as h0: the state behind each sequence's end; c_n: LSTM */
} gsp_sequences;

/* Bytes that gsp_recurrent_run needs; of the sequences, only their numbers are read. GSP_ERROR_SHAPE if something
 * does not fit together, GSP_ERROR_DTYPE if float64 plans are among others, or one is for x in bfloat16. */
GSP_API gsp_status gsp_recurrent_workspace(const gsp_recurrent *recurrent,
                                           const gsp_sequences *sequences, size_t *bytes);
/* Runs all steps of all layers. The workspace is the caller's, aligned to 64 bytes, and holds nothing between calls.
 * Nothing is allocated; the statuses are those of gsp_recurrent_workspace. */
GSP_API gsp_status gsp_recurrent_run(const gsp_recurrent *recurrent, const gsp_sequences *sequences,
                                     void *workspace);

#ifdef __cplusplus
}
#endif
#endif
