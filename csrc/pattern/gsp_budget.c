/* How a budget of nonzeros is spent: on one matrix, on one with a short last group, on several. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gsp_task.h"

static gsp_status grow(gspi_task *tasks, size_t count, bool *grown) {
    *grown = false;
    for (size_t i = 0; i < count; i++) {
        bool more = false;
        if (tasks[i].survey != NULL) GSP_TRY(gspi_survey_grow(tasks[i].survey, &more));
        *grown |= more;
    }
    return GSP_OK;
}

/* Bundles of the full groups when the short last one has n. */
static int64_t rest_of(const gspi_task *work, int64_t keep, int64_t n) {
    return (keep - n * work->ladders[work->count - 1].size) / work->grid.banks;
}

/* Score of the whole with n bundles in the short group, on what is known; -inf if that is not
 * enough. */
static double value_with(gspi_task *work, int64_t keep, int64_t n) {
    const int64_t full = work->count - 1, bundles = rest_of(work, keep, n);
    gspi_open_ladders(work->ladders, full);
    if (gspi_allot(work->ladders, full, bundles * work->grid.banks) != bundles * work->grid.banks)
        return -INFINITY;
    double value = gspi_ladder_value(&work->ladders[full], n);
    for (int64_t i = 0; i < full; i++)
        value += gspi_ladder_value(&work->ladders[i], work->ladders[i].bundles);
    return value;
}

/* With a short last group: each number n of its bundles fixes how many the others have. Only
 * numbers whose optimistic score, by the slopes at the best one found, beats that one need a
 * look. */
static gsp_status solve_short(gspi_task *work, int64_t keep) {
    gspi_ladder *ladders = work->ladders;
    const int64_t full = work->count - 1;
    gspi_ladder *last = &ladders[full];
    int64_t least = 0, most = 0, low = INT64_MAX, high = -1;
    for (int64_t i = 0; i < full; i++) least += ladders[i].low, most += ladders[i].high;
    for (int64_t n = last->low; n <= last->high;
         n++) { /* those with which the others can make up the rest */
        if (keep < n * last->size || rest_of(work, keep, n) < least ||
            rest_of(work, keep, n) > most)
            continue;
        low = gspi_min(low, n);
        high = n;
    }
    GSP_CHECK(high >= 0, GSP_ERROR_BUDGET);

    int64_t best_n = gspi_max(low, gspi_min(high, last->bundles));
    for (bool grown = true; grown;) {
        if (best_n < last->first || best_n > last->last) {
            last->below = best_n < last->first;
            last->above = !last->below;
            GSP_TRY(grow(work, 1, &grown));
            continue;
        }
        const double best = value_with(work, keep, best_n);
        last->bundles = best_n;
        const double up = gspi_next_gain(ladders, full), down = gspi_last_gain(ladders, full);
        const double sure = best + fabs(best) * 1e-14; /* rounding of the sums */
        const double own = gspi_ladder_value(last, best_n);
        bool better = false;
        for (int64_t n = low; n <= high && best > -INFINITY && !better; n++) {
            const int64_t more = rest_of(work, keep, n) - rest_of(work, keep, best_n);
            const int64_t known = gspi_max(last->first, gspi_min(last->last, n));
            double value = best - own + gspi_ladder_value(last, known);
            if (more > 0) value += (double)more * up;
            if (more < 0) value += (double)more * down;
            if (n < known) value -= (double)(known - n) * last->gain[0];
            if (n > known) value += (double)(n - known) * last->gain[known - last->first - 1];
            if (n == best_n || !(value > sure)) continue;
            last->below |= n < known;
            last->above |= n > known;
            if (n == known && value_with(work, keep, n) > best) {
                best_n = n;
                better = true;
            }
        }
        if (!better) GSP_TRY(grow(work, 1, &grown));
    }
    value_with(work, keep, best_n);
    return GSP_OK;
}

/* One matrix by the rule of budgets; fills in the bundles of its ladders. */
gsp_status gspi_solve_one(gspi_task *work, int64_t keep) {
    const bool blocks = work->choice->pattern.kind == GSP_BLOCK;
    if (!blocks && work->ladders[work->count - 1].size < work->grid.banks)
        return solve_short(work, keep);
    for (bool grown = true; grown;) {
        gspi_open_ladders(work->ladders, work->count);
        const int64_t kept = gspi_allot(work->ladders, work->count, keep);
        GSP_TRY(grow(work, 1, &grown));
        if (!grown)
            GSP_CHECK(blocks || (kept <= keep && kept > keep - work->grid.banks), GSP_ERROR_BUDGET);
    }
    return GSP_OK;
}

/* ------------------------------------------------------------ several matrices */

/* Score per nonzero of the best bundle beyond all ceilings (0: none), and of the worst one that
 * the floors force (infinity: none). */
static double beyond_ceiling(const gspi_task *work) {
    double best = 0;
    for (int64_t i = 0; i < work->count; i++) {
        const gspi_ladder *ladder = &work->ladders[i];
        if (ladder->ceiling < gspi_min(ladder->high, ladder->last))
            best = fmax(best, ladder->gain[ladder->ceiling - ladder->first] / (double)ladder->size);
    }
    return best;
}

static double below_floor(const gspi_task *work) {
    double worst = INFINITY;
    for (int64_t i = 0; i < work->count; i++) {
        const gspi_ladder *ladder = &work->ladders[i];
        if (ladder->floor > gspi_max(ladder->low, ladder->first))
            worst =
                fmin(worst, ladder->gain[ladder->floor - 1 - ladder->first] / (double)ladder->size);
    }
    return worst;
}

/* Limits of one matrix become floors and ceilings of its ladders. Bundles may not meet a limit
 * to the nonzero; the bound must allow for that part of a bundle. */
static void set_own_limits(gspi_task *work) {
    const gsp_choice *choice = work->choice;
    int64_t size = 1;
    gspi_open_ladders(work->ladders, work->count);
    for (int64_t i = 0; i < work->count; i++) size = gspi_max(size, work->ladders[i].size);
    work->spare = work->excess = 0;
    if (choice->max_keep >= 0) {
        work->spare = choice->max_keep - gspi_allot(work->ladders, work->count, choice->max_keep);
        for (int64_t i = 0; i < work->count; i++)
            work->ladders[i].ceiling = work->ladders[i].bundles;
    }
    if (choice->min_keep > 0) {
        const int64_t kept = gspi_allot(work->ladders, work->count, choice->min_keep + size - 1);
        work->excess = gspi_max(0, kept - choice->min_keep);
        for (int64_t i = 0; i < work->count; i++) work->ladders[i].floor = work->ladders[i].bundles;
    }
}

/* A bound for any selection within the budget and the limits: the Lagrangian at the price per nonzero
 * of the first bundle left out, with `left` nonzeros of the budget not spent. */
static double lagrangian(const gspi_task *tasks, size_t count, const gspi_ladder *all,
                         int64_t total, int64_t left) {
    double price = 0, bound = 0;
    for (int64_t i = 0; i < total; i++) {
        const gspi_ladder *ladder = &all[i];
        if (ladder->bundles < ladder->ceiling)
            price =
                fmax(price, ladder->gain[ladder->bundles - ladder->first] / (double)ladder->size);
    }
    for (int64_t i = 0; i < total; i++) {
        const gspi_ladder *ladder = &all[i];
        int64_t bundles = ladder->bundles;
        /* Bundles that lower the score are taken for the budget's sake; the bound owes them nothing. */
        while (bundles > ladder->floor && ladder->gain[bundles - 1 - ladder->first] < 0) bundles--;
        bound += gspi_ladder_value(ladder, bundles);
    }
    bound += (double)left * price;
    for (size_t i = 0; i < count; i++) {
        if (tasks[i].spare > 0)
            bound += (double)tasks[i].spare * fmax(0, beyond_ceiling(&tasks[i]) - price);
        if (tasks[i].excess > 0)
            bound += (double)tasks[i].excess * fmax(0, price - below_floor(&tasks[i]));
    }
    return bound;
}

static bool within_limits(const gspi_task *tasks, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const gsp_choice *choice = tasks[i].choice;
        int64_t kept = 0;
        for (int64_t g = 0; g < tasks[i].count; g++)
            kept += tasks[i].ladders[g].bundles * tasks[i].ladders[g].size;
        if (kept < choice->min_keep || (choice->max_keep >= 0 && kept > choice->max_keep))
            return false;
    }
    return true;
}

/* Bundles of all in order of score per nonzero, within each matrix's own limits. */
gsp_status gspi_solve_many(gsp_context *context, gspi_task *tasks, size_t count, int64_t keep,
                           double *bound) {
    int64_t total = 0;
    for (size_t i = 0; i < count; i++) total += tasks[i].count;
    gspi_ladder *all = gspi_alloc(context, (size_t)total, sizeof *all);
    GSP_CHECK(all != NULL, GSP_ERROR_MEMORY);
    gsp_status status = GSP_OK;
    for (bool grown = true; grown && status == GSP_OK;) {
        int64_t at = 0;
        for (size_t i = 0; i < count; i++) {
            set_own_limits(&tasks[i]);
            gspi_copy_bytes(all + at, tasks[i].ladders, (size_t)tasks[i].count * sizeof *all);
            at += tasks[i].count;
        }
        const int64_t kept = gspi_allot(all, total, keep);
        at = 0;
        for (size_t i = 0; i < count; i++) {
            gspi_copy_bytes(tasks[i].ladders, all + at, (size_t)tasks[i].count * sizeof *all);
            at += tasks[i].count;
        }
        *bound = lagrangian(tasks, count, all, total, keep - kept);
        status = grow(tasks, count, &grown);
        /* Whole bundles may miss limits that are closer together than a bundle. */
        if (status == GSP_OK && !grown && !(kept <= keep && within_limits(tasks, count)))
            status = GSP_ERROR_BUDGET;
    }
    gspi_free(context, all);
    return status;
}

/* Bundles by how many scores each group has above the threshold, the remainders to the largest. */
gsp_status gspi_share_out(gsp_context *context, const gspi_grid *grid, gspi_ladder *ladders,
                          const int64_t *above, int64_t keep) {
    const int64_t count = grid->groups;
    const gspi_ladder *last = &ladders[count - 1];
    const int64_t size = grid->banks, full = last->size < size ? count - 1 : count;
    int64_t least = 0, most = 0;
    for (int64_t i = 0; i < full; i++) least += ladders[i].low, most += ladders[i].high;
    int64_t *wanted = gspi_calloc(context, (size_t)count, sizeof *wanted);
    uint32_t *by_rest = gspi_alloc(context, (size_t)count, sizeof *by_rest);
    gsp_status status = wanted && by_rest ? GSP_OK : GSP_ERROR_MEMORY;

    for (int64_t i = 0; i < count && status == GSP_OK; i++) {
        for (int64_t place = 0; place < gspi_rows_of_group(grid, i); place++)
            wanted[i] += above[gspi_row(grid, i, place)];
        ladders[i].bundles =
            gspi_max(ladders[i].low, gspi_min(ladders[i].high, wanted[i] / ladders[i].size));
        wanted[i] -= ladders[i].bundles * ladders[i].size;
    }
    if (status == GSP_OK && full < count) {
        /* The number nearest to what the short group wants that leaves the others a whole
         * number. */
        const int64_t near = ladders[full].bundles;
        int64_t best = -1;
        for (int64_t n = last->low; n <= last->high; n++) {
            const int64_t rest = keep - n * last->size;
            if (rest < 0 || rest / size < least || rest / size > most) continue;
            if (best < 0 || llabs(n - near) < llabs(best - near)) best = n;
        }
        if (best < 0) status = GSP_ERROR_BUDGET;
        else ladders[full].bundles = best, keep -= best * last->size;
    }
    if (status == GSP_OK) status = gspi_sort_rows(context, wanted, full, false, by_rest);
    if (status == GSP_OK) {
        int64_t left = keep / size;
        for (int64_t i = 0; i < full; i++) left -= ladders[i].bundles;
        if (keep < 0 || keep / size < least || keep / size > most) status = GSP_ERROR_BUDGET;
        while (status == GSP_OK && left != 0) {
            for (int64_t i = 0; i < full && left > 0; i++) {
                gspi_ladder *ladder = &ladders[by_rest[i]];
                if (ladder->bundles < ladder->high) ladder->bundles++, left--;
            }
            for (int64_t i = full - 1; i >= 0 && left < 0; i--) {
                gspi_ladder *ladder = &ladders[by_rest[i]];
                if (ladder->bundles > ladder->low) ladder->bundles--, left++;
            }
        }
    }
    gspi_free(context, wanted);
    gspi_free(context, by_rest);
    return status;
}
