/* The processor of the paper as a model: a scratchpad in banks, an engine that gathers from it, a stream of weights, a
 * vector unit. docs/ENGINE.md says what is modelled and what is not. */
#ifndef GSP_ENGINE_H
#define GSP_ENGINE_H

#include "../gsp_internal.h"

/* A slot that accesses nothing. */
#define GSPI_NO_BANK UINT16_MAX

/* Cycles in which banks serve each of many accesses, gathers or scatters. In each, the slots that have a bank are
 * issued in their order, `issue` in a cycle; a bank serves `ports` in a cycle, first come first served; the next
 * access begins when all slots of the one before are served. banks_of is accesses x slots, each below `banks` or
 * GSPI_NO_BANK, cycles [accesses]. GSP_ERROR_INDEX for another bank. */
gsp_status gspi_engine_access(gsp_context *context, int64_t banks, int64_t ports, int64_t issue,
                              int64_t accesses, int64_t slots, const uint16_t *banks_of,
                              int64_t *cycles);

/* All but latencies are at least 1. */
typedef struct gspi_engine {
    int64_t bank_latency; /* cycles from an access to its data */
    int64_t fma_latency; /* cycles from the last product to its sum */
    int64_t accumulators; /* columns of x that a group of rows is multiplied with at once */
    int64_t line_latency; /* cycles until a line begins to arrive; only without prefetch */
    double line_bytes; /* asked for at once; only without prefetch */
    double bytes_per_cycle; /* of the stream of weights, above 0 */
    bool prefetch; /* weights are streamed ahead */
} gspi_engine;

/* A matrix as the engine runs it. Bundles indptr[g] to indptr[g + 1] belong to group g, of which there are repeats[g]
 * one after the other; each ends with a reduction and the stores of its rows. Cycles are those for one column of x. */
typedef struct gspi_stream {
    int64_t bundles, groups;
    const int64_t *load; /* bundles: cycles of loads or a gather */
    const int64_t *multiply; /* bundles: cycles of products */
    const double *bytes; /* bundles: what is streamed */
    const int64_t *indptr; /* groups + 1 */
    const int64_t *repeats; /* groups */
    const int64_t *store; /* groups: cycles of stores */
    const double
        *again; /* groups: bytes per cycle when a group's weights are used again, above 0 */
    int64_t reduction; /* cycles that sum the slots of the rows of a group */
    int64_t index_load; /* cycles that load the indices of a bundle, for all columns at once */
} gspi_stream;

/* How long the units are busy. They work at the same time, so that `total` is less than their sum. */
typedef struct gspi_cycles {
    int64_t total;
    double stream;
    int64_t load, fma, reduction, store;
} gspi_cycles;

/* The cycles of a product with n columns, every bundle in order. GSP_ERROR_INDPTR for an indptr out of range. */
gsp_status gspi_engine_run(const gspi_engine *engine, const gspi_stream *stream, int64_t n,
                           gspi_cycles *cycles);

#endif
