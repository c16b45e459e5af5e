/* One matrix on its way through gsp_choose: what gsp_mask.c, gsp_scores.c, gsp_ladders.c,
 * gsp_order.c, gsp_budget.c and gsp_scatter.c share. */
#ifndef GSP_TASK_H
#define GSP_TASK_H

#include "gsp_choose.h"

/* One choice at work. */
typedef struct {
    gsp_choice *choice;
    int64_t index; /* which of the choices */
    gsp_context *context;
    int workers; /* threads for its rows */
    gspi_grid grid;
    int64_t *bank_begin;

    float threshold;     /* what an irregular mask of the whole budget would keep from on */
    int64_t *above;      /* per row: scores above the threshold */
    int64_t *equal;      /* per row: scores equal to it */
    int64_t share;       /* nonzeros that the threshold gives this choice */
    uint32_t *row_order; /* order of the groups: chosen, given or NULL */

    gspi_survey *survey;   /* groups of several rows that keep per_row < banks each */
    gspi_ladder *ladders;  /* the survey's, or own */
    int64_t count;         /* of ladders */
    double *gains;         /* of own ladders */
    float *sorted;         /* per worker: the cells of a row */
    int32_t *counts;       /* per worker: 2 x banks */
    bool alone;            /* irregular, and the threshold is the whole answer */
    int64_t spare, excess; /* nonzeros by which whole bundles miss max_keep and min_keep */

    double *row_score; /* per row: what its mask keeps */
    int64_t *row_kept;
} gspi_task;

static inline bool gspi_is_empty(const gsp_choice *choice) {
    return choice->rows == 0 || choice->cols == 0;
}

/* One matrix whose budget is all that limits it. */
static inline bool gspi_is_alone(const gsp_choice *choices, size_t count, gsp_kind kind) {
    return count == 1 && choices->pattern.kind == kind && choices->min_keep <= 0 &&
           choices->max_keep < 0;
}

static inline bool gspi_is_flow(const gspi_task *work) {
    return work->choice->pattern.kind == GSP_GS && work->grid.per_row < work->grid.banks;
}

/* -------------------------------------------------------------- gsp_scores.c */

/* The keep-th largest of all scores (infinity for none), after a check of them all. */
gsp_status gspi_find_threshold(gsp_context *context, gsp_choice *choices, size_t count,
                               int64_t keep, float *threshold);
/* Fills in above and equal of every row. */
gsp_status gspi_count_above(gspi_task *task);

/* ------------------------------------------------------------- gsp_ladders.c */

/* Own ladders, for all but surveys and N:M. */
gsp_status gspi_build_ladders(gsp_context *context, gspi_task *task);
/* Irregular, alone: turns `above` into how many of the scores equal to the threshold each row
 * keeps. */
void gspi_share_equal(gspi_task *task, int64_t keep);
/* Writes the mask, once the bundles of all ladders are known. */
gsp_status gspi_mark(gspi_task *task);

/* --------------------------------------------------------------- gsp_order.c */

/* Orders worth trying; the best by score is kept, so none can make a mask worse. */
typedef enum {
    GSPI_ORDER_NATURAL,
    GSPI_ORDER_BY_COUNT,           /* of the scores above the threshold */
    GSPI_ORDER_BY_INCLUSIVE_COUNT, /* of those not below it */
    GSPI_ORDER_DESCENDING,         /* the same, so that a short last group has the fewest */
    GSPI_ORDER_BY_BANKS,
    GSPI_ORDERS
} gspi_order;

/* Fills row_order with the rows of a task in one of the orders; by banks starts from ascending or
 * descending counts. */
gsp_status gspi_order_rows(gsp_context *context, const gspi_task *task, gspi_order order,
                           bool ascending, uint32_t *row_order);
/* Rows by `key`, ascending or descending; equal rows stay in their order. */
gsp_status gspi_sort_rows(gsp_context *context, const int64_t *key, int64_t rows, bool ascending,
                          uint32_t *row_order);

/* -------------------------------------------------------------- gsp_budget.c */

/* One GS matrix by the rule of budgets: fills in the bundles of its ladders. */
gsp_status gspi_solve_one(gspi_task *task, int64_t keep);
/* Bundles of all in order of score per nonzero, within each matrix's own limits. */
gsp_status gspi_solve_many(gsp_context *context, gspi_task *tasks, size_t count, int64_t keep,
                           double *bound);
/* Bundles by how many scores each group has above the threshold, the remainders to the largest. */
gsp_status gspi_share_out(gsp_context *context, const gspi_grid *grid, gspi_ladder *ladders,
                          const int64_t *above, int64_t keep);

/* ------------------------------------------------------------- gsp_scatter.c */

/* Gives the task its survey, solved for its share, and its row order if that is ours to choose. */
gsp_status gspi_survey_task(gsp_context *context, gspi_task *task, gsp_method method);

#endif
