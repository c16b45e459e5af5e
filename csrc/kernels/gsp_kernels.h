/* What the files of csrc/kernels share: the plan, the list of kernels, and how a kernel is called. */
#ifndef GSP_KERNELS_H
#define GSP_KERNELS_H

#include "../gsp_internal.h"

/* How a plan lays a matrix out. */
typedef enum gspi_form {
    GSPI_STORED, /* the arrays of the format, copied */
    GSPI_ROWS, /* rows of columns and floats */
    GSPI_GATHER, /* strips of rows; quads of steps with 32-bit columns */
    GSPI_QUADS, /* register tables: four strips of rows side by side, one table for all four */
    GSPI_STRIPS, /* register tables: one strip of rows, four steps side by side, a table for each */
    GSPI_WIDE, /* blocks cut into runs of `lanes` columns of one row */
    GSPI_TALL, /* blocks cut into runs of `lanes` rows of one column */
} gspi_form;

typedef enum gspi_op { GSPI_SPMV, GSPI_SPMM } gspi_op;

/* One product. A SpMV kernel reads x[0 .. cols) and writes y[0 .. rows) of one sample. */
typedef struct gspi_product {
    const void *x;
    void *y;
    int64_t samples;
    int64_t x_col, y_row; /* SpMM: distance of rows of x and of y; samples are adjacent */
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
    int width; /* entries of a register table */
    float cost; /* of 64 slots; measured, only ratios within one backend count */
} gspi_entry;

/* The list, best first, ends in a row without a name. */
extern const gspi_entry gspi_kernels[];

struct gsp_plan {
    gsp_context *context;
    const gspi_entry *entry;
    /* Shape, pattern and dtype. Its arrays are the plan's own, NULL where the form has no use for them. */
    gsp_matrix matrix;
    /* What threads share: groups, rows, strips, fours of strips, or rows of blocks. */
    int64_t units;
    uint64_t bytes, entries, slots;

    /* All but GSPI_STORED. Unit u has the items [start[u], start[u + 1]). An item is
     *   GSPI_QUADS, GSPI_STRIPS: a quad: `lanes` words, each the table positions of four slots in four bytes, then
     *       4 x lanes floats; tables[item], or tables[4 * item ..][0 .. 4), says where the table of its four steps
     *       begins in x
     *   GSPI_ROWS: an element: a float, and its column in tables
     *   GSPI_GATHER: a quad: 4 x lanes columns, then 4 x lanes floats
     *   GSPI_WIDE, GSPI_TALL: a run: `lanes` floats for each part of the row of blocks, in packed[unit][part][run];
     *       a part is a row, or `lanes` rows; tables[item] is where the run begins in x */
    uint64_t *start;
    unsigned char *packed;
    uint32_t *tables;
    uint32_t *row_map; /* place -> row; NULL for the natural order */

    /* Whether the kernel's x is a copy: columns 0, x_banks, 2 * x_banks, .., then 1, 1 + x_banks, ..,
     * then zeros up to x_size. */
    bool copy_x;
    uint32_t x_banks;
    int64_t x_size;
};

/* Bytes of one quad. */
static inline size_t gspi_quad_bytes(gspi_form form, int lanes) {
    return (size_t)lanes * (form == GSPI_GATHER ? 32 : 20);
}

/* Parts of a row of blocks. */
static inline int64_t gspi_parts(const gsp_pattern *pattern, gspi_form form, int lanes) {
    return form == GSPI_WIDE ? pattern->block_rows : gspi_ceil_div(pattern->block_rows, lanes);
}

/* Copies of x that a plan may ask for fit the stack. */
#define GSPI_MAX_COPY 16384

#define GSP_KERNEL(function, ...) gspi_kernel function;
#include "kernels.inc"
#undef GSP_KERNEL

#endif
