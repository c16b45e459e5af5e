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
#define SAMPLED 4
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

/* Where a window begins if the least column of what is left is `least`. */
GSPI_INLINE int64_t window_at(const candidate *c, int64_t least) {
    return gspi_min(least & -c->grain, c->last);
}

/* Steps of a unit; for each number of slots. */
GSPI_INLINE int64_t count_steps_of(gspi_rows *list, const candidate *c, int64_t unit,
                                   int64_t slots) {
    const gspi_marks *marks = &list->marks;
    const int64_t width = c->entry->width, behind = c->last + width; /* all columns */
    const int64_t first = unit * c->rows, last = gspi_min(first + c->rows, list->rows);
    int64_t steps = 0;
    gspi_mark_rows(list, first, last);
    for (int64_t least = 0; (least = gspi_next_column(marks, least)) < behind;) {
        const int64_t begin = window_at(c, least);
        if (begin + width > marks->end) {
            gspi_move_marks(list, first, last, begin);
            continue;
        }
        (void)gspi_take_window(marks->rows + (begin - marks->first), width, slots);
        steps++;
    }
    return steps;
}

static int64_t count_steps(gspi_rows *list, const candidate *c, int64_t unit) {
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

static float cost_of(gspi_rows *list, const candidate *c) {
    const int64_t units = gspi_ceil_div(list->rows, c->rows), sampled = gspi_min(units, SAMPLED);
    int64_t steps = 0;
    for (int64_t i = 0; i < sampled; i++) steps += count_steps(list, c, i * units / sampled);
    return (float)(steps * c->slots * c->rows) * c->entry->cost * (c->grain == 1 ? UNALIGNED : 1);
}

/* The cheapest of [first, end), which are of one backend, with tables. */
static candidate choose(gsp_plan *plan, const gsp_matrix *matrix, gspi_rows *list,
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

/* The value, which is one of int8 or bfloat16 as a float, or 0 if `mask` is. */
GSPI_INLINE void pack_value(unsigned char *to, float value, uint32_t mask, size_t size) {
    if (size == 1) {
        *to = (unsigned char)((uint32_t)(int32_t)value & mask);
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint16_t half = (uint16_t)((bits & mask) >> 16);
    memcpy(to, &half, sizeof half);
}

/* Packs the rows of a unit, which have been read. */
GSPI_INLINE void pack_unit_of(const gsp_plan *plan, const gspi_rows *list, const candidate *c,
                              int64_t unit, int64_t slots, size_t size) {
    const int64_t lanes = plan->entry->lanes, together = 4 / slots, first = unit * c->rows,
                  rows = gspi_min(c->rows, list->rows - first);
    const size_t item_bytes = gspi_item_bytes(plan);
    unsigned char *item = plan->packed + plan->start[unit] * item_bytes;
    const gspi_element *front[MAX_ROWS]; /* how far each row is */
    int32_t least = GSPI_NO_KEY;
    for (int64_t i = 0; i < rows; i++) {
        front[i] = gspi_row(list, first + i);
        least = front[i]->key < least ? front[i]->key : least;
    }
    /* What lanes without a row have nothing for. */
    if (rows < c->rows) memset(item, 0, (plan->start[unit + 1] - plan->start[unit]) * item_bytes);
    for (uint64_t step = plan->start[unit]; step < plan->start[unit + 1]; step++) {
        const int32_t begin = (int32_t)window_at(c, least), end = begin + c->entry->width;
        plan->tables[step] = (uint32_t)begin;
        least = GSPI_NO_KEY;
        for (int64_t i = 0; i < rows; i++) {
            const int64_t strip = i / lanes, row = i % lanes;
            unsigned char *positions =
                item + (strip / together * lanes + row) * slots * together + strip % together;
            unsigned char *values = item + (size_t)(c->rows * slots) + (size_t)(i * slots) * size;
            const gspi_element *at = front[i];
            for (int64_t j = 0; j < slots; j++) {
                /* Whether a slot is used is hard to predict: masks instead of branches. */
                const uint32_t here = at->key < end, mask = -here;
                positions[j * together] = (unsigned char)((uint32_t)(at->key - begin) & mask);
                pack_value(values + (size_t)j * size, at->value, mask, size);
                at += here;
            }
            front[i] = at;
            least = at->key < least ? at->key : least;
        }
        item += item_bytes;
    }
}

static void pack_unit(const gsp_plan *plan, const gspi_rows *list, const candidate *c,
                      int64_t unit) {
    switch (c->slots) { /* compiled for each */
    case 4: pack_unit_of(plan, list, c, unit, 4, 1); break;
    case 2: pack_unit_of(plan, list, c, unit, 2, 2); break;
    default: pack_unit_of(plan, list, c, unit, 1, gsp_dtype_size(plan->matrix.dtype)); break;
    }
}

/* What the epilogue of int8 multiplies with, by place. */
static gsp_status start_scales(gsp_plan *plan) {
    if (plan->operand != GSP_INT8) return GSP_OK;
    const int64_t rows = gspi_strips_of(plan->entry->form) * plan->entry->lanes;
    const uint64_t places = (uint64_t)(gspi_ceil_div(plan->matrix.rows, rows) * rows);
    plan->scales = gspi_plan_alloc(plan, places, sizeof *plan->scales);
    plan->weights = gspi_plan_alloc(plan, places, sizeof *plan->weights);
    GSP_CHECK(plan->scales != NULL && plan->weights != NULL, GSP_ERROR_MEMORY);
    gspi_clear(plan->scales, places * sizeof *plan->scales);
    gspi_clear(plan->weights, places * sizeof *plan->weights);
    return GSP_OK;
}

/* The same for the rows [first, last), which have been read. */
static void note_scales(gsp_plan *plan, const gspi_rows *list, int64_t first, int64_t last) {
    if (plan->operand != GSP_INT8) return;
    const bool sums = plan->entry->form == GSPI_BYTES || plan->entry->form == GSPI_TILES;
    for (int64_t place = first; place < last; place++) {
        plan->scales[place] = list->matrix->scales[list->order[place]];
        const gspi_element *row = gspi_row(list, place);
        for (uint64_t i = 0; sums && i < gspi_row_size(list, place); i++)
            plan->weights[place] += (int32_t)row[i].value;
    }
}

static gsp_status pack_tables(gsp_plan *plan, gspi_rows *list, const candidate *c) {
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
    for (int64_t unit = 0; unit < plan->units; unit++) {
        const int64_t first = unit * c->rows, last = gspi_min(first + c->rows, list->rows);
        GSP_TRY(gspi_read_rows(list, first, last));
        pack_unit(plan, list, c, unit);
        note_scales(plan, list, first, last);
    }
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
    gsp_status status = GSP_OK;
    if (natural) {
        status = gspi_read_rows(&list, 0, list.rows);
        if (status == GSP_OK) status = start_scales(plan);
        if (status == GSP_OK) {
            note_scales(plan, &list, 0, list.rows);
            status = plan->entry->form == GSPI_TILES ? gspi_pack_tiles(plan, &list)
                                                     : pack_rows(plan, &list);
        }
    } else {
        const candidate best = choose(plan, matrix, &list, first, last, features, exact);
        plan->entry = best.entry;
        status = start_scales(plan);
        if (status == GSP_OK) status = pack_tables(plan, &list, &best);
    }
    gspi_close_rows(&list);
    return status;
}
