/* Lays rows out for register tables: which 16 elements of which rows a step multiplies, and from where in x.
 *
 * A step's table is a window of `width` entries of x, and each row of a strip may have its next elements in it
 * multiplied: one, or per_row of them, side by side. Windows are chosen greedily: the next one begins where the row
 * that is least far begins, and every row takes what it has in reach. No sequence of windows that begin at multiples
 * of `grain` in ascending order needs fewer steps: by induction no row is ever behind the place where it would be
 * there. Masks that are balanced over banks of such a grain therefore need no padding, and others as little as their
 * rows, taken in the order of x, allow.
 *
 * Four strips may take a step together, with one window for all (a quad across), or one strip four steps with a window
 * each (a quad along). Quads across load fewer tables; quads along pad less where rows differ. Rows come fullest
 * first, so most strips are alike. Of four that are not, steps that only one or two take go along; or all steps do,
 * each strip in windows of its own, as is cheaper. */
#include <math.h>
#include <string.h>

#include "../format/gsp_visit.h"
#include "gsp_plan.h"

/* Strips whose quads are counted to choose a kernel: as many fours of strips, in so many parts. */
#define SAMPLED 4
#define PARTS 4
/* What quads along cost beside those across, having both kinds, and tables that may lie in two cache lines beside
 * those that do not: measured as the costs of kernels.inc. */
#define ALONG 1.4f
#define BOTH 8.0f
#define UNALIGNED 1.15f
/* Rows of four strips at most. */
#define MAX_ROWS (4 * 16)
/* Kernels of a backend for SpMV. */
#define MAX_ENTRIES 16

/* Positions are bytes, and packing is compiled for these lanes. */
#define GSP_KERNEL(function, op, backend, dtypes, kinds, form, lanes, width, cost, most)           \
    _Static_assert(                                                                                \
        GSPI_##form != GSPI_TABLES ||                                                              \
            ((width) <= GSPI_MOST_WIDTH && ((lanes) == 4 || (lanes) == 8 || (lanes) == 16)),       \
        #function);
#include "kernels.inc"

typedef struct {
    int64_t width, grain; /* powers of two */
    int64_t last; /* a window begins here at most */
    int64_t per_row;
} windows;

typedef struct {
    const gspi_entry *entry;
    int64_t per_row, grain;
    float bound, cost; /* at least, and by the sample so far */
    int parts; /* of the sample that have been counted; PARTS if the cost is known without */
    float quads, least; /* of the sample, in those across: counted, and at least */
    float padding; /* of strips in windows of their own, the least that was counted */
} candidate;

/* ---------------------------------------------------------------- windows */

/* Where a window begins if the least column of what is left is `least`. */
GSPI_INLINE int64_t window_at(const windows *w, int64_t least) {
    return gspi_min(least & -w->grain, w->last);
}

/* How four strips are laid out: quads across, and quads along each. */
typedef struct {
    int64_t across, along[4];
} layout;

static int64_t quads_along(const layout *l) {
    return l->along[0] + l->along[1] + l->along[2] + l->along[3];
}

/* In quads across. */
static float cost_of(const layout *l) {
    const int64_t along = quads_along(l);
    return (float)l->across + ALONG * (float)along + (l->across > 0 && along > 0 ? BOTH : 0);
}

/* Whether a step goes along that so many strips take. Sums of several slots of a row are only brought together
 * across. */
GSPI_INLINE bool goes_along(int strips, int64_t per_row) { return strips <= 2 && per_row == 1; }

/* How rows [first, last) of the list, `rows` to a strip, are laid out in windows for all of them: with quads along, or
 * all across if that is cheaper. */
GSPI_INLINE layout count_steps_of(gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                                  const windows *w, int64_t width, int64_t per_row) {
    const gspi_marks *marks = &list->marks;
    const int64_t behind = w->last + width; /* all columns */
    const uint64_t strip = ((uint64_t)1 << rows) - 1;
    layout l = {0};
    int64_t steps = 0;
    gspi_mark_rows(list, first, last);
    for (int64_t least = 0; (least = gspi_next_column(marks, least)) < behind;) {
        const int64_t begin = window_at(w, least);
        if (begin + width > marks->end) {
            gspi_move_marks(list, first, last, begin);
            continue;
        }
        uint64_t *const here = marks->rows + (begin - marks->first);
        const uint64_t taken = gspi_take_window(here, width, per_row);
        int strips = 0;
        for (int i = 0; i < 4; i++) strips += (taken >> i * rows & strip) != 0;
        if (goes_along(strips, per_row))
            for (int i = 0; i < 4; i++) l.along[i] += (taken >> i * rows & strip) != 0;
        else l.across++;
        steps++;
    }
    for (int i = 0; i < 4; i++) l.along[i] = gspi_ceil_div(l.along[i], 4);
    const layout all_across = {.across = steps};
    return l.across > 0 && cost_of(&all_across) <= cost_of(&l) ? all_across : l;
}

/* Compiled for all widths of tables that there are, so that the loop over a window does not end by a guess. */
static layout count_steps(gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                          const windows *w) {
    switch (w->per_row == 1 ? w->width : -w->width) {
    case 8: return count_steps_of(list, first, last, rows, w, 8, 1);
    case 16: return count_steps_of(list, first, last, rows, w, 16, 1);
    case 32: return count_steps_of(list, first, last, rows, w, 32, 1);
    case 64: return count_steps_of(list, first, last, rows, w, 64, 1);
    default: return count_steps_of(list, first, last, rows, w, w->width, w->per_row);
    }
}

static int64_t strip_rows(const gspi_entry *entry, int64_t per_row) {
    return entry->lanes / per_row;
}

/* Elements of the row, as steps that it must take. */
static int64_t least_steps(const gspi_rows *list, int64_t row) {
    return (int64_t)(list->start[row + 1] - list->start[row] - 1);
}

/* Quads of the strip from row `first`, its fullest, on, if all its rows can go on in every step. */
static int64_t least_quads(const gspi_rows *list, int64_t first) {
    return gspi_ceil_div(least_steps(list, first), 4);
}

/* What rows [first, last), at most four strips, cost at least, in quads across. */
static float least_cost(const gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                        const windows *w) {
    if (w->per_row > 1) return (float)least_quads(list, first);
    int64_t steps[4] = {0}, along = 0;
    for (int i = 0; first + i * rows < last; i++) {
        steps[i] = least_steps(list, first + i * rows);
        along += least_quads(list, first + i * rows);
    }
    /* Of those with both kinds, the cheapest goes along where only the two fullest strips are left. */
    const int64_t rest = steps[0] + steps[1] - 2 * steps[2];
    const float both = (float)steps[2] + (float)rest * (ALONG / 4) + BOTH;
    return fminf(fminf((float)steps[0], both), (float)along * ALONG);
}

/* How rows [first, last), at most four strips, are laid out for the least cost. Without quads across, each strip has
 * windows of its own: these are counted for as long as they may be cheaper, if a strip takes `padding` times the quads
 * that it needs at least. *seen becomes the least such number of those that were counted, if it is less. */
static layout count_quads(gspi_rows *list, int64_t first, int64_t last, const gspi_entry *entry,
                          const windows *w, float padding, float *seen) {
    const int64_t rows = strip_rows(entry, w->per_row);
    const layout together = count_steps(list, first, last, rows, w);
    if (w->per_row > 1) return together;
    const float most = together.across > 0 ? cost_of(&together) / ALONG : INFINITY;
    layout apart = {0};
    float quads = 0;
    for (int i = 0; first + i * rows < last; i++)
        quads += padding * (float)least_quads(list, first + i * rows);
    for (int i = 0; first + i * rows < last && quads < most; i++) {
        const int64_t from = first + i * rows, to = gspi_min(from + rows, last);
        const float least = (float)least_quads(list, from);
        apart.along[i] = count_steps(list, from, to, rows, w).along[0];
        quads += (float)apart.along[i] - padding * least;
        if (least > 0) *seen = fminf(*seen, (float)apart.along[i] / least);
    }
    return quads < most ? apart : together;
}

/* ----------------------------------------------------------------- choice */

static windows windows_of(const gspi_entry *entry, int64_t x_size, int64_t grain, int64_t per_row) {
    return (windows){entry->width, grain, gspi_max(0, x_size - entry->width), per_row};
}

static float gather_cost(const gspi_rows *list, const gspi_entry *entry) {
    uint64_t quads = 0;
    for (int64_t strip = 0; strip < list->rows; strip += entry->lanes)
        quads += (uint64_t)least_quads(list, strip);
    return (float)quads * entry->cost;
}

/* What a table costs at least: rows differ in length, whatever else is padded. */
static float bound_of(const gspi_rows *list, int64_t x_size, const candidate *c) {
    const gspi_entry *entry = c->entry;
    const windows w = windows_of(entry, x_size, c->grain, c->per_row);
    const int64_t strip = strip_rows(entry, c->per_row);
    float quads = 0;
    for (int64_t first = 0; first < list->rows; first += 4 * strip)
        quads += least_cost(list, first, gspi_min(first + 4 * strip, list->rows), strip, &w);
    return quads * (float)(4 * entry->lanes) / 64 * entry->cost * (c->grain == 1 ? UNALIGNED : 1);
}

/* Counts one more part of a sample of the fours of strips, which are evenly spread, and takes what others cost above
 * their bound to be as much. */
static void count_part(gspi_rows *list, int64_t x_size, candidate *c) {
    const gspi_entry *entry = c->entry;
    const windows w = windows_of(entry, x_size, c->grain, c->per_row);
    const int64_t strip = strip_rows(entry, c->per_row),
                  fours = gspi_ceil_div(list->rows, 4 * strip);
    const int64_t sampled = gspi_min(fours, SAMPLED * c->per_row);
    for (int64_t i = c->parts++; i < sampled; i += PARTS) {
        const int64_t first = (2 * i + 1) * fours / (2 * sampled) * 4 * strip,
                      last = gspi_min(first + 4 * strip, list->rows);
        const layout l = count_quads(list, first, last, entry, &w, 1, &c->padding);
        c->quads += cost_of(&l);
        c->least += least_cost(list, first, last, strip, &w);
    }
    if (c->least > 0) c->cost = c->bound * c->quads / c->least;
}

/* All that take the matrix; returns how many. */
static int list_candidates(const gsp_matrix *matrix, const gspi_entry *first, const gspi_entry *end,
                           const gspi_rows *list, int64_t x_size, candidate *candidates) {
    int count = 0;
    for (const gspi_entry *entry = first; entry < end; entry++) {
        if (!gspi_takes(entry, matrix, GSPI_SPMV)) continue;
        candidate c = {
            .entry = entry, .per_row = 1, .grain = 1, .parts = PARTS, .padding = INFINITY};
        if (entry->form != GSPI_TABLES) {
            c.cost = entry->form == GSPI_GATHER
                         ? gather_cost(list, entry)
                         : (float)gspi_block_slots(matrix, entry) / 64 * entry->cost;
            candidates[count++] = c;
            continue;
        }
        c.parts = 0;
        const int first = count;
        candidates[count++] = c;
        /* Where masks are balanced over windows in fixed places, rows of unlike counts differ in whole steps, which go
         * along. */
        c.grain = entry->width;
        if (matrix->pattern.kind == GSP_GS && entry->width > entry->lanes) candidates[count++] = c;
        c.grain = entry->lanes;
        candidates[count++] = c;
        c.per_row = 4;
        if (matrix->pattern.kind == GSP_BLOCK && matrix->pattern.block_cols > 1)
            candidates[count++] = c;
        for (int i = first; i < count; i++)
            candidates[i].bound = candidates[i].cost = bound_of(list, x_size, &candidates[i]);
    }
    return count;
}

/* The cheapest. Whichever seems to be is counted further, until the cheapest is one that has been counted: so balanced
 * masks, which have no padding, need a single count. */
static candidate choose(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                        const gspi_entry *end, gspi_rows *list, int64_t x_size) {
    candidate candidates[4 * MAX_ENTRIES];
    const int count = list_candidates(matrix, first, end, list, x_size, candidates);
    for (;;) {
        candidate *best = &candidates[0];
        for (int i = 1; i < count; i++)
            if (candidates[i].cost < best->cost) best = &candidates[i];
        if (best->parts < PARTS) {
            count_part(list, x_size, best);
            continue;
        }
        for (int i = 0; i < count; i++)
            gspi_weigh(plan, best->entry, best->cost, candidates[i].entry, candidates[i].cost);
        return *best;
    }
}

/* ---------------------------------------------------------------- packing */

/* How far each of up to MAX_ROWS rows is. */
typedef struct {
    const gspi_element *at[MAX_ROWS];
} front;

/* Rows [first, last) of the list, and some more that are done from the start: `rows` in all. */
static void begin_front(const gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                        front *f) {
    const gspi_element *const done = gspi_row(list, last - 1) + gspi_row_size(list, last - 1);
    for (int64_t i = 0; i < rows; i++)
        f->at[i] = first + i < last ? gspi_row(list, first + i) : done;
}

/* The next elements of one strip, as far as they are in the window, as step 0 to 3 of a quad: rows from `first` of the
 * front on, or every fourth with several slots to a row, so that sums of strips come out in order. least: the least
 * column of what is left then. */
GSPI_INLINE void pack_step(front *f, int64_t first, int32_t begin, int32_t end, unsigned char *quad,
                           int64_t step, int64_t lanes, int64_t per_row, int32_t *least) {
    float *values = (float *)(quad + 4 * lanes) + step * lanes;
    int32_t next = GSPI_NO_KEY;
    for (int64_t lane = 0; lane < lanes; lane += per_row) {
        const gspi_element **row = &f->at[first + (per_row > 1 ? lane / per_row * 4 : lane)],
                           *at = *row;
        for (int64_t i = lane; i < lane + per_row; i++) {
            /* Whether a slot is used is hard to predict: masks instead of branches. */
            const uint32_t here = at->key < end, mask = -here;
            uint32_t bits;
            memcpy(&bits, &at->value, sizeof bits);
            bits &= mask;
            memcpy(&values[i], &bits, sizeof bits);
            quad[4 * i + step] = (unsigned char)((uint32_t)(at->key - begin) & mask);
            at += here;
        }
        *row = at;
        next = at->key < next ? at->key : next;
    }
    *least = next;
}

/* Where the next step of quads along goes. */
typedef struct {
    unsigned char *quad;
    uint32_t *tables;
    int64_t steps; /* so far */
} along_end;

GSPI_INLINE void pack_along(front *f, int64_t strip, int32_t begin, int32_t end, along_end *to,
                            int64_t lanes, int32_t *least) {
    const int64_t step = to->steps % 4;
    pack_step(f, strip * lanes, begin, end, to->quad, step, lanes, 1, least);
    to->tables[to->steps++] = (uint32_t)begin;
    if (step == 3) to->quad += gspi_quad_bytes(GSPI_TABLES, (int)lanes);
}

/* Packs rows [first, last) as `four` says into its quads and tables. */
GSPI_INLINE void pack_four_of(const gspi_rows *list, int64_t first, int64_t last, const windows *w,
                              const gspi_four *four, unsigned char *quad, uint32_t *tables,
                              int64_t lanes, int64_t per_row) {
    const size_t quad_bytes = gspi_quad_bytes(GSPI_TABLES, (int)lanes);
    front f;
    int32_t least[4];
    along_end ends[4];
    unsigned char *at = quad + four->across * quad_bytes;
    uint32_t *table = tables + four->across;
    begin_front(list, first, last, 4 * lanes / per_row, &f);
    for (int strip = 0; strip < 4; strip++) {
        ends[strip] = (along_end){at, table, 0};
        least[strip] = GSPI_NO_KEY;
        for (int64_t i = strip * lanes / per_row; i < (strip + 1) * lanes / per_row; i++)
            least[strip] = f.at[i]->key < least[strip] ? f.at[i]->key : least[strip];
        /* The last quad may have more steps than there is work for. */
        memset(at, 0, four->along[strip] * quad_bytes);
        memset(table, 0, 4 * four->along[strip] * sizeof *table);
        at += four->along[strip] * quad_bytes;
        table += 4 * four->along[strip];
    }
    const bool both = table > tables + four->across;
    for (int strip = 0; four->across == 0 && strip < 4; strip++)
        while (least[strip] != GSPI_NO_KEY) {
            const int32_t begin = (int32_t)window_at(w, least[strip]);
            pack_along(&f, strip, begin, begin + (int32_t)w->width, &ends[strip], lanes,
                       &least[strip]);
        }
    for (;;) {
        int32_t all = GSPI_NO_KEY;
        for (int strip = 0; strip < 4; strip++) all = least[strip] < all ? least[strip] : all;
        if (all == GSPI_NO_KEY) return;
        const int32_t begin = (int32_t)window_at(w, all), end = begin + (int32_t)w->width;
        int strips = 0;
        for (int strip = 0; strip < 4; strip++) strips += least[strip] < end;
        if (both && goes_along(strips, per_row)) {
            for (int strip = 0; strip < 4; strip++)
                if (least[strip] < end)
                    pack_along(&f, strip, begin, end, &ends[strip], lanes, &least[strip]);
        } else {
            *tables++ = (uint32_t)begin;
            for (int64_t strip = 0; strip < 4; strip++)
                pack_step(&f, per_row > 1 ? strip : strip * lanes, begin, end, quad, strip, lanes,
                          per_row, &least[strip]);
            quad += quad_bytes;
        }
    }
}

GSPI_INLINE void pack_lanes(const gspi_rows *list, int64_t first, int64_t last, const windows *w,
                            const gspi_four *four, unsigned char *quad, uint32_t *tables,
                            int64_t lanes) {
    if (w->per_row > 1) pack_four_of(list, first, last, w, four, quad, tables, lanes, 4);
    else pack_four_of(list, first, last, w, four, quad, tables, lanes, 1);
}

static void pack_four(const gspi_rows *list, int64_t first, int64_t last, const windows *w,
                      const gspi_four *four, unsigned char *quad, uint32_t *tables, int64_t lanes) {
    switch (lanes) {
    case 16: pack_lanes(list, first, last, w, four, quad, tables, 16); break;
    case 8: pack_lanes(list, first, last, w, four, quad, tables, 8); break;
    default: pack_lanes(list, first, last, w, four, quad, tables, 4); break;
    }
}

static gsp_status pack_tables(gsp_plan *plan, gspi_rows *list, const candidate *best) {
    const gspi_entry *entry = best->entry;
    const windows w = windows_of(entry, plan->x_size, best->grain, best->per_row);
    const size_t quad_bytes = gspi_quad_bytes(GSPI_TABLES, entry->lanes);
    const int64_t rows = 4 * strip_rows(entry, best->per_row);
    plan->per_row = best->per_row;
    plan->align_x = best->grain > 1;
    plan->units = gspi_ceil_div(list->rows, rows);
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    plan->fours = gspi_plan_alloc(plan, (uint64_t)plan->units, sizeof *plan->fours);
    GSP_CHECK(plan->start != NULL && plan->fours != NULL, GSP_ERROR_MEMORY);
    float padding = best->padding < INFINITY ? best->padding : 1;
    uint64_t tables = plan->start[0] = 0;
    for (int64_t u = 0; u < plan->units; u++) {
        const int64_t first = u * rows, last = gspi_min(first + rows, list->rows);
        const layout l = count_quads(list, first, last, entry, &w, padding, &padding);
        gspi_four *four = &plan->fours[u];
        *four = (gspi_four){.table = tables, .across = (uint64_t)l.across};
        for (int i = 0; i < 4; i++) four->along[i] = (uint64_t)l.along[i];
        plan->start[u + 1] = plan->start[u] + four->across + (uint64_t)quads_along(&l);
        tables += four->across + 4 * (uint64_t)quads_along(&l);
    }
    const uint64_t quads = plan->start[plan->units];
    bool natural = true;
    for (int64_t row = 0; row < list->rows; row++) natural = natural && list->order[row] == row;
    plan->slots = quads * 4 * (uint64_t)entry->lanes;
    plan->packed = gspi_plan_alloc(plan, quads, quad_bytes);
    plan->tables = gspi_plan_alloc(plan, tables, sizeof *plan->tables);
    if (!natural)
        plan->row_map = gspi_plan_alloc(plan, (uint64_t)list->rows, sizeof *plan->row_map);
    GSP_CHECK(plan->packed != NULL && plan->tables != NULL && (natural || plan->row_map != NULL),
              GSP_ERROR_MEMORY);
    if (!natural) memcpy(plan->row_map, list->order, (size_t)list->rows * sizeof *list->order);
    for (int64_t u = 0; u < plan->units; u++) {
        const int64_t first = u * rows, last = gspi_min(first + rows, list->rows);
        GSP_TRY(gspi_read_rows(list, first, last));
        pack_four(list, first, last, &w, &plan->fours[u],
                  plan->packed + plan->start[u] * quad_bytes, plan->tables + plan->fours[u].table,
                  entry->lanes);
    }
    return GSP_OK;
}

static gsp_status pack_gather(gsp_plan *plan, gspi_rows *list) {
    const int64_t lanes = plan->entry->lanes;
    const size_t quad_bytes = gspi_quad_bytes(GSPI_GATHER, plan->entry->lanes);
    plan->units = gspi_ceil_div(list->rows, lanes);
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    plan->row_map = gspi_plan_alloc(plan, (uint64_t)list->rows, sizeof *plan->row_map);
    GSP_CHECK(plan->start != NULL && plan->row_map != NULL, GSP_ERROR_MEMORY);
    memcpy(plan->row_map, list->order, (size_t)list->rows * sizeof *list->order);
    plan->start[0] = 0;
    for (int64_t u = 0; u < plan->units; u++)
        plan->start[u + 1] = plan->start[u] + (uint64_t)least_quads(list, u * lanes);
    plan->slots = plan->start[plan->units] * 4 * (uint64_t)lanes;
    plan->packed = gspi_plan_alloc(plan, plan->start[plan->units], quad_bytes);
    GSP_CHECK(plan->packed != NULL, GSP_ERROR_MEMORY);
    for (int64_t u = 0; u < plan->units; u++) {
        const int64_t first = u * lanes, last = gspi_min(first + lanes, list->rows);
        unsigned char *const packed = plan->packed + plan->start[u] * quad_bytes;
        memset(packed, 0, (plan->start[u + 1] - plan->start[u]) * quad_bytes);
        GSP_TRY(gspi_read_rows(list, first, last));
        for (int64_t place = first; place < last; place++) {
            const gspi_element *row = gspi_row(list, place);
            for (uint64_t i = 0; i < gspi_row_size(list, place); i++) {
                unsigned char *quad = packed + i / 4 * quad_bytes;
                const int64_t slot = (int64_t)(i % 4) * lanes + place - first;
                ((int32_t *)quad)[slot] = row[i].key;
                ((float *)(quad + 16 * lanes))[slot] = row[i].value;
            }
        }
    }
    return GSP_OK;
}

/* ------------------------------------------------------------------- plan */

int64_t gspi_bank_stride(const gsp_matrix *matrix) {
    const gsp_pattern *pattern = &matrix->pattern;
    if (pattern->kind != GSP_GS || pattern->layout != GSP_INTERLEAVED || pattern->banks == 1 ||
        pattern->banks != pattern->per_row)
        return 0;
    const int64_t stride = gspi_ceil_div(matrix->cols, pattern->banks);
    return stride * pattern->banks <= GSPI_MAX_COPY ? stride : 0;
}

/* Samples that the cheapest kernel serves: fewer, the more of its cost is padding. */
static int64_t most_samples(const candidate *best, uint64_t entries) {
    const float bare = (float)entries / 64 * best->entry->cost;
    const float most = best->entry->most * (best->cost > bare ? bare / best->cost : 1);
    return gspi_max(1, (int64_t)most);
}

/* Lays the rows of the list out as the candidate wants them. */
static gsp_status pack_rows(gsp_plan *plan, const gsp_matrix *matrix, gspi_rows *list,
                            const candidate *c) {
    plan->entry = c->entry;
    plan->entries = list->entries;
    switch (c->entry->form) {
    case GSPI_TABLES: return pack_tables(plan, list, c);
    case GSPI_GATHER: return pack_gather(plan, list);
    default: return gspi_pack_blocks(plan, matrix);
    }
}

gsp_status gspi_plan_rows(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                          const gspi_entry *end, int64_t n) {
    const int64_t bank_stride = gspi_bank_stride(matrix),
                  x_size = bank_stride > 0 ? bank_stride * matrix->pattern.banks : matrix->cols;
    gspi_rows list;
    GSP_TRY(gspi_open_rows(plan->context, matrix, true, bank_stride, &list));
    const candidate best = choose(plan, matrix, first, end, &list, x_size);
    gsp_status status = GSP_OK;
    plan->most = most_samples(&best, list.entries);
    if (n <= plan->most) {
        plan->bank_stride = bank_stride;
        plan->x_size = gspi_max(x_size, best.entry->width);
        status = pack_rows(plan, matrix, &list, &best);
    }
    gspi_close_rows(&list);
    return status;
}
