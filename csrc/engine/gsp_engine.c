/* The simulator. Four units in a row, each in order, with queues between them that never fill:
 *
 *     weights arrive -> operands are gathered -> products and sums -> rows are stored
 *
 * A unit begins with an item when it is free and the unit before is done with it. */
#include "gsp_engine.h"

typedef struct gspi_run {
    const gspi_engine *engine;
    gsp_pattern mapping;
    int64_t *hits; /* banks; all 0 between two calls */
} gspi_run;

/* Most accesses to one bank among count elements of a vector of `length`, in cycles. */
static int64_t bank_cycles(const gspi_run *run, const uint32_t *element, const uint32_t *there,
                           int64_t count, int64_t length) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        if (there[i] == GSPI_NO_ROW) continue;
        const int64_t hits = ++run->hits[gsp_bank_of(&run->mapping, length, element[i])];
        most = gspi_max(most, hits);
    }
    for (int64_t i = 0; i < count; i++)
        if (there[i] != GSPI_NO_ROW) run->hits[gsp_bank_of(&run->mapping, length, element[i])] = 0;
    return gspi_ceil_div(most, run->engine->ports);
}

static gsp_status check(const gspi_engine *engine, const gspi_stream *stream) {
    const int64_t slots = stream->bundles * engine->lanes;
    for (int64_t i = 0; i < slots; i++) {
        if (stream->slot_rows[i] == GSPI_NO_ROW) continue;
        GSP_CHECK(stream->slot_rows[i] < stream->rows, GSP_ERROR_INDEX);
        GSP_CHECK(stream->columns[i] < stream->cols, GSP_ERROR_INDEX);
    }
    GSP_CHECK(stream->indptr[0] == 0 && stream->store_ptr[0] == 0, GSP_ERROR_INDPTR);
    for (int64_t g = 0; g < stream->groups; g++) {
        GSP_CHECK(stream->indptr[g] <= stream->indptr[g + 1], GSP_ERROR_INDPTR);
        GSP_CHECK(stream->store_ptr[g] <= stream->store_ptr[g + 1], GSP_ERROR_INDPTR);
    }
    GSP_CHECK(stream->indptr[stream->groups] == stream->bundles, GSP_ERROR_INDPTR);
    GSP_CHECK(stream->store_ptr[stream->groups] == stream->rows, GSP_ERROR_INDPTR);
    for (int64_t i = 0; i < stream->rows; i++)
        GSP_CHECK(stream->store_rows[i] < stream->rows, GSP_ERROR_INDEX);
    return GSP_OK;
}

static int64_t round_up(double cycles) {
    const int64_t whole = (int64_t)cycles;
    return whole + ((double)whole < cycles);
}

gsp_status gspi_engine_run(gsp_context *context, const gspi_engine *engine,
                           const gspi_stream *stream, int64_t n, const double *x, double *y,
                           gspi_cycles *cycles) {
    GSP_TRY(check(engine, stream));
    gspi_run run = {.engine = engine,
                    .mapping = {.kind = GSP_GS,
                                .banks = (uint32_t)engine->banks,
                                .per_row = 1,
                                .layout = engine->layout}};
    run.hits = gspi_calloc(context, (size_t)engine->banks, sizeof *run.hits);
    GSP_CHECK(run.hits != NULL, GSP_ERROR_MEMORY);

    *cycles = (gspi_cycles){0};
    gspi_clear(y, (size_t)(stream->rows * n) * sizeof *y);
    const int64_t lanes = engine->lanes;
    const double line_cycles =
        (double)engine->dram_latency + engine->line_bytes / engine->bytes_per_cycle;
    double arrived = 0, bytes = 0, fetched = 0;
    int64_t gather_free = 0, fma_free = 0, store_free = 0;
    for (int64_t g = 0; g < stream->groups; g++) {
        for (int64_t t = stream->indptr[g]; t < stream->indptr[g + 1]; t++) {
            const double *value = stream->values + t * lanes;
            const uint32_t *column = stream->columns + t * lanes;
            const uint32_t *row = stream->slot_rows + t * lanes;

            bytes += stream->bytes[t];
            if (engine->prefetch) {
                arrived = bytes / engine->bytes_per_cycle;
                cycles->stream = arrived;
            } else {
                for (; fetched < bytes; fetched += engine->line_bytes) {
                    if (arrived < (double)gather_free) arrived = (double)gather_free;
                    arrived += line_cycles;
                    cycles->stream += line_cycles;
                }
            }

            int64_t active = 0;
            for (int64_t l = 0; l < lanes; l++) active += row[l] != GSPI_NO_ROW;
            int64_t issue = 1, conflicts = 0;
            if (stream->gathers) {
                issue = gspi_max(1, gspi_ceil_div(active, engine->gather_issue));
                conflicts =
                    gspi_max(0, bank_cycles(&run, column, row, lanes, stream->cols) - issue);
            }
            const int64_t index_load = stream->gathers && !engine->fused_gather;
            const int64_t multiply = gspi_max(1, gspi_ceil_div(active, engine->fma_lanes));

            gather_free = gspi_max(gather_free, round_up(arrived)) + index_load;
            cycles->gather += index_load;
            for (int64_t c = 0; c < n; c++) {
                gather_free += issue + conflicts;
                fma_free = gspi_max(fma_free, gather_free + engine->bank_latency) + multiply;
                for (int64_t l = 0; l < lanes; l++)
                    if (row[l] != GSPI_NO_ROW) y[row[l] * n + c] += value[l] * x[column[l] * n + c];
            }
            cycles->gather += n * issue;
            cycles->conflicts += n * conflicts;
            cycles->fma += n * multiply;
            cycles->products += n * active;
        }

        if (stream->indptr[g] < stream->indptr[g + 1]) {
            fma_free += n * stream->reduction_steps;
            cycles->reduction += n * stream->reduction_steps;
        }
        store_free = gspi_max(store_free, fma_free + engine->fma_latency);
        for (int64_t p = stream->store_ptr[g]; p < stream->store_ptr[g + 1]; p += lanes) {
            const int64_t count = gspi_min(lanes, stream->store_ptr[g + 1] - p);
            const uint32_t *stored = stream->store_rows + p;
            int64_t cost = 1;
            if (stream->scatters)
                cost = gspi_max(1, bank_cycles(&run, stored, stored, count, stream->rows));
            store_free += n * cost;
            cycles->store += n * cost;
        }
    }
    cycles->total = store_free;
    gspi_free(context, run.hits);
    return GSP_OK;
}
