/* The groups of one matrix, each evaluated for a few numbers of bundles around the one that it
 * will get. Nothing but values and prices is kept of an evaluation: from the prices, the state
 * is found again in the time that sorting the group takes. */
#include <math.h>
#include <string.h>

#include "gsp_choose.h"

/* Evaluations of one group for first, first + 1, ... bundles. */
typedef struct {
    double *value, *bound, *gain; /* capacity each; gain[i] = value[i + 1] - value[i] */
    double *prices;               /* capacity x (group_rows + banks) */
    int64_t capacity;
} window;

struct gspi_survey {
    gsp_context *context;
    gspi_grid grid;
    gspi_ladder *ladders;
    window *windows;
    gspi_flow **flows; /* one per worker */
    int workers;
    double *greedy; /* per group, only while gspi_survey_greedy runs */
    uint8_t *mask;  /* only while marking */
};

gspi_ladder *gspi_survey_ladders(gspi_survey *survey) { return survey->ladders; }

static size_t price_count(const gspi_survey *survey) {
    return (size_t)(survey->grid.group_rows + survey->grid.banks);
}

/* Room for one more evaluation, below the first or above the last. */
static gsp_status make_room(gspi_survey *survey, int64_t group, bool below) {
    window *old = &survey->windows[group];
    const gspi_ladder *ladder = &survey->ladders[group];
    const int64_t used = ladder->last - ladder->first + 1;
    const size_t stride = price_count(survey);
    if (used == old->capacity) {
        const int64_t capacity = used + gspi_max(3, used / 2);
        const size_t room = (size_t)capacity;
        window grown = {
            .value = gspi_alloc(survey->context, room, 3 * sizeof(double)),
            .prices = gspi_alloc(survey->context, room, stride * sizeof(double)),
            .capacity = capacity,
        };
        if (grown.value == NULL || grown.prices == NULL) {
            gspi_free(survey->context, grown.value);
            gspi_free(survey->context, grown.prices);
            return GSP_ERROR_MEMORY;
        }
        grown.bound = grown.value + capacity;
        grown.gain = grown.bound + capacity;
        if (used > 0) {
            memcpy(grown.value, old->value, (size_t)used * sizeof(double));
            memcpy(grown.bound, old->bound, (size_t)used * sizeof(double));
            memcpy(grown.prices, old->prices, (size_t)used * stride * sizeof(double));
        }
        gspi_free(survey->context, old->value);
        gspi_free(survey->context, old->prices);
        *old = grown;
    }
    if (below && used > 0) {
        memmove(old->value + 1, old->value, (size_t)used * sizeof(double));
        memmove(old->bound + 1, old->bound, (size_t)used * sizeof(double));
        memmove(old->prices + stride, old->prices, (size_t)used * stride * sizeof(double));
    }
    return GSP_OK;
}

/* Solves the loaded group for one more number of bundles and enters it. */
static gsp_status evaluate(gspi_survey *survey, gspi_flow *flow, int64_t group, int64_t bundles) {
    gspi_ladder *ladder = &survey->ladders[group];
    window *known = &survey->windows[group];
    const bool below = ladder->first <= ladder->last && bundles < ladder->first;
    GSP_TRY(make_room(survey, group, below));
    if (ladder->first > ladder->last) ladder->first = ladder->last = bundles;
    else if (below) ladder->first = bundles;
    else ladder->last = bundles;

    const int64_t at = bundles - ladder->first;
    gspi_flow_solve(flow, bundles);
    known->value[at] = gspi_flow_value(flow);
    known->bound[at] = gspi_flow_bound(flow);
    double *prices = known->prices + (size_t)at * price_count(survey);
    gspi_flow_prices(flow, prices, prices + survey->grid.group_rows);

    /* Concave by theory; rounding must not make it otherwise. */
    double before = INFINITY;
    for (int64_t i = 0; i < ladder->last - ladder->first; i++)
        before = known->gain[i] = fmin(before, known->value[i + 1] - known->value[i]);
    ladder->gain = known->gain;
    ladder->value = known->value[0];
    return GSP_OK;
}

static void load_near(gspi_survey *survey, gspi_flow *flow, int64_t group, int64_t bundles) {
    const gspi_ladder *ladder = &survey->ladders[group];
    const int64_t at = gspi_max(0, gspi_min(bundles, ladder->last) - ladder->first);
    gspi_flow_load(flow, group,
                   survey->windows[group].prices + (size_t)at * price_count(survey) +
                       survey->grid.group_rows);
}

static gsp_status begin_group(void *argument, int64_t group, int worker) {
    gspi_survey *survey = argument;
    gspi_flow *flow = survey->flows[worker];
    const gspi_ladder *ladder = &survey->ladders[group];
    const int64_t guess = gspi_max(ladder->low, gspi_min(ladder->high, ladder->bundles));
    gspi_flow_load(flow, group, NULL);
    GSP_TRY(evaluate(survey, flow, group, guess));
    if (guess < ladder->high) GSP_TRY(evaluate(survey, flow, group, guess + 1));
    if (guess > ladder->low) GSP_TRY(evaluate(survey, flow, group, guess - 1));
    return GSP_OK;
}

static gsp_status grow_group(void *argument, int64_t group, int worker) {
    gspi_survey *survey = argument;
    gspi_flow *flow = survey->flows[worker];
    gspi_ladder *ladder = &survey->ladders[group];
    /* Geometrically, so that a bad guess costs few rounds. */
    const int64_t steps = gspi_max(1, (ladder->last - ladder->first + 1) / 4);
    if (ladder->above) {
        load_near(survey, flow, group, ladder->last);
        for (int64_t i = 0; i < steps && ladder->last < ladder->high; i++)
            GSP_TRY(evaluate(survey, flow, group, ladder->last + 1));
    }
    if (ladder->below) {
        load_near(survey, flow, group, ladder->first);
        for (int64_t i = 0; i < steps && ladder->first > ladder->low; i++)
            GSP_TRY(evaluate(survey, flow, group, ladder->first - 1));
    }
    ladder->above = ladder->below = false;
    return GSP_OK;
}

static gsp_status mark_group(void *argument, int64_t group, int worker) {
    gspi_survey *survey = argument;
    gspi_flow *flow = survey->flows[worker];
    const int64_t bundles = survey->ladders[group].bundles;
    if (survey->windows[group].capacity > 0) {
        load_near(survey, flow, group, bundles);
        gspi_flow_solve(flow, bundles);
    } else {
        gspi_flow_load(flow, group, NULL);
        gspi_flow_greedy(flow, bundles);
    }
    gspi_flow_mark(flow, survey->mask);
    return GSP_OK;
}

static gsp_status value_greedy_group(void *argument, int64_t group, int worker) {
    gspi_survey *survey = argument;
    gspi_flow *flow = survey->flows[worker];
    gspi_flow_load(flow, group, NULL);
    gspi_flow_greedy(flow, survey->ladders[group].bundles);
    survey->greedy[group] = gspi_flow_value(flow);
    return GSP_OK;
}

gsp_status gspi_survey_create(gsp_context *context, const gspi_grid *grid, int64_t choice_index,
                              int64_t low, int64_t high, gspi_survey **made) {
    const size_t groups = (size_t)grid->groups;
    gspi_survey *survey = gspi_calloc(context, 1, sizeof *survey);
    GSP_CHECK(survey != NULL, GSP_ERROR_MEMORY);
    survey->grid = *grid;
    survey->context = context;
    survey->workers = gspi_workers(context, grid->groups);
    survey->ladders = gspi_calloc(context, groups, sizeof *survey->ladders);
    survey->windows = gspi_calloc(context, groups, sizeof *survey->windows);
    survey->flows = gspi_calloc(context, (size_t)survey->workers, sizeof *survey->flows);
    bool complete = survey->ladders && survey->windows && survey->flows;
    for (int worker = 0; worker < survey->workers && complete; worker++) {
        survey->flows[worker] = gspi_flow_create(context, &survey->grid);
        complete = survey->flows[worker] != NULL;
    }
    if (!complete) {
        gspi_survey_destroy(survey);
        return GSP_ERROR_MEMORY;
    }
    for (int64_t group = 0; group < grid->groups; group++) {
        const int64_t most =
            gsp_max_bundles(&grid->pattern, grid->cols, gspi_rows_of_group(grid, group));
        survey->ladders[group] = (gspi_ladder){
            .choice = choice_index,
            .group = group,
            .size = gspi_bundle_size(grid, group),
            .low = low,
            .high = high < 0 ? most : gspi_min(high, most),
            .first = 0,
            .last = -1,
        };
    }
    *made = survey;
    return GSP_OK;
}

gsp_status gspi_survey_begin(gspi_survey *survey) {
    return gspi_parallel_on(survey->context, survey->workers, survey->grid.groups, begin_group,
                            survey);
}

gsp_status gspi_survey_greedy(gspi_survey *survey, double *value) {
    survey->greedy =
        gspi_alloc(survey->context, (size_t)survey->grid.groups, sizeof *survey->greedy);
    GSP_CHECK(survey->greedy != NULL, GSP_ERROR_MEMORY);
    const gsp_status status = gspi_parallel_on(survey->context, survey->workers,
                                               survey->grid.groups, value_greedy_group, survey);
    *value = 0;
    for (int64_t group = 0; status == GSP_OK && group < survey->grid.groups; group++)
        *value += survey->greedy[group];
    gspi_free(survey->context, survey->greedy);
    survey->greedy = NULL;
    return status;
}

void gspi_survey_destroy(gspi_survey *survey) {
    if (survey == NULL) return;
    gsp_context *context = survey->context;
    for (int64_t group = 0; survey->windows != NULL && group < survey->grid.groups; group++) {
        gspi_free(context, survey->windows[group].value);
        gspi_free(context, survey->windows[group].prices);
    }
    for (int worker = 0; survey->flows != NULL && worker < survey->workers; worker++)
        gspi_flow_destroy(context, survey->flows[worker]);
    gspi_free(context, survey->ladders);
    gspi_free(context, survey->windows);
    gspi_free(context, survey->flows);
    gspi_free(context, survey);
}

gsp_status gspi_survey_grow(gspi_survey *survey, bool *grown) {
    *grown = false;
    for (int64_t group = 0; group < survey->grid.groups; group++)
        *grown |= survey->ladders[group].above || survey->ladders[group].below;
    return *grown ? gspi_parallel_on(survey->context, survey->workers, survey->grid.groups,
                                     grow_group, survey)
                  : GSP_OK;
}

gsp_status gspi_survey_mark(gspi_survey *survey, uint8_t *mask) {
    survey->mask = mask;
    return gspi_parallel_on(survey->context, survey->workers, survey->grid.groups, mark_group,
                            survey);
}

size_t gspi_survey_entries(const gspi_survey *survey) {
    size_t entries = 0;
    for (int64_t group = 0; group < survey->grid.groups; group++)
        entries += (size_t)(survey->ladders[group].last - survey->ladders[group].first + 1);
    return entries;
}

void gspi_survey_prices(const gspi_survey *survey, gsp_prices *prices) {
    const size_t rows = (size_t)survey->grid.group_rows, banks = (size_t)survey->grid.banks;
    size_t at = 0;
    for (int64_t group = 0; group < survey->grid.groups; group++) {
        const gspi_ladder *ladder = &survey->ladders[group];
        const window *known = &survey->windows[group];
        for (int64_t i = 0; i <= ladder->last - ladder->first; i++, at++) {
            const double *from = known->prices + (size_t)i * (rows + banks);
            prices->group[at] = group;
            prices->bundles[at] = ladder->first + i;
            prices->value[at] = known->value[i];
            prices->bound[at] = known->bound[i];
            memcpy(prices->row + at * rows, from, rows * sizeof(double));
            memcpy(prices->bank + at * banks, from + rows, banks * sizeof(double));
        }
    }
}
