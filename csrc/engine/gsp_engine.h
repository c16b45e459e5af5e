/* The processor of the paper as a model: a scratchpad in banks, an engine that gathers from it, a stream of weights, a
 * vector unit. docs/ENGINE.md says what is modelled and what is not. */
#ifndef GSP_ENGINE_H
#define GSP_ENGINE_H

#include "../gsp_internal.h"

/* All are at least 1, but latencies, which may be 0. */
typedef struct gspi_engine {
    int64_t lanes; /* slots of a bundle */
    int64_t banks; /* of the scratchpad, each a word of one element wide */
    int64_t ports; /* accesses that a bank serves in a cycle */
    int64_t bank_latency; /* cycles from an access to its data */
    int64_t gather_issue; /* slots that a gather can issue in a cycle */
    int64_t fma_lanes; /* products in a cycle */
    int64_t fma_latency; /* cycles from the last product to the store */
    int64_t dram_latency; /* cycles until a line begins to arrive; only without prefetch */
    double line_bytes; /* asked for at once; only without prefetch */
    double bytes_per_cycle; /* of the stream of weights, above 0 */
    gsp_layout layout; /* which bank an element of x or y is in */
    bool fused_gather; /* the gather reads its indices itself */
    bool prefetch; /* weights are streamed ahead */
} gspi_engine;

#define GSPI_NO_ROW UINT32_MAX

/* A matrix as the engine runs it. Slot (t, l) multiplies x[columns] and adds to y[rows]; GSPI_NO_ROW for a slot that
 * does nothing. Bundles indptr[g] to indptr[g + 1] belong to group g, which at the end stores the rows
 * store_rows[store_ptr[g] .. store_ptr[g + 1]). */
typedef struct gspi_stream {
    int64_t rows, cols, bundles, groups;
    const double *values; /* bundles x lanes */
    const uint32_t *columns; /* bundles x lanes */
    const uint32_t *slot_rows; /* bundles x lanes */
    const double *bytes; /* bundles: what is streamed for each */
    const int64_t *indptr; /* groups + 1 */
    const int64_t *store_ptr; /* groups + 1 */
    const uint32_t *store_rows; /* rows */
    int64_t reduction_steps; /* adds of a whole vector that sum the slots of one row */
    bool gathers; /* else operands lie side by side: one load, never a conflict */
    bool scatters; /* results are stored through the row order */
} gspi_stream;

/* Cycles. The units work at the same time, so that `total` is less than the sum of the others. */
typedef struct gspi_cycles {
    int64_t total;
    double stream; /* weights on their way */
    int64_t gather; /* issue of loads and gathers, of index loads too */
    int64_t conflicts; /* what gathers take longer because slots share a bank */
    int64_t fma, reduction, store;
    int64_t products; /* slots multiplied */
} gspi_cycles;

/* y = W x, [rows, n] from [cols, n], and the cycles of it, every bundle in order. GSP_ERROR_INDEX or
 * GSP_ERROR_INDPTR for a column, a row or an indptr out of range. */
gsp_status gspi_engine_run(gsp_context *context, const gspi_engine *engine,
                           const gspi_stream *stream, int64_t n, const double *x, double *y,
                           gspi_cycles *cycles);

#endif
