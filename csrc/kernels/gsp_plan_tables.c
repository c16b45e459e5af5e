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
#include <string.h>

#include "../format/gsp_visit.h"
#include "gsp_plan.h"

/* Strips whose quads are counted to choose a kernel: as many fours of strips, evenly spread. */
#define SAMPLED 12
/* What quads along cost beside those across, and tables that may lie in two cache lines beside those that do not:
 * measured as the costs of kernels.inc. */
#define ALONG 1.4f
#define UNALIGNED 1.15f
/* Rows of four strips at most. */
#define MAX_ROWS (4 * 16)

typedef struct {
    int64_t width, grain;
    int64_t last; /* a window begins here at most */
    int64_t per_row;
} windows;

typedef struct {
    const gspi_entry *entry;
    int64_t per_row, grain;
    float cost;
} candidate;

/* ---------------------------------------------------------------- windows */

/* How far each of up to MAX_ROWS rows is: its next element, and that one's key. */
typedef struct {
    int64_t rows;
    uint64_t at[MAX_ROWS];
    int32_t next[MAX_ROWS];
} front;

static front front_of(const gspi_rows *list, int64_t first, int64_t last) {
    front f = {.rows = last - first};
    for (int64_t i = 0; i < f.rows; i++) {
        f.at[i] = list->start[first + i];
        f.next[i] = list->key[f.at[i]];
    }
    return f;
}

/* Where the next window begins, GSPI_NO_KEY if all rows are done. */
static int64_t next_window(const front *f, const windows *w) {
    int32_t least = GSPI_NO_KEY;
    for (int64_t i = 0; i < f->rows; i++) least = f->next[i] < least ? f->next[i] : least;
    if (least == GSPI_NO_KEY) return least;
    return gspi_min(least - least % w->grain, w->last);
}

GSPI_INLINE int64_t count_steps_of(const gspi_rows *list, int64_t first, int64_t last,
                                   const windows *w, int64_t per_row) {
    front f = front_of(list, first, last);
    int64_t steps = 0, begin;
    while ((begin = next_window(&f, w)) != GSPI_NO_KEY) {
        const int32_t end = (int32_t)(begin + w->width);
        for (int64_t i = 0; i < f.rows; i++) {
            if (per_row == 1) f.at[i] += f.next[i] < end;
            else
                for (int64_t j = 0; j < per_row; j++) f.at[i] += list->key[f.at[i]] < end;
            f.next[i] = list->key[f.at[i]];
        }
        steps++;
    }
    return steps;
}

/* Steps that rows [first, last) of the list take together. */
static int64_t count_steps(const gspi_rows *list, int64_t first, int64_t last, const windows *w) {
    return w->per_row == 1 ? count_steps_of(list, first, last, w, 1)
                           : count_steps_of(list, first, last, w, w->per_row);
}

static int64_t strip_rows(const gspi_entry *entry, int64_t per_row) {
    return entry->lanes / per_row;
}

/* Quads along for the strips of rows [first, last). */
static int64_t count_along(const gspi_rows *list, int64_t first, int64_t last, int64_t rows,
                           const windows *w) {
    int64_t quads = 0;
    for (int64_t strip = first; strip < last; strip += rows)
        quads += gspi_ceil_div(count_steps(list, strip, gspi_min(strip + rows, last), w), 4);
    return quads;
}

/* How rows [first, last), at most four strips, are laid out for the least cost: *along says which way, and the result
 * is the number of quads. */
static int64_t count_quads(const gspi_rows *list, int64_t first, int64_t last,
                           const gspi_entry *entry, const windows *w, bool *along) {
    *along = false;
    const int64_t across = count_steps(list, first, last, w);
    /* Sums of several slots of a row are only brought together across. */
    if (w->per_row > 1) return across;
    const uint64_t entries = list->start[last] - list->start[first] - (uint64_t)(last - first);
    /* Even without padding, quads along would cost more. */
    if ((float)across <= (float)entries / (float)(4 * entry->lanes) * ALONG) return across;
    const int64_t quads = count_along(list, first, last, strip_rows(entry, w->per_row), w);
    *along = (float)quads * ALONG < (float)across;
    return *along ? quads : across;
}

/* ----------------------------------------------------------------- choice */

static windows windows_of(const gspi_entry *entry, int64_t x_size, int64_t grain, int64_t per_row) {
    return (windows){entry->width, grain, gspi_max(0, x_size - entry->width), per_row};
}

/* Quads of a strip from row `first` of the list, its fullest, on. */
static uint64_t gather_quads(const gspi_rows *list, int64_t first) {
    const uint64_t elements = list->start[first + 1] - list->start[first] - 1;
    return elements / 4 + (elements % 4 != 0);
}

static float gather_cost(const gspi_rows *list, const gspi_entry *entry) {
    uint64_t quads = 0;
    for (int64_t strip = 0; strip < list->rows; strip += entry->lanes)
        quads += gather_quads(list, strip);
    return (float)quads * entry->cost;
}

/* Cost of a candidate, scaled up from some fours of strips. */
static float tables_cost(const gspi_rows *list, int64_t x_size, const candidate *c) {
    const gspi_entry *entry = c->entry;
    const windows w = windows_of(entry, x_size, c->grain, c->per_row);
    const int64_t rows = 4 * strip_rows(entry, c->per_row), fours = gspi_ceil_div(list->rows, rows);
    const int64_t sampled = gspi_min(fours, SAMPLED * 4 * entry->lanes / rows);
    float cost = 0;
    for (int64_t i = 0; i < sampled; i++) {
        const int64_t first = i * fours / sampled * rows;
        bool along;
        const int64_t quads =
            count_quads(list, first, gspi_min(first + rows, list->rows), entry, &w, &along);
        cost += (float)quads * entry->cost * (along ? ALONG : 1);
    }
    if (c->grain == 1) cost *= UNALIGNED;
    return sampled == 0 ? 0 : cost * (float)fours / (float)sampled;
}

static void keep_cheaper(candidate c, float cost, candidate *best) {
    c.cost = cost;
    if (best->entry == NULL || cost < best->cost) *best = c;
}

static candidate choose(const gsp_matrix *matrix, gsp_backend backend, const gspi_rows *list,
                        int64_t x_size) {
    candidate best = {0};
    for (const gspi_entry *entry = gspi_kernels; entry->name != NULL; entry++) {
        if (entry->backend != backend || !gspi_takes(entry, matrix, GSPI_SPMV)) continue;
        candidate c = {.entry = entry, .per_row = 1, .grain = 1};
        if (entry->form == GSPI_GATHER) {
            keep_cheaper(c, gather_cost(list, entry), &best);
        } else if (entry->form == GSPI_TABLES) {
            keep_cheaper(c, tables_cost(list, x_size, &c), &best);
            c.grain = entry->lanes;
            keep_cheaper(c, tables_cost(list, x_size, &c), &best);
            if (matrix->pattern.kind != GSP_BLOCK || matrix->pattern.block_cols == 1) continue;
            c.per_row = 4;
            keep_cheaper(c, tables_cost(list, x_size, &c), &best);
        } else {
            const uint64_t slots = gspi_block_slots(matrix, entry);
            keep_cheaper(c, (float)slots / 64 * entry->cost, &best);
        }
    }
    return best;
}

/* ---------------------------------------------------------------- packing */

/* Rows of the list that make a unit of the plan, and its quads. */
typedef struct {
    int64_t first, last;
    uint64_t quads;
} unit;

/* Where slots lie in a quad: byte of the positions, and float. [row of the unit * per_row + slot of the row] */
typedef struct {
    int64_t byte[MAX_ROWS], value[MAX_ROWS];
} slots;

static slots slots_of(int64_t lanes, int64_t per_row) {
    slots s;
    for (int64_t i = 0; i < 4 * lanes; i++) {
        /* With several slots to a row, row r is in strip r % 4: so the sums come out in order. */
        const int64_t row = i / per_row;
        const int64_t strip = per_row > 1 ? row % 4 : i / lanes,
                      lane = per_row > 1 ? row / 4 * per_row + i % per_row : i % lanes;
        s.byte[i] = 4 * lane + strip;
        s.value[i] = strip * lanes + lane;
    }
    return s;
}

GSPI_INLINE void pack_steps_of(const gsp_plan *plan, const gspi_rows *list, const unit *u,
                               const windows *w, bool along, const slots *s, unsigned char *quad,
                               uint32_t *tables, int64_t per_row) {
    const int64_t lanes = plan->entry->lanes;
    const size_t quad_bytes = gspi_quad_bytes(GSPI_TABLES, plan->entry->lanes);
    const int32_t *keys = list->key;
    const float *elements = list->values;
    const int64_t steps = (int64_t)u->quads * (along ? 4 : 1);
    front f = front_of(list, u->first, u->last);
    /* Lanes without a row are done from the start. */
    for (; f.rows < (along ? 1 : 4) * lanes / per_row; f.rows++) {
        f.at[f.rows] = list->start[u->first + 1] - 1;
        f.next[f.rows] = GSPI_NO_KEY;
    }
    for (int64_t step = 0; step < steps; step++) {
        int64_t begin = next_window(&f, w);
        if (begin == GSPI_NO_KEY) begin = 0; /* the last quad along */
        const int32_t end = (int32_t)(begin + w->width);
        unsigned char *words = quad + (size_t)(along ? step / 4 : step) * quad_bytes;
        float *values = (float *)(words + 4 * lanes);
        if (along) {
            words += step % 4;
            values += step % 4 * lanes;
        }
        tables[step] = (uint32_t)begin;
        for (int64_t i = 0; i < f.rows; i++) {
            for (int64_t j = 0; j < per_row; j++) {
                /* Whether a slot is used is hard to predict: masks instead of branches. */
                const int32_t key = keys[f.at[i]];
                const uint32_t here = key < end, mask = -here;
                uint32_t bits;
                memcpy(&bits, &elements[f.at[i]], sizeof bits);
                bits &= mask;
                words[s->byte[i * per_row + j]] = (unsigned char)((uint32_t)(key - begin) & mask);
                memcpy(&values[s->value[i * per_row + j]], &bits, sizeof bits);
                f.at[i] += here;
            }
            f.next[i] = keys[f.at[i]];
        }
    }
}

/* Packs a unit into its quads; tables [steps]. */
static void pack_steps(const gsp_plan *plan, const gspi_rows *list, const unit *u, const windows *w,
                       bool along, const slots *s, unsigned char *quad, uint32_t *tables) {
    if (w->per_row == 1) pack_steps_of(plan, list, u, w, along, s, quad, tables, 1);
    else pack_steps_of(plan, list, u, w, along, s, quad, tables, w->per_row);
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
            units[count] = (unit){strip, end, (uint64_t)count_along(list, strip, end, rows, w)};
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
    const slots s = slots_of(entry->lanes, w->per_row);
    for (int64_t u = 0, place = 0; u < plan->units; u++) {
        const uint64_t item = plan->start[u];
        pack_steps(plan, list, &units[u], w, u >= plan->fours, &s,
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
        plan->start[u + 1] = plan->start[u] + gather_quads(list, u * lanes);
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
            ((int32_t *)quad)[slot] = list->key[e];
            ((float *)(quad + 16 * lanes))[slot] = list->values[e];
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
