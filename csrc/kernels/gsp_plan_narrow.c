/* Lays rows out for narrow values: some strips of rows together, which share their windows.
 *
 * Windows of x and how rows move through them: see gsp_plan_tables.c. Here a row may have several of its next elements
 * in a step, side by side. Two strips share a window (four, where tables are floats): with more, rows that differ pad
 * each other; with one, loads of tables and not permutes would set the pace of several samples. */
#include <string.h>

#include "../format/gsp_visit.h"
#include "gsp_narrow.h"
#include "gsp_plan.h"

/* Units whose steps are counted to choose a kernel, evenly spread. */
#define SAMPLED 16
/* What tables that may lie in two cache lines cost beside those that do not. */
#define UNALIGNED 1.1f
#define MAX_ROWS (4 * 16) /* of a unit */
/* Of a row, so that no 32-bit sum of bytes can overflow. */
#define MOST_BYTES 65536
/* Sums of whole floats are exact below. */
#define EXACT (1 << 24)

typedef struct {
    const gspi_entry *entry;
    int64_t grain, last; /* a window begins at a multiple of grain, or at last */
    int64_t slots, rows; /* of a row in a step; of a unit */
    float cost;
} candidate;

/* ---------------------------------------------------------------- windows */

/* How far each row of a unit is. */
typedef struct {
    int64_t rows;
    const gspi_element *at[MAX_ROWS];
} front;

static front front_of(const gspi_rows *list, const candidate *c, int64_t unit) {
    const int64_t first = unit * c->rows;
    front f = {.rows = gspi_min(c->rows, list->rows - first)};
    for (int64_t i = 0; i < f.rows; i++) f.at[i] = gspi_row(list, first + i);
    return f;
}

/* Where the next window begins, GSPI_NO_KEY if all rows are done. */
static int32_t next_window(const front *f, const candidate *c) {
    int32_t least = GSPI_NO_KEY;
    for (int64_t i = 0; i < f->rows; i++) least = f->at[i]->key < least ? f->at[i]->key : least;
    return least == GSPI_NO_KEY ? least : (int32_t)gspi_min(least & -c->grain, c->last);
}

/* Steps of a unit; for each number of slots. */
GSPI_INLINE int64_t count_steps_of(const gspi_rows *list, const candidate *c, int64_t unit,
                                   int64_t slots) {
    front f = front_of(list, c, unit);
    int64_t steps = 0;
    for (int32_t begin; (begin = next_window(&f, c)) != GSPI_NO_KEY; steps++)
        for (int64_t i = 0; i < f.rows; i++)
            /* Whether a slot is used is hard to predict: no branches. */
            for (int64_t j = 0; j < slots; j++) f.at[i] += f.at[i]->key < begin + c->entry->width;
    return steps;
}

static int64_t count_steps(const gspi_rows *list, const candidate *c, int64_t unit) {
    switch (c->slots) {
    case 4: return count_steps_of(list, c, unit, 4);
    case 2: return count_steps_of(list, c, unit, 2);
    default: return count_steps_of(list, c, unit, 1);
    }
}

/* ----------------------------------------------------------------- choice */

/* The largest sum of absolute values of a row, for values of int8. */
typedef struct {
    const gsp_matrix *matrix;
    uint32_t *sums;
} row_sums;

static void add_size(void *argument, int64_t row, int64_t col, uint64_t element) {
    (void)col;
    const row_sums *r = argument;
    const int value = ((const int8_t *)r->matrix->values)[element];
    r->sums[row] += (uint32_t)(value < 0 ? -value : value);
}

/* Whether sums of whole numbers up to 255 times int8 values are exact in floats, in any order. */
static gsp_status floats_are_exact(gsp_context *context, const gsp_matrix *matrix, bool *exact) {
    row_sums r = {matrix, gspi_calloc(context, (size_t)matrix->rows, sizeof *r.sums)};
    GSP_CHECK(r.sums != NULL, GSP_ERROR_MEMORY);
    gspi_visit(matrix, 0, gsp_groups(&matrix->pattern, matrix->rows), add_size, &r);
    *exact = true;
    for (int64_t row = 0; row < matrix->rows; row++)
        *exact = *exact && r.sums[row] <= (uint32_t)(EXACT / 255);
    gspi_free(context, r.sums);
    return GSP_OK;
}

static bool takes(const gspi_entry *entry, const gsp_plan *plan, const gsp_matrix *matrix,
                  uint32_t features, bool exact) {
    if (entry->op != GSPI_SPMV || !(entry->operands >> plan->operand & 1) ||
        !(entry->dtypes >> matrix->dtype & 1) || !(entry->kinds >> matrix->pattern.kind & 1) ||
        (entry->needs & ~features) != 0)
        return false;
    switch (entry->form) {
    case GSPI_ROWS: return true;
    case GSPI_FLOATS: return exact && matrix->cols <= GSPI_MAX_COPY;
    case GSPI_BYTES: return matrix->cols <= MOST_BYTES;
    default: return matrix->cols <= INT32_MAX - 64;
    }
}

/* Entries of x as the kernel sees it: for tables that are copied anyway, a multiple of the grain. */
static int64_t x_size_of(const gsp_plan *plan, const gspi_entry *entry) {
    const int64_t size = gspi_max(plan->x_size, entry->width);
    return entry->form == GSPI_BYTES ? gspi_ceil_div(size, 64) * 64 : size;
}

static float cost_of(const gspi_rows *list, const candidate *c) {
    const int64_t units = gspi_ceil_div(list->rows, c->rows), sampled = gspi_min(units, SAMPLED);
    int64_t steps = 0;
    for (int64_t i = 0; i < sampled; i++) steps += count_steps(list, c, i * units / sampled);
    return (float)(steps * c->slots * c->rows) * c->entry->cost * (c->grain == 1 ? UNALIGNED : 1);
}

/* The cheapest of [first, end), which are of one backend, with tables. */
static candidate choose(gsp_plan *plan, const gsp_matrix *matrix, const gspi_rows *list,
                        const gspi_entry *first, const gspi_entry *end, uint32_t features,
                        bool exact) {
    candidate best = {0};
    for (const gspi_entry *entry = first; entry < end; entry++) {
        if (!takes(entry, plan, matrix, features, exact)) continue;
        candidate c = {.entry = entry,
                       .grain = 1,
                       .last = x_size_of(plan, entry) - entry->width,
                       .slots = gspi_slots(entry->form),
                       .rows = gspi_strips_of(entry->form) * entry->lanes};
        /* Tables that begin anywhere, or where registers of x do. */
        for (int i = 0; i < 2; i++, c.grain = entry->lanes * c.slots) {
            c.cost = cost_of(list, &c);
            if (best.entry == NULL || c.cost < best.cost) {
                if (best.entry != NULL) gspi_weigh(plan, c.entry, c.cost, best.entry, best.cost);
                best = c;
            } else {
                gspi_weigh(plan, best.entry, best.cost, entry, c.cost);
            }
        }
    }
    return best;
}

/* ---------------------------------------------------------------- packing */

GSPI_INLINE void pack_value(unsigned char *to, float value, size_t size) {
    if (size == 1) {
        *to = (unsigned char)(int8_t)value;
        return;
    }
    const uint16_t half = gspi_to_bfloat16(value);
    memcpy(to, &half, sizeof half);
}

/* Items are cleared: what a row has nothing for stays 0. */
GSPI_INLINE void pack_unit(const gsp_plan *plan, const gspi_rows *list, const candidate *c,
                           int64_t unit, int64_t slots, size_t size) {
    const int64_t lanes = plan->entry->lanes, together = 4 / slots;
    const size_t item_bytes = gspi_item_bytes(plan);
    unsigned char *item = plan->packed + plan->start[unit] * item_bytes;
    front f = front_of(list, c, unit);
    for (uint64_t step = plan->start[unit]; step < plan->start[unit + 1]; step++) {
        const int32_t begin = next_window(&f, c), end = begin + c->entry->width;
        plan->tables[step] = (uint32_t)begin;
        for (int64_t i = 0; i < f.rows; i++) {
            const int64_t strip = i / lanes, row = i % lanes;
            unsigned char *positions =
                item + (strip / together * lanes + row) * slots * together + strip % together;
            unsigned char *values = item + (size_t)(c->rows * slots) + (size_t)(i * slots) * size;
            for (int64_t j = 0; j < slots && f.at[i]->key < end; j++, f.at[i]++) {
                positions[j * together] = (unsigned char)(f.at[i]->key - begin);
                pack_value(values + (size_t)j * size, f.at[i]->value, size);
            }
        }
        item += item_bytes;
    }
}

static void pack_units(const gsp_plan *plan, const gspi_rows *list, const candidate *c) {
    const size_t size = gsp_dtype_size(plan->matrix.dtype);
    for (int64_t unit = 0; unit < plan->units; unit++) switch (c->slots) { /* compiled for each */
        case 4: pack_unit(plan, list, c, unit, 4, 1); break;
        case 2: pack_unit(plan, list, c, unit, 2, 2); break;
        default: pack_unit(plan, list, c, unit, 1, size); break;
        }
}

/* What the epilogue of int8 multiplies with, by place. */
static gsp_status order_scales(gsp_plan *plan, const float *scales, const gspi_rows *list) {
    const int64_t rows = gspi_strips_of(plan->entry->form) * plan->entry->lanes;
    const uint64_t places = (uint64_t)(gspi_ceil_div(list->rows, rows) * rows);
    plan->scales = gspi_plan_alloc(plan, places, sizeof *plan->scales);
    plan->weights = gspi_plan_alloc(plan, places, sizeof *plan->weights);
    GSP_CHECK(plan->scales != NULL && plan->weights != NULL, GSP_ERROR_MEMORY);
    gspi_clear(plan->scales, places * sizeof *plan->scales);
    gspi_clear(plan->weights, places * sizeof *plan->weights);
    for (int64_t place = 0; place < list->rows; place++) {
        plan->scales[place] = scales[list->order[place]];
        if (plan->entry->form == GSPI_BYTES || plan->entry->form == GSPI_TILES)
            for (uint64_t i = 0; i < gspi_row_size(list, place); i++)
                plan->weights[place] += (int32_t)gspi_row(list, place)[i].value;
    }
    return GSP_OK;
}

static gsp_status pack_tables(gsp_plan *plan, const gspi_rows *list, const candidate *c) {
    const uint32_t *order = list->order;
    const size_t item_bytes = gspi_item_bytes(plan);
    plan->x_size = x_size_of(plan, plan->entry);
    plan->align_x = c->grain > 1;
    plan->units = gspi_ceil_div(list->rows, c->rows);
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    GSP_CHECK(plan->start != NULL, GSP_ERROR_MEMORY);
    plan->start[0] = 0;
    for (int64_t unit = 0; unit < plan->units; unit++)
        plan->start[unit + 1] = plan->start[unit] + (uint64_t)count_steps(list, c, unit);
    const uint64_t items = plan->start[plan->units];
    plan->slots = items * (uint64_t)(c->rows * c->slots);
    plan->packed = gspi_plan_alloc(plan, items, item_bytes);
    plan->tables = gspi_plan_alloc(plan, items, sizeof *plan->tables);
    bool natural = true;
    for (int64_t place = 0; place < list->rows; place++)
        natural = natural && order[place] == (uint32_t)place;
    if (!natural)
        plan->row_map = gspi_plan_alloc(plan, (uint64_t)list->rows, sizeof *plan->row_map);
    GSP_CHECK(plan->packed != NULL && plan->tables != NULL && (natural || plan->row_map != NULL),
              GSP_ERROR_MEMORY);
    if (!natural) memcpy(plan->row_map, order, (size_t)list->rows * sizeof *order);
    gspi_clear(plan->packed, items * item_bytes);
    pack_units(plan, list, c);
    return GSP_OK;
}

/* Rows one after the other, without what lies behind each. */
static gsp_status pack_rows(gsp_plan *plan, const gspi_rows *list) {
    plan->units = list->rows;
    plan->slots = list->entries;
    plan->start = gspi_plan_alloc(plan, (uint64_t)list->rows + 1, sizeof *plan->start);
    plan->packed = gspi_plan_alloc(plan, list->entries, sizeof(float));
    plan->tables = gspi_plan_alloc(plan, list->entries, sizeof *plan->tables);
    GSP_CHECK(plan->start != NULL && plan->packed != NULL && plan->tables != NULL,
              GSP_ERROR_MEMORY);
    float *values = (float *)(void *)plan->packed;
    uint64_t at = 0;
    for (int64_t row = 0; row < list->rows; row++) {
        plan->start[row] = at;
        for (uint64_t i = 0; i < gspi_row_size(list, row); i++, at++) {
            values[at] = gspi_row(list, row)[i].value;
            plan->tables[at] = (uint32_t)gspi_row(list, row)[i].key;
        }
    }
    plan->start[list->rows] = at;
    return GSP_OK;
}

/* ------------------------------------------------------------------- plan */

/* What 64 slots cost at least, by a kernel of [first, end). */
static float least_cost(const gspi_entry *first, const gspi_entry *end, const gsp_plan *plan,
                        const gsp_matrix *matrix, uint32_t features, bool exact) {
    float least = first->cost;
    for (const gspi_entry *entry = first; entry < end; entry++)
        if (takes(entry, plan, matrix, features, exact) && entry->cost < least) least = entry->cost;
    return least;
}

gsp_status gspi_plan_narrow(gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *first,
                            const gspi_entry *end, uint32_t features, int64_t n) {
    gsp_context *context = plan->context;
    bool exact = true;
    if (plan->operand == GSP_INT8) GSP_TRY(floats_are_exact(context, matrix, &exact));
    const gspi_entry *many = first;
    while (many < end && !gspi_takes_tiles(many, plan, matrix)) many++;
    while (first < end && !takes(first, plan, matrix, features, exact)) first++;
    GSP_CHECK(first < end || many < end, GSP_ERROR_DTYPE);
    const gspi_entry *last = first;
    while (last < end && last->backend == first->backend) last++;
    plan->entries = gspi_count_elements(matrix);
    plan->most = many == end ? (int64_t)1 << 30 /* there is no other */
                 : first == end
                     ? 0
                     : gspi_tiles_most(plan, matrix, many,
                                       least_cost(first, last, plan, matrix, features, exact));
    plan->entry = first;
    if (first == end || n > plan->most) {
        plan->entry = many;
        plan->most = 0;
    }
    const bool natural = plan->entry->form == GSPI_ROWS || plan->entry->form == GSPI_TILES;
    plan->bank_stride = natural ? 0 : gspi_bank_stride(matrix);
    plan->x_size = plan->bank_stride > 0 ? plan->bank_stride * matrix->pattern.banks : matrix->cols;
    gspi_rows list;
    GSP_TRY(gspi_open_rows(context, matrix, !natural, plan->bank_stride, &list));
    gsp_status status = gspi_read_rows(&list, 0, list.rows);
    if (status == GSP_OK && plan->entry->form == GSPI_TILES) {
        status = gspi_pack_tiles(plan, &list);
    } else if (status == GSP_OK && plan->entry->form == GSPI_ROWS) {
        status = pack_rows(plan, &list);
    } else if (status == GSP_OK) {
        const candidate best = choose(plan, matrix, &list, first, last, features, exact);
        plan->entry = best.entry;
        status = pack_tables(plan, &list, &best);
    }
    if (status == GSP_OK && plan->operand == GSP_INT8)
        status = order_scales(plan, matrix->scales, &list);
    gspi_close_rows(&list);
    return status;
}
