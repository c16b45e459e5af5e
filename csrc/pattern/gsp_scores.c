/* A look at all scores: are they possible, and where is the threshold that an irregular mask
 * would have. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gsp_task.h"

/* The keep-th largest score is found in two passes, by the upper and by the lower 16 bits of its
 * float, whose order is that of the scores (they are not negative; -0.0 counts as 0). The first
 * pass checks them too. */
#define GSPI_BINS 65536

static uint32_t bits_of(float score) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x7fffffffu;
}

typedef struct {
    const gsp_choice *choice;
    uint64_t *bins;  /* workers x GSPI_BINS */
    int64_t *fault;  /* per row: first bad column or -1 */
    uint32_t prefix; /* second pass: the upper bits that are looked at */
} scan;

static gsp_status scan_upper(void *argument, int64_t row, int worker) {
    scan *work = argument;
    const float *scores = work->choice->scores + row * work->choice->cols;
    uint64_t *bins = work->bins + (size_t)worker * GSPI_BINS;
    for (int64_t col = 0; col < work->choice->cols; col++) {
        if (!(scores[col] >= 0 && scores[col] <= FLT_MAX)) {
            work->fault[row] = col;
            return GSP_ERROR_SCORE;
        }
        bins[bits_of(scores[col]) >> 16]++;
    }
    return GSP_OK;
}

static gsp_status scan_lower(void *argument, int64_t row, int worker) {
    scan *work = argument;
    const float *scores = work->choice->scores + row * work->choice->cols;
    uint64_t *bins = work->bins + (size_t)worker * GSPI_BINS;
    for (int64_t col = 0; col < work->choice->cols; col++) {
        const uint32_t bits = bits_of(scores[col]);
        if (bits >> 16 == work->prefix) bins[bits & 0xffff]++;
    }
    return GSP_OK;
}

/* Adds a choice to a histogram. */
static gsp_status scan_scores(gsp_context *context, gsp_choice *choice, gspi_body body,
                              uint32_t prefix, uint64_t *bins) {
    const int workers = gspi_workers(context, choice->rows);
    scan work = {.choice = choice, .prefix = prefix};
    work.bins = gspi_calloc(context, (size_t)workers * GSPI_BINS, sizeof *work.bins);
    work.fault = gspi_alloc(context, (size_t)choice->rows, sizeof *work.fault);
    gsp_status status = work.bins && work.fault ? GSP_OK : GSP_ERROR_MEMORY;
    if (status == GSP_OK) {
        for (int64_t row = 0; row < choice->rows; row++) work.fault[row] = -1;
        status = gspi_parallel_on(context, workers, choice->rows, body, &work);
        for (int64_t row = 0; status == GSP_ERROR_SCORE && row < choice->rows; row++) {
            if (work.fault[row] < 0) continue;
            choice->fault = row * choice->cols + work.fault[row];
            break;
        }
        for (size_t i = 0; status == GSP_OK && i < (size_t)workers * GSPI_BINS; i++)
            bins[i % GSPI_BINS] += work.bins[i];
    }
    gspi_free(context, work.bins);
    gspi_free(context, work.fault);
    return status;
}

/* The bin of the rank-th largest (from 1), and its rank inside the bin; -1 if there are not so
 * many. */
static int64_t bin_of(const uint64_t *bins, uint64_t *rank) {
    for (int64_t bin = GSPI_BINS - 1; bin >= 0; bin--) {
        if (*rank <= bins[bin]) return bin;
        *rank -= bins[bin];
    }
    return -1;
}

/* The keep-th largest of all scores (infinity for none), after a check of them all. */
gsp_status gspi_find_threshold(gsp_context *context, gsp_choice *choices, size_t count,
                               int64_t keep, float *threshold) {
    uint64_t *bins = gspi_calloc(context, GSPI_BINS, sizeof *bins), rank = (uint64_t)keep;
    gsp_status status = bins != NULL ? GSP_OK : GSP_ERROR_MEMORY;
    for (size_t i = 0; i < count && status == GSP_OK; i++)
        status = scan_scores(context, &choices[i], scan_upper, 0, bins);
    *threshold = keep == 0 ? INFINITY : 0;
    if (status == GSP_OK && keep > 0) {
        const int64_t upper = bin_of(bins, &rank);
        memset(bins, 0, GSPI_BINS * sizeof *bins);
        for (size_t i = 0; i < count && status == GSP_OK && upper >= 0; i++)
            status = scan_scores(context, &choices[i], scan_lower, (uint32_t)upper, bins);
        const int64_t lower = upper < 0 ? -1 : bin_of(bins, &rank);
        if (status == GSP_OK && lower >= 0) {
            const uint32_t bits = (uint32_t)(upper << 16 | lower);
            memcpy(threshold, &bits, sizeof bits);
        }
    }
    gspi_free(context, bins);
    return status;
}

static gsp_status count_above(void *argument, int64_t row, int worker) {
    (void)worker;
    gspi_task *work = argument;
    const float *scores = work->choice->scores + row * work->choice->cols;
    int64_t above = 0, equal = 0;
    for (int64_t col = 0; col < work->choice->cols; col++) {
        above += scores[col] > work->threshold;
        equal += scores[col] == work->threshold;
    }
    work->above[row] = above;
    work->equal[row] = equal;
    return GSP_OK;
}

gsp_status gspi_count_above(gspi_task *work) {
    return gspi_parallel_on(work->context, work->workers, work->choice->rows, count_above, work);
}
