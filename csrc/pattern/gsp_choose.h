/* What the files of csrc/pattern share: the cells of a group, the group solver, the allotment of
 * bundles. */
#ifndef GSP_CHOOSE_H
#define GSP_CHOOSE_H

#include "../gsp_internal.h"

/* --------------------------------------------------------------- gsp_cells.c A group seen as
 * rows x banks cells, each holding the scores of one row in one bank, largest first. Entry t of
 * cell (row, bank) is sorted[(row * depth + t) * banks + bank]; cells with fewer than depth
 * columns end in GSPI_NO_SCORE, which is below every score. */

#define GSPI_NO_SCORE (-1.0f)

/* What stays the same for all groups of one matrix. */
typedef struct gspi_grid {
    const float *scores;
    int64_t rows, cols;
    gsp_pattern pattern;
    const uint32_t *row_order; /* or NULL */
    int64_t banks, per_row, group_rows, groups, depth;
    const int64_t *bank_begin; /* banks + 1, contiguous layout only */
} gspi_grid;

/* Fills a grid; bank_begin must have room for banks + 1. */
void gspi_grid_init(gspi_grid *grid, const gsp_choice *choice, const uint32_t *row_order,
                    int64_t *bank_begin);
/* Rows of a group: group_rows, or fewer for a short last one. */
int64_t gspi_rows_of_group(const gspi_grid *grid, int64_t group);
/* Original row at a place of a group. */
static inline int64_t gspi_row(const gspi_grid *grid, int64_t group, int64_t place) {
    const int64_t position = group * grid->group_rows + place;
    return grid->row_order == NULL ? position : (int64_t)grid->row_order[position];
}
/* Nonzeros of one bundle of a group. */
static inline int64_t gspi_bundle_size(const gspi_grid *grid, int64_t group) {
    return gspi_rows_of_group(grid, group) * grid->per_row;
}
/* Sorts one row into its cells: depth x banks entries. */
void gspi_sort_row(const gspi_grid *grid, int64_t row, float *sorted);
/* Marks in `mask` (cols entries, 0 or 1) the taken[bank] largest scores of each bank; of equal
 * ones the leftmost. `sorted` is the row's; left has room for banks entries. */
void gspi_mark_row(const gspi_grid *grid, int64_t row, const float *sorted, const int32_t *taken,
                   int32_t *left, uint8_t *mask);

/* ---------------------------------------------------------------- gsp_flow.c
 * The group problem: n * per_row in each row, n in each bank, largest sum. */

typedef struct gspi_flow gspi_flow;

/* Room for groups of the grid; NULL without memory. */
gspi_flow *gspi_flow_create(gsp_context *context, const gspi_grid *grid);
void gspi_flow_destroy(gsp_context *context, gspi_flow *flow);
/* Starts on a group, with bank prices to begin from (banks entries, or NULL). */
void gspi_flow_load(gspi_flow *flow, int64_t group, const double *bank_prices);
/* Solves the loaded group for so many bundles, from wherever the last call left it. */
void gspi_flow_solve(gspi_flow *flow, int64_t bundles);
/* The same by taking the largest score whose row and bank have room, completed by augmenting
 * paths. */
void gspi_flow_greedy(gspi_flow *flow, int64_t bundles);
/* The score kept, and the value of the dual (an upper bound for this number of bundles). */
double gspi_flow_value(const gspi_flow *flow);
double gspi_flow_bound(const gspi_flow *flow);
/* Prices by place in the group (group_rows entries, 0 for absent rows) and by bank. */
void gspi_flow_prices(const gspi_flow *flow, double *row, double *bank);
/* Writes the masks of the group's rows into a rows x cols mask. */
void gspi_flow_mark(gspi_flow *flow, uint8_t *mask);

/* --------------------------------------------------------------- gsp_allot.c How many bundles
 * each group gets. The best score of a group is concave in its number of bundles, so taking the
 * bundles of all groups in order of what each adds is optimal. */

/* What is known of one group: the score that it keeps with `first` bundles, and what each
 * further one adds, up to `last`. Groups whose bundles are dear to evaluate start with a narrow
 * window that grows on demand. */
typedef struct gspi_ladder {
    int64_t choice, group; /* group of the matrix of this choice */
    int64_t size;          /* nonzeros of a bundle */
    int64_t low, high;     /* bundles allowed */
    int64_t first, last;   /* bundles evaluated */
    double value;          /* score with `first` */
    const double *gain;    /* gain[i] is what bundle first + i adds to i before it; never rises */
    int64_t floor, ceiling; /* bounds for the next allotment, within the window */
    int64_t bundles;       /* result */
    bool below, above;     /* the window must grow there before the result can be trusted */
} gspi_ladder;

/* Score with so many bundles, from first to last. */
double gspi_ladder_value(const gspi_ladder *ladder, int64_t bundles);
/* floor and ceiling to all that is allowed and known. */
void gspi_open_ladders(gspi_ladder *ladders, int64_t count);
/* Sets `bundles` of all ladders so that the whole is at most `keep` nonzeros: bundles in order
 * of score per nonzero, equal ones shared out evenly, until one does not fit. Marks the ladders
 * that end at the edge of what is known. Returns the nonzeros kept. */
int64_t gspi_allot(gspi_ladder *ladders, int64_t count, int64_t keep);
/* The best score per bundle not taken (-inf: none) and the worst taken (inf: none). */
double gspi_next_gain(const gspi_ladder *ladders, int64_t count);
double gspi_last_gain(const gspi_ladder *ladders, int64_t count);

/* -------------------------------------------------------------- gsp_survey.c The groups of a GS
 * matrix with per_row < banks, in one row order: ladders that are evaluated on demand. */

typedef struct gspi_survey gspi_survey;

/* Ladders with limits (high negative: as many as fit) and nothing evaluated yet. Copies the
 * grid; its arrays must outlive the survey. */
gsp_status gspi_survey_create(gsp_context *context, const gspi_grid *grid, int64_t choice_index,
                              int64_t low, int64_t high, gspi_survey **survey);
void gspi_survey_destroy(gspi_survey *survey);
gspi_ladder *gspi_survey_ladders(gspi_survey *survey);
/* Evaluates each group at its ladder's `bundles`, as near as the limits allow, and at one fewer
 * and one more. */
gsp_status gspi_survey_begin(gspi_survey *survey);
/* Evaluates more numbers of bundles for every ladder marked below or above, and clears the marks.
 * *grown is whether there was any. */
gsp_status gspi_survey_grow(gspi_survey *survey, bool *grown);
/* The score of the greedy masks of all groups at their ladders' bundles. */
gsp_status gspi_survey_greedy(gspi_survey *survey, double *value);
/* Writes the masks of all groups at their ladders' bundles: the best ones, or the greedy ones if
 * nothing was evaluated. */
gsp_status gspi_survey_mark(gspi_survey *survey, uint8_t *mask);
/* Everything evaluated: number of entries, and the entries written from *at on. */
size_t gspi_survey_entries(const gspi_survey *survey);
void gspi_survey_prices(const gspi_survey *survey, gsp_prices *prices);

#endif
