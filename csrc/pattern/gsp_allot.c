/* How many bundles each group gets: all bundles that add at least lambda per nonzero. The right
 * lambda is found by bisection over the bits of a double, so that no list of bundles is ever
 * made or sorted. */
#include <math.h>
#include <string.h>

#include "gsp_choose.h"

double gspi_ladder_value(const gspi_ladder *ladder, int64_t bundles) {
    double value = ladder->value;
    for (int64_t n = ladder->first; n < bundles; n++) value += ladder->gain[n - ladder->first];
    return value;
}

void gspi_open_ladders(gspi_ladder *ladders, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        gspi_ladder *ladder = &ladders[i];
        ladder->floor = gspi_max(ladder->low, ladder->first);
        ladder->ceiling = gspi_min(ladder->high, ladder->last);
    }
}

/* Doubles in the order of unsigned integers. */
static uint64_t order_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

static double of_order(uint64_t order) {
    const uint64_t bits = order >> 63 ? order & ~((uint64_t)1 << 63) : ~order;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* What bundle n + 1 adds, per nonzero if bundles differ in size. */
static double worth(const gspi_ladder *ladder, int64_t n, bool mixed) {
    const double gain = ladder->gain[n - ladder->first];
    return mixed ? gain / (double)ladder->size : gain;
}

/* Bundles of a ladder if all worth at least lambda are taken. */
static int64_t take(const gspi_ladder *ladder, double lambda, bool mixed) {
    int64_t low = ladder->floor, high = ladder->ceiling;
    while (low < high) {
        const int64_t n = low + (high - low) / 2;
        if (worth(ladder, n, mixed) >= lambda) low = n + 1;
        else high = n;
    }
    return low;
}

static int64_t take_all(gspi_ladder *ladders, int64_t count, double lambda, bool mixed) {
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i++) {
        ladders[i].bundles = take(&ladders[i], lambda, mixed);
        kept += ladders[i].bundles * ladders[i].size;
    }
    return kept;
}

/* Bundles worth `tied` until one does not fit: of each group the next before any second, so that
 * equal groups get equal shares. Returns their nonzeros. */
static int64_t take_tied(gspi_ladder *ladders, int64_t count, double tied, bool mixed,
                         int64_t room) {
    const int64_t before = room;
    int64_t level = INT64_MAX, next;
    for (int64_t i = 0; i < count; i++) level = gspi_min(level, ladders[i].bundles);
    for (; level < INT64_MAX; level = next) {
        next = INT64_MAX;
        for (int64_t i = 0; i < count; i++) {
            gspi_ladder *ladder = &ladders[i];
            if (ladder->bundles == ladder->ceiling || worth(ladder, ladder->bundles, mixed) < tied)
                continue;
            if (ladder->bundles == level) {
                if (ladder->size > room) return before - room;
                room -= ladder->size;
                ladder->bundles++;
            }
            if (ladder->bundles < ladder->ceiling)
                next = gspi_min(next, gspi_max(level + 1, ladder->bundles));
        }
    }
    return before - room;
}

int64_t gspi_allot(gspi_ladder *ladders, int64_t count, int64_t keep) {
    bool mixed = false;
    for (int64_t i = 1; i < count; i++) mixed |= ladders[i].size != ladders[0].size;

    /* Everything worth `enough` fits; everything worth `too_low`, the next double below, does
     * not. */
    uint64_t enough = order_of(INFINITY), too_low = order_of(-INFINITY);
    int64_t kept = take_all(ladders, count, -INFINITY, mixed);
    if (kept > keep) {
        while (enough - too_low > 1) {
            const uint64_t middle = too_low + (enough - too_low) / 2;
            if (take_all(ladders, count, of_order(middle), mixed) <= keep) enough = middle;
            else too_low = middle;
        }
        kept = take_all(ladders, count, of_order(enough), mixed);
        kept += take_tied(ladders, count, of_order(too_low), mixed, keep - kept);
    }
    for (int64_t i = 0; i < count; i++) {
        gspi_ladder *ladder = &ladders[i];
        ladder->above |= ladder->bundles == ladder->last && ladder->last < ladder->high;
        ladder->below |= ladder->bundles == ladder->first && ladder->first > ladder->low;
    }
    return kept;
}

double gspi_next_gain(const gspi_ladder *ladders, int64_t count) {
    double best = -INFINITY;
    for (int64_t i = 0; i < count; i++)
        if (ladders[i].bundles < ladders[i].ceiling)
            best = fmax(best, worth(&ladders[i], ladders[i].bundles, false));
    return best;
}

double gspi_last_gain(const gspi_ladder *ladders, int64_t count) {
    double worst = INFINITY;
    for (int64_t i = 0; i < count; i++)
        if (ladders[i].bundles > ladders[i].floor)
            worst = fmin(worst, worth(&ladders[i], ladders[i].bundles - 1, false));
    return worst;
}
