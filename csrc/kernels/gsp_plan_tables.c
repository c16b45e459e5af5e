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
 * first, so most strips are alike, and each four of strips is laid out as is cheaper. */
#include <math.h>
#include <string.h>

#include "../format/gsp_visit.h"
#include "gsp_plan.h"

/* Strips whose quads are counted to choose a kernel: as many fours of strips, in so many parts. */
#define SAMPLED 8
#define PARTS 4
/* What quads along cost beside those across, and tables that may lie in two cache lines beside those that do not:
 * measured as the costs of kernels.inc. */
#define ALONG 1.4f
#define UNALIGNED 1.15f
/* Bytes of rows that are loaded ahead: part of a second cache. */
#define NEAR (256 << 10)
/* Rows of four strips at most. */
#define MAX_ROWS (4 * 16)
/* Columns that are looked at together, and entries of a table at most. */
#define COLUMNS 1024
#define MAX_WIDTH 256
/* Kernels of a backend for SpMV. */
#define MAX_ENTRIES 16

/* Positions are bytes, and packing is compiled for these lanes. */
#define GSP_KERNEL(function, op, backend, dtypes, kinds, form, lanes, width, cost)                 \
    _Static_assert(GSPI_##form != GSPI_TABLES ||                                                   \
                       ((width) <= MAX_WIDTH && ((lanes) == 4 || (lanes) == 8 || (lanes) == 16)),  \
                   #function);
#include "kernels.inc"
#undef GSP_KERNEL

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
} candidate;

/* ---------------------------------------------------------------- windows */

/* Where a window begins if the least column of what is left is `least`. */
GSPI_INLINE int64_t window_at(const windows *w, int64_t least) {
    return gspi_min(least & -w->grain, w->last);
}

/* How far each of up to MAX_ROWS rows is. */
typedef struct {
    int64_t rows;
    const gspi_element *at[MAX_ROWS];
} front;

/* Rows [first, last) of the list, and some more that are done from the start: `rows` in all. */
static void begin_front(const gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                        front *f) {
    /* Many rows are read at once, more than the CPU itself would load ahead. */
    const char *from = (const char *)(list->elements + list->start[first]);
    const uint64_t bytes = (list->start[last] - list->start[first]) * sizeof *list->elements;
    for (uint64_t at = 0; at < (bytes < NEAR ? bytes : NEAR); at += 64)
        __builtin_prefetch(from + at);
    f->rows = rows;
    for (int64_t i = 0; i < rows; i++)
        f->at[i] =
            list->elements + (first + i < last ? list->start[first + i] : list->start[last] - 1);
}

static int64_t least_key(const front *f) {
    int32_t least = GSPI_NO_KEY;
    for (int64_t i = 0; i < f->rows; i++) least = f->at[i]->key < least ? f->at[i]->key : least;
    return least;
}

/* What is left of some rows, by columns: bit r of here[i] says that row r has an element in column first + i. Holds
 * all columns below `last`, and rows of the front are as far as that. A window that begins before `first` finds nothing
 * there. */
typedef struct {
    front front;
    int64_t first, last;
    uint64_t nothing[MAX_WIDTH], here[COLUMNS + MAX_WIDTH];
} columns;

/* Forgets the columns below `first`, and takes up as many more as there is space for. */
static void move_columns(columns *c, int64_t first) {
    const int64_t kept = gspi_max(0, c->last - first),
                  last = gspi_min(first + COLUMNS, GSPI_NO_KEY);
    memmove(c->here, c->here + (c->last - kept - c->first), (size_t)kept * sizeof *c->here);
    memset(c->here + kept, 0, (size_t)(COLUMNS + MAX_WIDTH - kept) * sizeof *c->here);
    for (int64_t i = 0; i < c->front.rows; i++) {
        const gspi_element *at = c->front.at[i];
        for (; at->key < last; at++) c->here[at->key - first] |= (uint64_t)1 << i;
        c->front.at[i] = at;
    }
    c->first = first;
    c->last = last;
}

/* A step: takes the first elements of each row, one or four, out of a window. */
GSPI_INLINE void take_window(uint64_t *here, int64_t width, int64_t per_row) {
    uint64_t once = 0, twice = 0, thrice = 0, full = 0; /* rows of which so many are taken */
    for (int64_t i = 0; i < width; i++) {
        const uint64_t rows = here[i];
        if (per_row == 1) {
            here[i] = rows & once;
        } else {
            here[i] = rows & full;
            full |= rows & thrice;
            thrice |= rows & twice;
            twice |= rows & once;
        }
        once |= rows;
    }
}

/* Steps that rows [first, last) of the list take together. */
GSPI_INLINE int64_t count_steps_of(const gspi_rows *list, int64_t first, int64_t last,
                                   const windows *w, int64_t width, int64_t per_row) {
    columns c;
    begin_front(list, first, last, last - first, &c.front);
    memset(c.nothing, 0, sizeof c.nothing);
    c.first = c.last = 0;
    int64_t steps = 0;
    for (uint64_t *at = c.here, *end = at;; steps++) {
        while (at < end && *at == 0) at++;
        if (at == end) {
            const int64_t least = least_key(&c.front);
            if (least == GSPI_NO_KEY) return steps;
            move_columns(&c, least);
            at = c.here;
        }
        const int64_t least = c.first + (at - c.here), begin = window_at(w, least);
        if (begin + width > c.last) {
            move_columns(&c, least);
            at = c.here;
        }
        end = c.here + (c.last - c.first);
        take_window(c.here + (begin - c.first), width, per_row);
    }
}

/* Compiled for all widths of tables that there are, so that the loop over a window does not end by a guess. */
static int64_t count_steps(const gspi_rows *list, int64_t first, int64_t last, const windows *w) {
    switch (w->per_row == 1 ? w->width : -w->width) {
    case 8: return count_steps_of(list, first, last, w, 8, 1);
    case 16: return count_steps_of(list, first, last, w, 16, 1);
    case 32: return count_steps_of(list, first, last, w, 32, 1);
    case 64: return count_steps_of(list, first, last, w, 64, 1);
    default: return count_steps_of(list, first, last, w, w->width, 4);
    }
}

static int64_t strip_rows(const gspi_entry *entry, int64_t per_row) {
    return entry->lanes / per_row;
}

/* Quads of the strip from row `first`, its fullest, on, if all its rows can go on in every step. */
static int64_t least_quads(const gspi_rows *list, int64_t first) {
    return (int64_t)((list->start[first + 1] - list->start[first] + 2) / 4);
}

/* What rows [first, last), at most four strips, cost at least, in quads across. */
static float least_cost(const gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                        const windows *w) {
    if (w->per_row > 1) return (float)least_quads(list, first);
    int64_t along = 0;
    for (int64_t strip = first; strip < last; strip += rows) along += least_quads(list, strip);
    return fminf((float)(list->start[first + 1] - list->start[first] - 1), (float)along * ALONG);
}

/* Quads along for the strips of rows [first, last); -1 once they are known to be more than `most`. */
static int64_t count_along(const gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                           const windows *w, float most) {
    int64_t quads = 0;
    for (int64_t strip = first; strip < last; strip += rows) quads += least_quads(list, strip);
    for (int64_t strip = first; strip < last && (float)quads < most; strip += rows)
        quads += gspi_ceil_div(count_steps(list, strip, gspi_min(strip + rows, last), w), 4) -
                 least_quads(list, strip);
    return (float)quads < most ? quads : -1;
}

/* How rows [first, last), at most four strips, are laid out for the least cost: *along says which way, and the result
 * is the number of quads. */
static int64_t count_quads(const gspi_rows *list, int64_t first, int64_t last,
                           const gspi_entry *entry, const windows *w, bool *along) {
    *along = false;
    const int64_t across = count_steps(list, first, last, w);
    /* Sums of several slots of a row are only brought together across. */
    if (w->per_row > 1) return across;
    const int64_t quads =
        count_along(list, first, last, strip_rows(entry, w->per_row), w, (float)across / ALONG);
    *along = quads >= 0;
    return *along ? quads : across;
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
static void count_part(const gspi_rows *list, int64_t x_size, candidate *c) {
    const gspi_entry *entry = c->entry;
    const windows w = windows_of(entry, x_size, c->grain, c->per_row);
    const int64_t strip = strip_rows(entry, c->per_row),
                  fours = gspi_ceil_div(list->rows, 4 * strip);
    const int64_t sampled = gspi_min(fours, SAMPLED * c->per_row);
    for (int64_t i = c->parts++; i < sampled; i += PARTS) {
        const int64_t first = (2 * i + 1) * fours / (2 * sampled) * 4 * strip,
                      last = gspi_min(first + 4 * strip, list->rows);
        bool along;
        const int64_t quads = count_quads(list, first, last, entry, &w, &along);
        c->quads += (float)quads * (along ? ALONG : 1);
        c->least += least_cost(list, first, last, strip, &w);
    }
    if (c->least > 0) c->cost = c->bound * c->quads / c->least;
}

/* All that take the matrix; returns how many. */
static int list_candidates(const gsp_matrix *matrix, gsp_backend backend, const gspi_rows *list,
                           int64_t x_size, candidate *candidates) {
    int count = 0;
    for (const gspi_entry *entry = gspi_kernels; entry->name != NULL; entry++) {
        if (entry->backend != backend || !gspi_takes(entry, matrix, GSPI_SPMV)) continue;
        candidate c = {.entry = entry, .per_row = 1, .grain = 1, .parts = PARTS};
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
static candidate choose(const gsp_matrix *matrix, gsp_backend backend, const gspi_rows *list,
                        int64_t x_size) {
    candidate candidates[3 * MAX_ENTRIES];
    const int count = list_candidates(matrix, backend, list, x_size, candidates);
    for (;;) {
        candidate *best = &candidates[0];
        for (int i = 1; i < count; i++)
            if (candidates[i].cost < best->cost) best = &candidates[i];
        if (best->parts == PARTS) return *best;
        count_part(list, x_size, best);
    }
}

/* ---------------------------------------------------------------- packing */

/* Rows of the list that make a unit of the plan, and its quads. */
typedef struct {
    int64_t first, last;
    uint64_t quads;
} unit;

/* Packs a unit into its quads; tables [steps]. With several slots to a row, row r is in strip r % 4: so the sums
 * come out in order. */
GSPI_INLINE void pack_steps_of(const gspi_rows *list, const unit *u, const windows *w,
                               unsigned char *quad, uint32_t *tables, int64_t lanes,
                               int64_t per_row, bool along) {
    const int64_t strips = along ? 1 : 4, steps = (int64_t)u->quads * (along ? 4 : 1);
    front f;
    begin_front(list, u->first, u->last, strips * lanes / per_row, &f);
    int32_t least[4] = {(int32_t)least_key(&f), GSPI_NO_KEY, GSPI_NO_KEY, GSPI_NO_KEY};
    for (int64_t step = 0; step < steps; step++) {
        for (int64_t strip = 1; strip < strips; strip++)
            least[0] = least[strip] < least[0] ? least[strip] : least[0];
        /* The last quad along may have more steps than there is work for. */
        const int32_t begin = least[0] == GSPI_NO_KEY ? 0 : (int32_t)window_at(w, least[0]);
        const int32_t end = begin + (int32_t)w->width;
        tables[step] = (uint32_t)begin;
        unsigned char *bytes = quad;
        float *values = (float *)(quad + 4 * lanes);
        if (along) {
            bytes += step % 4;
            values += step % 4 * lanes;
        }
        for (int64_t strip = 0; strip < strips; strip++) least[strip] = GSPI_NO_KEY;
        for (int64_t lane = 0; lane < lanes; lane++) {
            uint32_t word = 0;
            for (int64_t strip = 0; strip < strips; strip++) {
                const int64_t row =
                    per_row > 1 ? lane / per_row * strips + strip : strip * lanes + lane;
                /* Whether a slot is used is hard to predict: masks instead of branches. */
                const gspi_element *at = f.at[row];
                const uint32_t here = at->key < end, mask = -here;
                uint32_t bits;
                memcpy(&bits, &at->value, sizeof bits);
                bits &= mask;
                memcpy(&values[strip * lanes + lane], &bits, sizeof bits);
                word |= ((uint32_t)(at->key - begin) & mask) << 8 * strip;
                at += here;
                f.at[row] = at;
                if (lane % per_row == per_row - 1)
                    least[strip] = at->key < least[strip] ? at->key : least[strip];
            }
            if (along) bytes[4 * lane] = (unsigned char)word;
            else ((uint32_t *)bytes)[lane] = word;
        }
        if (!along || step % 4 == 3) quad += gspi_quad_bytes(GSPI_TABLES, (int)lanes);
    }
}

GSPI_INLINE void pack_lanes(const gspi_rows *list, const unit *u, const windows *w, int64_t lanes,
                            bool along, unsigned char *quad, uint32_t *tables) {
    if (along) pack_steps_of(list, u, w, quad, tables, lanes, 1, true);
    else if (w->per_row == 1) pack_steps_of(list, u, w, quad, tables, lanes, 1, false);
    else pack_steps_of(list, u, w, quad, tables, lanes, 4, false);
}

static void pack_steps(const gspi_rows *list, const unit *u, const windows *w, int64_t lanes,
                       bool along, unsigned char *quad, uint32_t *tables) {
    switch (lanes) {
    case 16: pack_lanes(list, u, w, 16, along, quad, tables); break;
    case 8: pack_lanes(list, u, w, 8, along, quad, tables); break;
    default: pack_lanes(list, u, w, 4, along, quad, tables); break;
    }
}

/* Lists the units: fours of strips across, then strips along. Returns their number; *fours says how many are the
 * former. units [4 * ceil(rows / four_rows)]. */
static int64_t list_units(const gspi_rows *list, const gspi_entry *entry, const windows *w,
                          unit *units, int64_t *fours) {
    const int64_t rows = strip_rows(entry, w->per_row), all = list->rows;
    const int64_t last_four = all / (4 * rows) * 4 * rows;
    int64_t across = 0, count = 0;
    bool along;
    for (int64_t first = 0; first < all; first += 4 * rows) {
        const int64_t last = gspi_min(first + 4 * rows, all);
        const int64_t quads = count_quads(list, first, last, entry, w, &along);
        /* A four that is not full must be the last unit of all. */
        if (first == last_four && w->per_row == 1 && across * 4 * rows < first) along = true;
        if (!along) units[across++] = (unit){first, last, (uint64_t)quads};
    }
    /* What is not among these goes along. */
    count = across;
    for (int64_t first = 0, seen = 0; first < all; first += 4 * rows) {
        const int64_t last = gspi_min(first + 4 * rows, all);
        if (seen < across && units[seen].first == first) {
            seen++;
            continue;
        }
        for (int64_t strip = first; strip < last; strip += rows, count++) {
            const int64_t end = gspi_min(strip + rows, last);
            units[count] =
                (unit){strip, end, (uint64_t)count_along(list, strip, end, rows, w, INFINITY)};
        }
    }
    *fours = across;
    return count;
}

static gsp_status pack_units(gsp_plan *plan, const gspi_rows *list, const uint32_t *order,
                             const windows *w, const unit *units) {
    const gspi_entry *entry = plan->entry;
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    GSP_CHECK(plan->start != NULL, GSP_ERROR_MEMORY);
    plan->start[0] = 0;
    bool natural = true;
    for (int64_t u = 0, place = 0; u < plan->units; u++) {
        plan->start[u + 1] = plan->start[u] + units[u].quads;
        for (int64_t row = units[u].first; row < units[u].last; row++)
            natural = natural && order[row] == place++;
    }
    const uint64_t across = plan->start[plan->fours], quads = plan->start[plan->units];
    plan->slots = quads * 4 * (uint64_t)entry->lanes;
    plan->packed = gspi_plan_alloc(plan, quads, gspi_quad_bytes(GSPI_TABLES, entry->lanes));
    plan->tables = gspi_plan_alloc(plan, across + 4 * (quads - across), sizeof *plan->tables);
    if (!natural)
        plan->row_map = gspi_plan_alloc(plan, (uint64_t)list->rows, sizeof *plan->row_map);
    GSP_CHECK(plan->packed != NULL && plan->tables != NULL && (natural || plan->row_map != NULL),
              GSP_ERROR_MEMORY);
    for (int64_t u = 0, place = 0; u < plan->units; u++) {
        const uint64_t item = plan->start[u];
        pack_steps(list, &units[u], w, entry->lanes, u >= plan->fours,
                   plan->packed + item * gspi_quad_bytes(GSPI_TABLES, entry->lanes),
                   plan->tables + gspi_table_of(plan, item));
        for (int64_t row = units[u].first; !natural && row < units[u].last; row++)
            plan->row_map[place++] = order[row];
    }
    return GSP_OK;
}

static gsp_status pack_tables(gsp_plan *plan, const gspi_rows *list, const uint32_t *order,
                              const candidate *best) {
    const gspi_entry *entry = best->entry;
    const windows w = windows_of(entry, plan->x_size, best->grain, best->per_row);
    const int64_t rows = strip_rows(entry, best->per_row);
    unit *units =
        gspi_alloc(plan->context, 4 * (size_t)gspi_ceil_div(list->rows, 4 * rows), sizeof *units);
    GSP_CHECK(units != NULL, GSP_ERROR_MEMORY);
    plan->per_row = best->per_row;
    plan->align_x = best->grain > 1;
    plan->units = list_units(list, entry, &w, units, &plan->fours);
    const gsp_status status = pack_units(plan, list, order, &w, units);
    gspi_free(plan->context, units);
    return status;
}

static gsp_status pack_gather(gsp_plan *plan, const gspi_rows *list, const uint32_t *order) {
    const int64_t lanes = plan->entry->lanes;
    const size_t quad_bytes = gspi_quad_bytes(GSPI_GATHER, plan->entry->lanes);
    plan->units = gspi_ceil_div(list->rows, lanes);
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    plan->row_map = gspi_plan_alloc(plan, (uint64_t)list->rows, sizeof *plan->row_map);
    GSP_CHECK(plan->start != NULL && plan->row_map != NULL, GSP_ERROR_MEMORY);
    plan->start[0] = 0;
    for (int64_t u = 0; u < plan->units; u++)
        plan->start[u + 1] = plan->start[u] + (uint64_t)least_quads(list, u * lanes);
    plan->slots = plan->start[plan->units] * 4 * (uint64_t)lanes;
    plan->packed = gspi_plan_alloc(plan, plan->start[plan->units], quad_bytes);
    GSP_CHECK(plan->packed != NULL, GSP_ERROR_MEMORY);
    memset(plan->packed, 0, plan->start[plan->units] * quad_bytes);
    for (int64_t place = 0; place < list->rows; place++) {
        const uint64_t begin = list->start[place], end = list->start[place + 1] - 1;
        plan->row_map[place] = order[place];
        for (uint64_t e = begin; e < end; e++) {
            unsigned char *quad =
                plan->packed + (plan->start[place / lanes] + (e - begin) / 4) * quad_bytes;
            const int64_t slot = (int64_t)((e - begin) % 4) * lanes + place % lanes;
            ((int32_t *)quad)[slot] = list->elements[e].key;
            ((float *)(quad + 16 * lanes))[slot] = list->elements[e].value;
        }
    }
    return GSP_OK;
}

/* ------------------------------------------------------------------- plan */

/* Places of one bank in x as the kernel sees it: interleaved banks are brought together if rows are balanced over
 * them. 0 leaves x as it is. */
static int64_t bank_stride_of(const gsp_matrix *matrix) {
    const gsp_pattern *pattern = &matrix->pattern;
    if (pattern->kind != GSP_GS || pattern->layout != GSP_INTERLEAVED || pattern->banks == 1 ||
        pattern->banks != pattern->per_row)
        return 0;
    const int64_t stride = gspi_ceil_div(matrix->cols, pattern->banks);
    return stride * pattern->banks <= GSPI_MAX_COPY ? stride : 0;
}

gsp_status gspi_plan_rows(gsp_plan *plan, const gsp_matrix *matrix, gsp_backend backend) {
    gsp_context *context = plan->context;
    gspi_rows list = {0};
    uint32_t *counts = gspi_alloc(context, (size_t)matrix->rows, sizeof *counts);
    uint32_t *order = gspi_alloc(context, (size_t)matrix->rows, sizeof *order);
    gsp_status status = counts != NULL && order != NULL ? GSP_OK : GSP_ERROR_MEMORY;
    plan->bank_stride = bank_stride_of(matrix);
    plan->x_size = plan->bank_stride > 0 ? plan->bank_stride * matrix->pattern.banks : matrix->cols;
    if (status == GSP_OK) {
        gspi_count_rows(matrix, counts);
        status = gspi_fullest_first(context, matrix, counts, order);
    }
    if (status == GSP_OK)
        status = gspi_decode_rows(context, matrix, order, plan->bank_stride, &list);
    if (status == GSP_OK) {
        const candidate best = choose(matrix, backend, &list, plan->x_size);
        plan->entry = best.entry;
        plan->entries = list.entries;
        plan->x_size = gspi_max(plan->x_size, best.entry->width);
        switch (best.entry->form) {
        case GSPI_TABLES: status = pack_tables(plan, &list, order, &best); break;
        case GSPI_GATHER: status = pack_gather(plan, &list, order); break;
        default: status = gspi_pack_blocks(plan, matrix); break;
        }
    }
    gspi_free_rows(context, &list);
    gspi_free(context, order);
    gspi_free(context, counts);
    return status;
}
