/* gspattern: load-balanced gather-scatter (GS) patterns for sparse neural networks.
 *
 *     scores --choose--> mask --train--> weights --encode--> matrix --plan--> plan --multiply--> y
 *
 * The one public header, in the order of that line. Rules that hold for every function:
 *   - a status is returned, GSP_OK or the first thing that was wrong; outputs are only defined after GSP_OK;
 *   - the caller owns every array that it passes; what the library allocates has a *_destroy of its own;
 *   - matrices are rows x cols in C order; rows are outputs (M), cols are inputs (K), n counts columns of x;
 *   - nothing prints, nothing aborts, and there is no global state: memory and threads belong to a gsp_context.
 * The terms (bank, row group, bundle, row order) are those of arXiv 2112.10898; docs/FORMAT.md defines them.
 */
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
    GSP_ERROR_INDPTR = 8,      /* indptr does not start at 0, falls, or does not end at the number of bundles */
    GSP_ERROR_INDEX = 9,       /* an index points outside its bank or the matrix */
    GSP_ERROR_BANKS = 10,      /* two slots of a bundle share a bank or stand in the wrong slot */
    GSP_ERROR_DUPLICATE = 11,  /* one element is stored twice */
    GSP_ERROR_PADDING = 12,    /* a slot that must be empty is not 0 */
    GSP_ERROR_DTYPE = 13,      /* the dtype is unknown or not possible here */
    GSP_ERROR_BACKEND = 14,    /* this CPU or this build cannot run that backend */
} gsp_status;

/* A constant English phrase, never NULL. */
GSP_API const char *gsp_status_text(gsp_status status);

/* ----------------------------------------------------------------- context */

/* Where memory comes from. allocate returns NULL on failure; release accepts NULL. */
typedef struct gsp_allocator {
    void *(*allocate)(void *user, size_t bytes);
    void (*release)(void *user, void *memory);
    void *user;
} gsp_allocator;

typedef struct gsp_context gsp_context;

/* allocator NULL means malloc and free. One context may be used from several threads at once. */
GSP_API gsp_status gsp_context_create(const gsp_allocator *allocator, gsp_context **context);
GSP_API void gsp_context_destroy(gsp_context *context);
/* threads >= 1. Results never depend on it. */
GSP_API gsp_status gsp_context_set_threads(gsp_context *context, int threads);
GSP_API int gsp_context_threads(const gsp_context *context);

/* ----------------------------------------------------------------- pattern */

typedef enum gsp_kind { GSP_GS = 0, GSP_IRREGULAR = 1, GSP_BLOCK = 2, GSP_NM = 3 } gsp_kind;
typedef enum gsp_layout { GSP_INTERLEAVED = 0, GSP_CONTIGUOUS = 1 } gsp_layout;

/* Only the members of the kind are read. */
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
/* First column of a bank of the contiguous layout: floor(bank * cols / banks); bank may be banks. */
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
    uint32_t *row_order;    /* rows; written if scatter, else may be NULL */
    uint32_t *bundles;      /* gsp_groups; GS only, else may be NULL */
    double score;           /* sum of the scores kept */
    int64_t kept;
    int64_t least, most;    /* what the pattern can keep, written with GSP_ERROR_BUDGET too */
    int64_t fault;          /* flat index of the first bad score, with GSP_ERROR_SCORE */
} gsp_choice;

/* Dual prices that prove a choice optimal. Entry e is for group[e] holding bundles[e] bundles:
 * any such group keeps at most
 *     sum_r bundles * per_row * row[r] + sum_b bundles * bank[b] + sum max(0, score - row[r] - bank[b]). */
typedef struct gsp_prices {
    size_t count;
    int64_t rows_per_group, banks;
    int64_t *matrix;  /* which choice */
    int64_t *group;
    int64_t *bundles;
    double *row;      /* count x rows_per_group, by place in the group */
    double *bank;     /* count x banks */
} gsp_prices;

/* Fills in masks that keep at most `keep` nonzeros in all.
 * One matrix: exact keeps the largest total score over all valid masks (of the given or chosen row order)
 * with more than keep - bundle size and at most keep nonzeros. Several: bundles in order of score per
 * nonzero until the next does not fit. prices may be NULL; it is filled for one GS matrix and `exact`. */
GSP_API gsp_status gsp_choose(gsp_context *context, gsp_choice *choices, size_t count, int64_t keep,
                              gsp_method method, gsp_prices **prices);
GSP_API void gsp_prices_destroy(gsp_context *context, gsp_prices *prices);

/* Where a mask breaks its pattern: this row (or bank, or block, or window of m) of this group holds
 * `count` nonzeros where `expected` would be right. The other of row and bank is -1. */
typedef struct gsp_violation {
    int64_t group, row, bank, count, expected;
} gsp_violation;

/* Counts all violations and writes the first `capacity` of them. row_order may be NULL (natural order).
 * Linear in rows * cols. */
GSP_API gsp_status gsp_check(gsp_context *context, const uint8_t *mask, int64_t rows, int64_t cols,
                             const gsp_pattern *pattern, const uint32_t *row_order,
                             gsp_violation *violations, size_t capacity, size_t *count);

/* Adds the fewest elements that make `mask` valid for the pattern, in place; bundles (may be NULL) as above.
 * GSP_ERROR_MASK with the first group that cannot hold its elements in *group. */
GSP_API gsp_status gsp_complete(gsp_context *context, uint8_t *mask, int64_t rows, int64_t cols,
                                const gsp_pattern *pattern, const uint32_t *row_order, int64_t *group);

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

/* A compact matrix, as a view of arrays that somebody else owns. docs/FORMAT.md says what each holds.
 *   GS         values [units, banks], indices [units, banks], indptr [groups + 1]; a unit is a bundle
 *   block      values [units, block_rows, block_cols], indices [units] (block columns), indptr [block rows + 1]
 *   irregular  values [units], indices [units] (columns), indptr [rows + 1]; a unit is a nonzero
 *   N:M        values [units], packed positions, indptr [rows + 1]; a unit is a slot
 */
typedef struct gsp_matrix {
    gsp_pattern pattern;
    int64_t rows, cols;
    gsp_dtype dtype;
    uint32_t index_bytes; /* 1, 2 or 4; N:M: bits of a position (2, 4 or 8) */
    uint64_t units;
    const void *values;
    const void *indices;
    const uint32_t *indptr;
    const uint32_t *row_order; /* rows, a permutation: grouped position -> row; NULL without scatter */
    const float *scales;       /* rows; int8 only, else NULL */
} gsp_matrix;

/* @encode */

/* -------------------------------------------------------------------- plan */

/* @plan */

/* ---------------------------------------------------------------- multiply */

/* @multiply */

#ifdef __cplusplus
}
#endif
#endif
