/* The simulator. Four units in a row, each in order, with queues between them that never fill:
 *
 *     weights arrive -> operands are gathered -> products and sums -> rows are stored
 *
 * A unit begins with an item when it is free and the unit before is done with it. */
#include "gsp_engine.h"

typedef struct gspi_bank {
    int64_t cycle; /* in which it serves the slot that comes next, if that is there by then */
    int64_t served; /* slots in that cycle */
} gspi_bank;

gsp_status gspi_engine_access(gsp_context *context, int64_t banks, int64_t ports, int64_t issue,
                              int64_t accesses, int64_t slots, const uint16_t *banks_of,
                              int64_t *cycles) {
    gspi_bank *bank = gspi_calloc(context, (size_t)banks, sizeof *bank);
    GSP_CHECK(bank != NULL, GSP_ERROR_MEMORY);
    gsp_status status = GSP_OK;
    int64_t begin = 0;
    for (int64_t a = 0; a < accesses && status == GSP_OK; a++) {
        const uint16_t *slot = banks_of + a * slots;
        int64_t now = begin, issued = 0, end = begin;
        for (int64_t s = 0; s < slots; s++) {
            if (slot[s] == GSPI_NO_BANK) continue;
            if (slot[s] >= banks) {
                status = GSP_ERROR_INDEX;
                break;
            }
            if (issued == issue) {
                issued = 0;
                now++;
            }
            issued++;
            gspi_bank *const b = bank + slot[s];
            if (b->cycle < now) *b = (gspi_bank){.cycle = now, .served = 0};
            if (b->served == ports) *b = (gspi_bank){.cycle = b->cycle + 1, .served = 0};
            b->served++;
            end = gspi_max(end, b->cycle + 1);
        }
        cycles[a] = end - begin;
        begin = end;
    }
    gspi_free(context, bank);
    return status;
}

static int64_t round_up(double cycles) {
    const int64_t whole = (int64_t)cycles;
    return whole + ((double)whole < cycles);
}

typedef struct gspi_clock {
    double arrived; /* when the weights asked for are there */
    double asked; /* bytes of lines asked for, less those used; only without prefetch */
    int64_t gather, fma, store; /* when these units are free */
} gspi_clock;

/* One group of rows and at most `accumulators` columns: from its weights to its stores. */
static void run_group(const gspi_engine *engine, const gspi_stream *stream, int64_t group,
                      int64_t columns, bool first, gspi_clock *clock, gspi_cycles *cycles) {
    const double line = (double)engine->line_latency + engine->line_bytes / engine->bytes_per_cycle;
    const double rate = first ? engine->bytes_per_cycle : stream->again[group];
    for (int64_t t = stream->indptr[group]; t < stream->indptr[group + 1]; t++) {
        if (engine->prefetch || !first) {
            clock->arrived += stream->bytes[t] / rate;
            cycles->stream += stream->bytes[t] / rate;
        } else {
            /* A line is asked for when the bundle before is gathered. */
            for (clock->asked -= stream->bytes[t]; clock->asked < 0;
                 clock->asked += engine->line_bytes) {
                if (clock->arrived < (double)clock->gather) clock->arrived = (double)clock->gather;
                clock->arrived += line;
                cycles->stream += line;
            }
        }
        clock->gather = gspi_max(clock->gather, round_up(clock->arrived)) + stream->index_load;
        for (int64_t c = 0; c < columns; c++) {
            clock->gather += stream->load[t];
            clock->fma = gspi_max(clock->fma, clock->gather + engine->bank_latency);
            clock->fma += stream->multiply[t];
        }
        cycles->load += stream->index_load + columns * stream->load[t];
        cycles->fma += columns * stream->multiply[t];
    }
    if (stream->indptr[group] < stream->indptr[group + 1]) {
        clock->fma += columns * stream->reduction;
        cycles->reduction += columns * stream->reduction;
    }
    clock->store = gspi_max(clock->store, clock->fma + engine->fma_latency);
    clock->store += columns * stream->store[group];
    cycles->store += columns * stream->store[group];
}

gsp_status gspi_engine_run(const gspi_engine *engine, const gspi_stream *stream, int64_t n,
                           gspi_cycles *cycles) {
    GSP_CHECK(stream->indptr[0] == 0, GSP_ERROR_INDPTR);
    for (int64_t g = 0; g < stream->groups; g++)
        GSP_CHECK(stream->indptr[g] <= stream->indptr[g + 1], GSP_ERROR_INDPTR);
    GSP_CHECK(stream->indptr[stream->groups] == stream->bundles, GSP_ERROR_INDPTR);

    *cycles = (gspi_cycles){0};
    gspi_clock clock = {0};
    for (int64_t g = 0; g < stream->groups; g++)
        for (int64_t r = 0; r < stream->repeats[g]; r++)
            for (int64_t c = 0; c < n; c += engine->accumulators)
                run_group(engine, stream, g, gspi_min(engine->accumulators, n - c), c == 0, &clock,
                          cycles);
    cycles->total = clock.store;
    return GSP_OK;
}
