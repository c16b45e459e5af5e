/* The groups of one matrix, solved, in the row order in which they keep most. */
#include <math.h>

#include "gsp_task.h"

/* Sets the bundles that the first look at each group starts from: by its scores above the
 * threshold and its part of those equal to it. */
static void guess_bundles(const gspi_task *work, const gspi_grid *grid, gspi_ladder *ladders) {
    int64_t above = 0, equal = 0;
    for (int64_t row = 0; row < grid->rows; row++) {
        above += work->above[row];
        equal += work->equal[row];
    }
    const double part =
        equal == 0 ? 0 : fmax(0, fmin(1, (double)(work->share - above) / (double)equal));
    for (int64_t group = 0; group < grid->groups; group++) {
        double scores = 0;
        for (int64_t place = 0; place < gspi_rows_of_group(grid, group); place++) {
            const int64_t row = gspi_row(grid, group, place);
            scores += (double)work->above[row] + part * (double)work->equal[row];
        }
        ladders[group].bundles = (int64_t)(scores / (double)ladders[group].size + 0.5);
    }
}

static double total_value(const gspi_task *work) {
    double value = 0;
    for (int64_t i = 0; i < work->count; i++)
        value += gspi_ladder_value(&work->ladders[i], work->ladders[i].bundles);
    return value;
}

/* A survey of the matrix in one row order, solved for its share of the budget, and its score. */
static gsp_status survey_order(gsp_context *context, gspi_task *work, const uint32_t *row_order,
                               gsp_method method, gspi_survey **made, double *value) {
    gspi_grid grid = work->grid;
    grid.row_order = row_order;
    gspi_survey *survey;
    GSP_TRY(gspi_survey_create(context, &grid, work->index, work->choice->min_per_group,
                               work->choice->max_per_group, &survey));
    gspi_ladder *ladders = gspi_survey_ladders(survey);
    gsp_status status;
    if (method == GSP_GREEDY) {
        status = gspi_share_out(context, &grid, ladders, work->above, work->share);
        if (status == GSP_OK) status = gspi_survey_greedy(survey, value);
    } else {
        guess_bundles(work, &grid, ladders);
        status = gspi_survey_begin(survey);
        if (status == GSP_OK) {
            gspi_task one = *work;
            one.survey = survey;
            one.ladders = ladders;
            one.count = grid.groups;
            status = gspi_solve_one(&one, work->share);
            *value = total_value(&one);
        }
    }
    if (status == GSP_OK) *made = survey;
    else gspi_survey_destroy(survey);
    return status;
}

/* Gives the task its survey, and its row order if that is ours to choose. */
gsp_status gspi_survey_task(gsp_context *context, gspi_task *work, gsp_method method) {
    double best;
    if (!work->choice->scatter) {
        GSP_TRY(survey_order(context, work, work->choice->row_order, method, &work->survey, &best));
        work->row_order = work->choice->row_order;
    } else {
        uint32_t *tried = gspi_alloc(context, (size_t)work->choice->rows, sizeof *tried);
        gsp_status status = tried != NULL ? GSP_OK : GSP_ERROR_MEMORY;
        bool ascending = true;
        for (gspi_order order = 0; order < GSPI_ORDERS && status == GSP_OK; order++) {
            const bool descending = order == GSPI_ORDER_DESCENDING;
            if (descending && work->grid.rows % work->grid.group_rows == 0) continue;
            double value = 0;
            gspi_survey *survey = NULL;
            status = gspi_order_rows(context, work, order, ascending && !descending, tried);
            if (status == GSP_OK)
                status = survey_order(context, work, tried, method, &survey, &value);
            if (status != GSP_OK) break;
            if (work->survey == NULL || value > best) {
                best = value;
                ascending = !descending;
                gspi_survey_destroy(work->survey);
                work->survey = survey;
                uint32_t *swap = work->row_order;
                work->row_order = tried;
                tried = swap;
                if (tried == NULL) {
                    tried = gspi_alloc(context, (size_t)work->choice->rows, sizeof *tried);
                    if (tried == NULL) status = GSP_ERROR_MEMORY;
                }
            } else {
                gspi_survey_destroy(survey);
            }
        }
        gspi_free(context, tried);
        GSP_TRY(status);
    }
    work->ladders = gspi_survey_ladders(work->survey);
    work->count = work->grid.groups;
    return GSP_OK;
}
