/* One group: which scores to keep so that every row keeps n * per_row and every bank n, with the
 * largest sum.
 *
 * It is a transportation problem between rows and banks. A cell (row, bank) offers its scores
 * largest first, so a state is a count per cell, `taken`. The dual has a price per row and per
 * bank; a state is optimal for its own row and bank sums if in every cell
 *     next score not taken <= row price + bank price <= last score taken.                       (1)
 * gspi_flow_solve keeps (1) from beginning to end and repairs the sums:
 *   1. Coordinate ascent on the dual: give each row its best n * per_row scores at the current bank prices,
 *      then each bank its best n at the current row prices, and so on, while that still helps. This costs
 *      little and leaves few rows and banks with a wrong sum.
 *   2. Successive shortest paths (Ahuja, Magnanti, Orlin, Network Flows, 9.7) from nodes with too much to
 *      nodes with too little, by Dijkstra on the reduced costs that (1) makes nonnegative.
 * A short group has bank sums of at most n: one more row of zeros, as wide as need be, takes up
 * the slack.
 *
 * Prices are sums and differences of scores in double, so that integer scores stay exact. */
#include <math.h>
#include <string.h>

#include "gsp_choose.h"

/* Coordinate ascent stops when a round leaves more than this part of the imbalance. */
#define GSPI_SWEEP_GAIN 0.7
#define GSPI_MAX_SWEEPS 12

struct gspi_flow {
    const gspi_grid *grid;
    int64_t group, bundles;
    int64_t rows;      /* rows of the group */
    int64_t lines;     /* rows, and one more if the group is short */
    float *sorted;     /* rows x depth x banks */
    int32_t *taken;    /* lines x banks */
    float *next;       /* lines x banks: the best score not taken, -inf for none */
    float *last;       /* lines x banks: the worst score taken, inf for none */
    double *price;     /* nodes: lines first, then banks */
    int64_t *excess;   /* nodes: sum minus what it should be */
    double *distance;  /* nodes */
    double *open;      /* nodes: distance while unsettled, else inf */
    int32_t *from;     /* nodes: where the shortest path comes from, or -1 at a source */
    int64_t *settled;  /* nodes in the order of settling */
};

gspi_flow *gspi_flow_create(gsp_context *context, const gspi_grid *grid) {
    gspi_flow *flow = gspi_calloc(context, 1, sizeof *flow);
    if (flow == NULL) return NULL;
    const size_t rows = (size_t)gspi_min(grid->group_rows, grid->rows);
    const size_t banks = (size_t)grid->banks, cells = (rows + 1) * banks, nodes = rows + 1 + banks;
    flow->grid = grid;
    flow->sorted = gspi_alloc(context, rows * (size_t)grid->depth * banks, sizeof *flow->sorted);
    flow->taken = gspi_alloc(context, cells, sizeof *flow->taken);
    flow->next = gspi_alloc(context, cells, sizeof *flow->next);
    flow->last = gspi_alloc(context, cells, sizeof *flow->last);
    flow->price = gspi_alloc(context, nodes, sizeof *flow->price);
    flow->excess = gspi_alloc(context, nodes, sizeof *flow->excess);
    flow->distance = gspi_alloc(context, nodes, sizeof *flow->distance);
    flow->open = gspi_alloc(context, nodes, sizeof *flow->open);
    flow->from = gspi_alloc(context, nodes, sizeof *flow->from);
    flow->settled = gspi_alloc(context, nodes, sizeof *flow->settled);
    if (!flow->sorted || !flow->taken || !flow->next || !flow->last || !flow->price ||
        !flow->excess || !flow->distance || !flow->open || !flow->from || !flow->settled) {
        gspi_flow_destroy(context, flow);
        return NULL;
    }
    return flow;
}

void gspi_flow_destroy(gsp_context *context, gspi_flow *flow) {
    if (flow == NULL) return;
    gspi_free(context, flow->sorted);
    gspi_free(context, flow->taken);
    gspi_free(context, flow->next);
    gspi_free(context, flow->last);
    gspi_free(context, flow->price);
    gspi_free(context, flow->excess);
    gspi_free(context, flow->distance);
    gspi_free(context, flow->open);
    gspi_free(context, flow->from);
    gspi_free(context, flow->settled);
    gspi_free(context, flow);
}

/* Score t of a cell of a real row, -inf beyond the last. */
static float score_at(const gspi_flow *flow, int64_t line, int64_t bank, int64_t t) {
    const gspi_grid *grid = flow->grid;
    if (t >= grid->depth) return -INFINITY;
    const float score = flow->sorted[(line * grid->depth + t) * grid->banks + bank];
    return score >= 0 ? score : -INFINITY;
}

static void change(gspi_flow *flow, int64_t line, int64_t bank, int32_t by) {
    const int64_t cell = line * flow->grid->banks + bank;
    const int32_t t = flow->taken[cell] += by;
    if (line == flow->rows) { /* the row of zeros of a short group */
        flow->last[cell] = t > 0 ? 0.0f : INFINITY;
    } else {
        flow->next[cell] = score_at(flow, line, bank, t);
        flow->last[cell] = t > 0 ? score_at(flow, line, bank, t - 1) : INFINITY;
    }
    flow->excess[line] += by;
    flow->excess[flow->lines + bank] += by;
}

/* What a line should sum to. */
static int64_t supply(const gspi_flow *flow, int64_t line, int64_t bundles) {
    const int64_t in_row = bundles * flow->grid->per_row;
    return line < flow->rows ? in_row : bundles * flow->grid->banks - flow->rows * in_row;
}

void gspi_flow_load(gspi_flow *flow, int64_t group, const double *bank_prices) {
    const gspi_grid *grid = flow->grid;
    const int64_t banks = grid->banks;
    flow->group = group;
    flow->bundles = 0;
    flow->rows = gspi_rows_of_group(grid, group);
    flow->lines = flow->rows + (flow->rows < grid->group_rows);
    memset(flow->taken, 0, (size_t)(flow->lines * banks) * sizeof *flow->taken);
    for (int64_t line = 0; line < flow->rows; line++) {
        float *sorted = flow->sorted + line * grid->depth * banks;
        gspi_sort_row(grid, gspi_row(grid, group, line), sorted);
        for (int64_t bank = 0; bank < banks; bank++) {
            flow->next[line * banks + bank] = sorted[bank] >= 0 ? sorted[bank] : -INFINITY;
            flow->last[line * banks + bank] = INFINITY;
        }
    }
    for (int64_t bank = 0; bank < banks && flow->lines > flow->rows; bank++) {
        flow->next[flow->rows * banks + bank] = 0.0f;
        flow->last[flow->rows * banks + bank] = INFINITY;
    }
    for (int64_t node = 0; node < flow->lines + banks; node++)
        flow->price[node] = 0, flow->excess[node] = 0;
    if (bank_prices != NULL)
        memcpy(flow->price + flow->lines, bank_prices, (size_t)banks * sizeof *flow->price);
}

/* Gives one node (a line or a bank) its best scores at the prices of the other side, and a price
 * that separates them from the rest. Its cells are first, first + step, ...; other[i] is the
 * price across. */
static void sweep_node(gspi_flow *flow, int64_t node) {
    const int64_t banks = flow->grid->banks, lines = flow->lines;
    const bool is_line = node < lines;
    const int64_t first = is_line ? node * banks : node - lines, step = is_line ? 1 : banks;
    const int64_t cells = is_line ? banks : lines;
    const double *across = is_line ? flow->price + lines : flow->price;
    for (;;) {
        double add = -INFINITY, drop = INFINITY;
        int64_t add_at = -1, drop_at = -1;
        for (int64_t i = 0; i < cells; i++) {
            const double next = flow->next[first + i * step] - across[i];
            const double last = flow->last[first + i * step] - across[i];
            if (next > add) add = next, add_at = i;
            if (last < drop) drop = last, drop_at = i;
        }
        const int64_t excess = flow->excess[node];
        const bool better = add > drop;
        if (excess == 0 && !better) {
            /* Nothing to add only if the node takes all that there is. */
            flow->price[node] = add > -INFINITY ? add : drop < INFINITY ? drop : 0;
            return;
        }
        if (excess > 0 || (excess == 0 && better))
            change(flow, is_line ? node : drop_at, is_line ? drop_at : node - lines, -1);
        if (excess < 0 || (excess == 0 && better))
            change(flow, is_line ? node : add_at, is_line ? add_at : node - lines, +1);
    }
}

/* Units that sit on wrong banks, or on the wrong side of the row of zeros. */
static int64_t imbalance(const gspi_flow *flow) {
    int64_t sum = 0;
    for (int64_t node = 0; node < flow->lines + flow->grid->banks; node++)
        sum += gspi_max(0, flow->excess[node] * (node < flow->lines ? -1 : 1));
    return sum;
}

/* Distance beyond an edge. Rounding may leave a cost just below 0, which must not reopen a
 * settled node. */
static inline double reached(double distance, double cost, bool costs) {
    if (costs) return distance + (cost > 0 ? cost : 0);
    return cost < INFINITY ? distance : INFINITY;
}

/* Moves one unit along a shortest path from a bank with too much, or a line with too little, to
 * a bank with too little, or a line with too much. With `costs` the prices stay optimal;
 * without, any path will do. False if there is no path, which cannot be while the group can hold
 * its bundles. */
static bool augment(gspi_flow *flow, bool costs) {
    const int64_t banks = flow->grid->banks, lines = flow->lines, nodes = lines + banks;
    const double *bank_price = flow->price + lines;
    double *distance = flow->distance, *open = flow->open;
    for (int64_t node = 0; node < nodes; node++) {
        const bool source = node < lines ? flow->excess[node] < 0 : flow->excess[node] > 0;
        distance[node] = open[node] = source ? 0 : INFINITY;
        flow->from[node] = -1;
    }
    int64_t settled = 0, node;
    for (;;) {
        node = 0;
        double least = open[0];
        for (int64_t i = 1; i < nodes; i++)
            if (open[i] < least) least = open[i], node = i;
        if (least == INFINITY) return false;
        if (node < lines ? flow->excess[node] > 0 : flow->excess[node] < 0) break;
        flow->settled[settled++] = node;
        open[node] = INFINITY;
        if (node < lines) { /* take one more score of this row, in any bank */
            const float *next = flow->next + node * banks;
            for (int64_t bank = 0; bank < banks; bank++) {
                const double cost = flow->price[node] + bank_price[bank] - next[bank];
                const double reach = reached(least, cost, costs);
                if (reach < distance[lines + bank]) {
                    distance[lines + bank] = open[lines + bank] = reach;
                    flow->from[lines + bank] = (int32_t)node;
                }
            }
        } else { /* let go of one score of this bank, in any row */
            const int64_t bank = node - lines;
            for (int64_t line = 0; line < lines; line++) {
                const double cost =
                    flow->last[line * banks + bank] - flow->price[line] - bank_price[bank];
                const double reach = reached(least, cost, costs);
                if (reach < distance[line]) {
                    distance[line] = open[line] = reach;
                    flow->from[line] = (int32_t)node;
                }
            }
        }
    }
    if (costs) {
        const double end = distance[node];
        for (int64_t i = 0; i < settled; i++) {
            const int64_t at = flow->settled[i];
            flow->price[at] += at < lines ? distance[at] - end : end - distance[at];
        }
    }
    while (flow->from[node] >= 0) {
        const int64_t before = flow->from[node];
        if (before < lines) change(flow, before, node - lines, +1);
        else change(flow, node, before - lines, -1);
        node = before;
    }
    return true;
}

static void repair(gspi_flow *flow, bool costs) {
    for (int64_t left = imbalance(flow); left > 0 && augment(flow, costs); left--) continue;
}

static void set_bundles(gspi_flow *flow, int64_t bundles) {
    for (int64_t line = 0; line < flow->lines; line++)
        flow->excess[line] += supply(flow, line, flow->bundles) - supply(flow, line, bundles);
    for (int64_t bank = 0; bank < flow->grid->banks; bank++)
        flow->excess[flow->lines + bank] += flow->bundles - bundles;
    flow->bundles = bundles;
}

void gspi_flow_solve(gspi_flow *flow, int64_t bundles) {
    const int64_t banks = flow->grid->banks;
    set_bundles(flow, bundles);
    int64_t before = INT64_MAX;
    for (int sweep = 0;; sweep++) {
        for (int64_t line = 0; line < flow->rows; line++) sweep_node(flow, line);
        const int64_t now = imbalance(flow);
        if (now <= banks / 4 || (double)now > GSPI_SWEEP_GAIN * (double)before ||
            sweep == GSPI_MAX_SWEEPS)
            break;
        before = now;
        for (int64_t bank = 0; bank < banks; bank++) sweep_node(flow, flow->lines + bank);
    }
    repair(flow, true);
}

/* `rank` of a line is its best score that may still be taken. */
static void rank_line(const gspi_flow *flow, int64_t line, double *rank, int64_t *best) {
    const int64_t banks = flow->grid->banks;
    rank[line] = -INFINITY;
    if (flow->excess[line] == 0) return;
    for (int64_t bank = 0; bank < banks; bank++) {
        if (flow->excess[flow->lines + bank] == 0 || flow->next[line * banks + bank] <= rank[line])
            continue;
        rank[line] = flow->next[line * banks + bank];
        best[line] = bank;
    }
}

void gspi_flow_greedy(gspi_flow *flow, int64_t bundles) {
    const int64_t lines = flow->lines, rows = flow->rows;
    double *rank = flow->distance;    /* not in use before repair */
    int64_t *best = flow->settled;
    set_bundles(flow, bundles);
    for (int64_t line = 0; line < rows; line++) rank_line(flow, line, rank, best);
    for (;;) {
        int64_t line = 0;
        for (int64_t i = 1; i < rows; i++)
            if (rank[i] > rank[line]) line = i;
        if (rank[line] == -INFINITY) break;
        const int64_t bank = best[line];
        change(flow, line, bank, +1);
        if (flow->excess[lines + bank] ==
            0) { /* the bank is full: whoever wanted it looks elsewhere */
            for (int64_t i = 0; i < rows; i++)
                if (i != line && rank[i] > -INFINITY && best[i] == bank)
                    rank_line(flow, i, rank, best);
        }
        rank_line(flow, line, rank, best);
    }
    if (lines > rows) {
        for (int64_t bank = 0; bank < flow->grid->banks; bank++) {
            const int64_t slack = gspi_min(-flow->excess[lines + bank], -flow->excess[rows]);
            if (slack > 0) change(flow, rows, bank, (int32_t)slack);
        }
    }
    repair(flow, false);
}

double gspi_flow_value(const gspi_flow *flow) {
    const int64_t banks = flow->grid->banks;
    double sum = 0;
    for (int64_t line = 0; line < flow->rows; line++)
        for (int64_t bank = 0; bank < banks; bank++)
            for (int32_t t = 0; t < flow->taken[line * banks + bank]; t++)
                sum += score_at(flow, line, bank, t);
    return sum;
}

/* The row of zeros has price 0 in what users see: only the sum of a row's and a bank's price
 * matters. */
static double base(const gspi_flow *flow) {
    return flow->lines > flow->rows ? flow->price[flow->rows] : 0;
}

void gspi_flow_prices(const gspi_flow *flow, double *row, double *bank) {
    for (int64_t place = 0; place < flow->grid->group_rows; place++)
        row[place] = place < flow->rows ? flow->price[place] - base(flow) : 0;
    for (int64_t b = 0; b < flow->grid->banks; b++)
        bank[b] = flow->price[flow->lines + b] + base(flow);
}

double gspi_flow_bound(const gspi_flow *flow) {
    const int64_t banks = flow->grid->banks;
    double sum = 0;
    for (int64_t line = 0; line < flow->rows; line++)
        sum += (double)supply(flow, line, flow->bundles) * (flow->price[line] - base(flow));
    for (int64_t bank = 0; bank < banks; bank++)
        sum += (double)flow->bundles * (flow->price[flow->lines + bank] + base(flow));
    for (int64_t line = 0; line < flow->rows; line++)
        for (int64_t bank = 0; bank < banks; bank++) {
            const double price = flow->price[line] + flow->price[flow->lines + bank];
            for (int64_t t = 0; score_at(flow, line, bank, t) > price; t++)
                sum += score_at(flow, line, bank, t) - price;
        }
    return sum;
}

void gspi_flow_mark(gspi_flow *flow, uint8_t *mask) {
    const gspi_grid *grid = flow->grid;
    for (int64_t line = 0; line < flow->rows; line++) {
        const int64_t row = gspi_row(grid, flow->group, line);
        gspi_mark_row(grid, row, flow->sorted + line * grid->depth * grid->banks,
                      flow->taken + line * grid->banks, flow->from, mask + row * grid->cols);
    }
}
