/* Makes plans: decodes a matrix to rows, tries the forms that the backend's kernels offer, packs the cheapest.
 *
 * A register-table kernel multiplies, for every strip of rows and every table of x, as many slots as the fullest
 * row has there. What that costs depends on the mask, so the plan counts the quads of every candidate (kernel,
 * order of x) and takes the one whose quads times measured cost are least. Rows are sorted by their number of
 * elements first, so that strips hold like rows. */
#include <string.h>

#include "../format/gsp_visit.h"
#include "gsp_kernels.h"

/* Nanoseconds to bring one entry of x into bank-major order, beside the costs of kernels.inc. */
#define COPY_COST 0.25f

/* ------------------------------------------------------------------- rows */

/* Elements by row: those of row r are [start[r], start[r + 1]). key: the column. */
typedef struct {
    int64_t rows;
    uint64_t *start;
    uint32_t *key;
    float *values;
} row_list;

static void free_rows(gsp_context *context, row_list *list) {
    gspi_free(context, list->start);
    gspi_free(context, list->key);
    gspi_free(context, list->values);
    *list = (row_list){0};
}

static gsp_status alloc_rows(gsp_context *context, int64_t rows, uint64_t count, row_list *list) {
    *list = (row_list){rows, gspi_calloc(context, (size_t)rows + 2, sizeof(uint64_t)),
                       gspi_alloc(context, count, sizeof(uint32_t)),
                       gspi_alloc(context, count, sizeof(float))};
    if (list->start != NULL && list->key != NULL && list->values != NULL) return GSP_OK;
    free_rows(context, list);
    return GSP_ERROR_MEMORY;
}

static void count_element(void *argument, int64_t row, int64_t col, uint64_t element) {
    (void)col;
    (void)element;
    ((uint64_t *)argument)[row + 2]++;
}

typedef struct {
    const gsp_matrix *matrix;
    const row_list *list;
} decoding;

/* start[row + 1] is where the next element of the row goes; in the end it is where the row ends. */
static void put_element(void *argument, int64_t row, int64_t col, uint64_t element) {
    const decoding *d = argument;
    const uint64_t place = d->list->start[row + 1]++;
    d->list->key[place] = (uint32_t)col;
    d->list->values[place] = gspi_value(d->matrix, d->matrix->dtype, element);
}

static uint64_t elements_of(const gsp_matrix *matrix) {
    const uint64_t per_unit =
        matrix->pattern.kind == GSP_GS ? matrix->pattern.banks
        : matrix->pattern.kind == GSP_BLOCK
            ? (uint64_t)matrix->pattern.block_rows * matrix->pattern.block_cols
            : 1;
    return matrix->units * per_unit;
}

static gsp_status decode(gsp_context *context, const gsp_matrix *matrix, row_list *list) {
    GSP_TRY(alloc_rows(context, matrix->rows, elements_of(matrix), list));
    const int64_t groups = gsp_groups(&matrix->pattern, matrix->rows);
    gspi_visit(matrix, 0, groups, count_element, list->start);
    for (int64_t row = 0; row < matrix->rows; row++) list->start[row + 2] += list->start[row + 1];
    decoding d = {matrix, list};
    gspi_visit(matrix, 0, groups, put_element, &d);
    return GSP_OK;
}

/* Sorts every row into the order of x, by way of the transpose: col_at[p] is the column at position p of x. */
static gsp_status sort_rows(gsp_context *context, row_list *list, const uint32_t *col_at,
                            int64_t cols) {
    const uint64_t count = list->start[list->rows];
    row_list turned = {0};
    uint64_t *next = gspi_alloc(context, (size_t)list->rows, sizeof *next);
    GSP_CHECK(next != NULL, GSP_ERROR_MEMORY);
    const gsp_status status = alloc_rows(context, cols, count, &turned);
    if (status == GSP_OK) {
        for (uint64_t e = 0; e < count; e++) turned.start[list->key[e] + 2]++;
        for (int64_t col = 0; col < cols; col++) turned.start[col + 2] += turned.start[col + 1];
        for (int64_t row = 0; row < list->rows; row++) {
            next[row] = list->start[row];
            for (uint64_t e = list->start[row]; e < list->start[row + 1]; e++) {
                const uint64_t place = turned.start[list->key[e] + 1]++;
                turned.key[place] = (uint32_t)row;
                turned.values[place] = list->values[e];
            }
        }
        for (int64_t p = 0; p < cols; p++) {
            for (uint64_t e = turned.start[col_at[p]]; e < turned.start[col_at[p] + 1]; e++) {
                const uint64_t place = next[turned.key[e]]++;
                list->key[place] = col_at[p];
                list->values[place] = turned.values[e];
            }
        }
    }
    free_rows(context, &turned);
    gspi_free(context, next);
    return status;
}

/* Places of rows: fullest first, else as the matrix has them. order [rows]. */
static gsp_status order_rows(gsp_context *context, const gsp_matrix *matrix, const row_list *list,
                             uint32_t *order, bool *natural) {
    uint64_t most = 0;
    for (int64_t row = 0; row < list->rows; row++)
        if (list->start[row + 1] - list->start[row] > most)
            most = list->start[row + 1] - list->start[row];
    uint64_t *next = gspi_calloc(context, (size_t)most + 2, sizeof *next);
    GSP_CHECK(next != NULL, GSP_ERROR_MEMORY);
    for (int64_t row = 0; row < list->rows; row++)
        next[most - (list->start[row + 1] - list->start[row]) + 1]++;
    for (uint64_t i = 0; i < most; i++) next[i + 1] += next[i];
    *natural = true;
    for (int64_t place = 0; place < list->rows; place++) {
        const int64_t row = matrix->row_order ? matrix->row_order[place] : place;
        const uint64_t to = next[most - (list->start[row + 1] - list->start[row])]++;
        order[to] = (uint32_t)row;
    }
    for (int64_t place = 0; place < list->rows; place++)
        if (order[place] != place) *natural = false;
    gspi_free(context, next);
    return GSP_OK;
}

/* ----------------------------------------------------------------- tables */

/* x as a kernel sees it, cut into tables: column c belongs to table of[c] as its entry at[c]. Table t begins at
 * position begin[t] of x and may reach into the next one, never past x_size. */
typedef struct {
    bool by_banks; /* x is copied, bank after bank */
    bool copy_x; /* x is copied, if only for the zeros behind it */
    int64_t x_size, count;
    uint32_t *col_at; /* of a position */
    uint32_t *of;
    uint8_t *at;
    uint32_t *begin;
} tables;

static void free_tables(gsp_context *context, tables *t) {
    gspi_free(context, t->col_at);
    gspi_free(context, t->of);
    gspi_free(context, t->at);
    gspi_free(context, t->begin);
    *t = (tables){0};
}

/* Where segment s of x ends: tables do not straddle the banks of a pattern, since only whole banks are balanced. */
static int64_t segment_end(const gsp_matrix *matrix, bool by_banks, int64_t segment) {
    const gsp_pattern *pattern = &matrix->pattern;
    if (by_banks) {
        const int64_t narrow = matrix->cols / pattern->banks, wide = matrix->cols % pattern->banks;
        return (segment + 1) * narrow + gspi_min(segment + 1, wide);
    }
    if (pattern->kind == GSP_GS && pattern->layout == GSP_CONTIGUOUS)
        return gsp_bank_begin(segment + 1, matrix->cols, pattern->banks);
    return matrix->cols;
}

/* Cuts x into tables of at most `width`: as many whole banks as fit one, or a wide bank in equal parts. */
static gsp_status make_tables(gsp_context *context, const gsp_matrix *matrix, bool by_banks,
                              int width, tables *t) {
    const int64_t cols = matrix->cols;
    *t = (tables){.by_banks = by_banks,
                  .col_at = gspi_alloc(context, (size_t)cols, sizeof(uint32_t)),
                  .of = gspi_alloc(context, (size_t)cols, sizeof(uint32_t)),
                  .at = gspi_alloc(context, (size_t)cols, 1),
                  .begin = gspi_alloc(context, (size_t)cols, sizeof(uint32_t))};
    if (t->col_at == NULL || t->of == NULL || t->at == NULL || t->begin == NULL) {
        free_tables(context, t);
        return GSP_ERROR_MEMORY;
    }
    t->x_size = gspi_max(cols, width);
    t->copy_x = by_banks || cols < width;
    const int64_t step = by_banks ? matrix->pattern.banks : 1;
    int64_t to = 0;
    for (int64_t bank = 0; bank < step; bank++)
        for (int64_t col = bank; col < cols; col += step) t->col_at[to++] = (uint32_t)col;
    int64_t segment = 0;
    for (int64_t left = 0; left < cols;) {
        int64_t right = segment_end(matrix, by_banks, segment++);
        if (right == left) continue; /* an empty bank */
        while (right < cols && segment_end(matrix, by_banks, segment) - left <= width)
            right = segment_end(matrix, by_banks, segment++);
        const int64_t parts = gspi_ceil_div(right - left, width), whole = right - left;
        const int64_t origin = left;
        for (int64_t part = 0; part < parts; part++) {
            /* Only tables of a plain x are better full than equal: their begin stays aligned. */
            const int64_t end =
                whole == cols ? gspi_min(left + width, cols) : origin + (part + 1) * whole / parts;
            const int64_t begin = gspi_max(0, gspi_min(left, cols - width));
            t->begin[t->count] = (uint32_t)begin;
            for (; left < end; left++) {
                t->of[t->col_at[left]] = (uint32_t)t->count;
                t->at[t->col_at[left]] = (uint8_t)(left - begin);
            }
            t->count++;
        }
    }
    return GSP_OK;
}

/* ------------------------------------------------------------- candidates */

typedef struct {
    const gspi_entry *entry;
    bool by_banks;
    uint64_t items, slots;
    float cost;
} candidate;

static bool uses_tables(gspi_form form) { return form == GSPI_QUADS || form == GSPI_STRIPS; }

/* Runs that a block is cut into: along its columns, or one for each column. */
static uint64_t runs_per_block(const gsp_pattern *pattern, const gspi_entry *entry) {
    return entry->form == GSPI_WIDE ? (uint64_t)gspi_ceil_div(pattern->block_cols, entry->lanes)
                                    : pattern->block_cols;
}

static int64_t places_per_unit(const gspi_entry *entry) {
    return entry->form == GSPI_QUADS ? 4 * entry->lanes : entry->lanes;
}

/* Steps that each table takes in the rows at places [first, last): depth [tables], seen [tables] all zero. */
static void count_depths(const row_list *list, const uint32_t *order, int64_t first, int64_t last,
                         const tables *t, uint32_t *restrict seen, uint32_t *restrict depth) {
    memset(depth, 0, (size_t)t->count * sizeof *depth);
    for (int64_t place = first; place < last; place++) {
        const uint64_t begin = list->start[order[place]], end = list->start[order[place] + 1];
        for (uint64_t e = begin; e < end; e++) seen[t->of[list->key[e]]]++;
        for (int64_t i = 0; i < t->count; i++) {
            depth[i] = seen[i] > depth[i] ? seen[i] : depth[i];
            seen[i] = 0;
        }
    }
}

static uint64_t quads_of(const gspi_entry *entry, const uint32_t *depth, int64_t count) {
    uint64_t steps = 0;
    for (int64_t i = 0; i < count; i++) steps += depth[i];
    return entry->form == GSPI_QUADS ? steps : steps / 4 + (steps % 4 != 0);
}

/* Quads of every unit into start[unit + 1], and their sum. */
static gsp_status count_quads(gsp_context *context, const gspi_entry *entry, const row_list *list,
                              const uint32_t *order, const tables *t, uint64_t *start,
                              uint64_t *total) {
    const int64_t places = places_per_unit(entry), units = gspi_ceil_div(list->rows, places);
    uint32_t *depth = gspi_calloc(context, t == NULL ? 0 : 2 * (size_t)t->count, sizeof *depth);
    GSP_CHECK(depth != NULL, GSP_ERROR_MEMORY);
    *total = 0;
    for (int64_t unit = 0; unit < units; unit++) {
        const int64_t first = unit * places, last = gspi_min(first + places, list->rows);
        uint64_t quads = 0;
        if (t == NULL) { /* GSPI_GATHER; the first row is the fullest */
            quads = (list->start[order[first] + 1] - list->start[order[first]] + 3) / 4;
        } else {
            count_depths(list, order, first, last, t, depth + t->count, depth);
            quads = quads_of(entry, depth, t->count);
        }
        *total += quads;
        if (start != NULL) start[unit + 1] = *total;
    }
    gspi_free(context, depth);
    return GSP_OK;
}

/* Keeps the candidate if it is cheaper than the best so far. */
static gsp_status try_candidate(gsp_context *context, const gsp_matrix *matrix,
                                const row_list *list, const uint32_t *order,
                                const gspi_entry *entry, bool by_banks, candidate *best) {
    candidate made = {.entry = entry, .by_banks = by_banks};
    gsp_status status = GSP_OK;
    bool copies = false;
    if (entry->form == GSPI_WIDE || entry->form == GSPI_TALL) {
        made.items = matrix->units * runs_per_block(&matrix->pattern, entry);
        made.slots =
            made.items *
            (uint64_t)(gspi_parts(&matrix->pattern, entry->form, entry->lanes) * entry->lanes);
        copies = matrix->cols < entry->lanes;
    } else {
        tables t = {0};
        if (uses_tables(entry->form))
            GSP_TRY(make_tables(context, matrix, by_banks, entry->width, &t));
        status = count_quads(context, entry, list, order, uses_tables(entry->form) ? &t : NULL,
                             NULL, &made.items);
        made.slots = made.items * 4 * (uint64_t)entry->lanes;
        copies = t.copy_x;
        free_tables(context, &t);
    }
    made.cost =
        (float)made.slots / 64 * entry->cost + (copies ? COPY_COST * (float)matrix->cols : 0);
    if (status == GSP_OK && (best->entry == NULL || made.cost < best->cost)) *best = made;
    return status;
}

/* ---------------------------------------------------------------- packing */

/* Packs the sorted rows into quads. Slots that no element fills stay as they are: value 0 at the table's begin. */
static void pack_tables(gsp_plan *plan, const row_list *list, const uint32_t *order,
                        const tables *t, uint32_t *depth, uint64_t *cursor) {
    const gspi_entry *entry = plan->entry;
    const int64_t lanes = entry->lanes, places = places_per_unit(entry);
    const size_t quad_bytes = gspi_quad_bytes(entry->form, entry->lanes);
    for (int64_t unit = 0; unit < plan->units; unit++) {
        const int64_t first = unit * places, last = gspi_min(first + places, list->rows);
        count_depths(list, order, first, last, t, depth + t->count, depth);
        for (int64_t place = first; place < last; place++)
            cursor[place - first] = list->start[order[place]];
        uint64_t step = entry->form == GSPI_QUADS ? plan->start[unit] : 4 * plan->start[unit];
        for (int64_t table = 0; table < t->count; table++) {
            for (uint32_t level = 0; level < depth[table]; level++, step++) {
                plan->tables[step] = t->begin[table];
                for (int64_t place = first; place < last; place++) {
                    uint64_t *e = &cursor[place - first];
                    if (*e == list->start[order[place] + 1] || t->of[list->key[*e]] != table)
                        continue;
                    const int64_t strip = (place - first) / lanes, lane = (place - first) % lanes;
                    const uint64_t quad = entry->form == GSPI_QUADS ? step : step / 4;
                    const int64_t byte = entry->form == GSPI_QUADS ? strip : (int64_t)(step % 4);
                    unsigned char *words = plan->packed + quad * quad_bytes;
                    const uint32_t word = (uint32_t)t->at[list->key[*e]] << (8 * byte);
                    ((uint32_t *)words)[lane] |= word;
                    ((float *)(words + 4 * lanes))[byte * lanes + lane] = list->values[*e];
                    ++*e;
                }
            }
        }
    }
}

static void pack_gather(gsp_plan *plan, const row_list *list, const uint32_t *order) {
    const int64_t lanes = plan->entry->lanes;
    const size_t quad_bytes = gspi_quad_bytes(GSPI_GATHER, plan->entry->lanes);
    for (int64_t place = 0; place < list->rows; place++) {
        const uint64_t begin = list->start[order[place]], end = list->start[order[place] + 1];
        for (uint64_t e = begin; e < end; e++) {
            unsigned char *quad =
                plan->packed + (plan->start[place / lanes] + (e - begin) / 4) * quad_bytes;
            const int64_t slot = (int64_t)((e - begin) % 4) * lanes + place % lanes;
            ((uint32_t *)quad)[slot] = list->key[e];
            ((float *)(quad + 16 * lanes))[slot] = list->values[e];
        }
    }
}

/* Counts what the plan holds as it is allocated. */
static void *plan_alloc(gsp_plan *plan, uint64_t count, size_t size) {
    if ((size_t)count != count) return NULL;
    void *memory = gspi_calloc(plan->context, (size_t)count, size);
    if (memory != NULL) plan->bytes += count * size;
    return memory;
}

static gsp_status pack_quads(gsp_plan *plan, const gsp_matrix *matrix, row_list *list,
                             const uint32_t *order, const candidate *best) {
    gsp_context *context = plan->context;
    const gspi_entry *entry = best->entry;
    uint64_t total;
    if (entry->form == GSPI_GATHER) {
        GSP_TRY(count_quads(context, entry, list, order, NULL, plan->start, &total));
        pack_gather(plan, list, order);
        return GSP_OK;
    }
    tables t;
    GSP_TRY(make_tables(context, matrix, best->by_banks, entry->width, &t));
    plan->copy_x = t.copy_x;
    plan->x_banks = t.by_banks ? matrix->pattern.banks : 1;
    plan->x_size = t.x_size;
    uint32_t *depth = gspi_calloc(context, 2 * (size_t)t.count, sizeof *depth);
    uint64_t *cursor = gspi_alloc(context, (size_t)places_per_unit(entry), sizeof *cursor);
    gsp_status status = depth == NULL || cursor == NULL ? GSP_ERROR_MEMORY : GSP_OK;
    if (status == GSP_OK) status = sort_rows(context, list, t.col_at, matrix->cols);
    if (status == GSP_OK)
        status = count_quads(context, entry, list, order, &t, plan->start, &total);
    if (status == GSP_OK) pack_tables(plan, list, order, &t, depth, cursor);
    gspi_free(context, cursor);
    gspi_free(context, depth);
    free_tables(context, &t);
    return status;
}

typedef struct {
    const gsp_matrix *matrix;
    gsp_plan *plan;
} block_packing;

static void put_in_run(void *argument, int64_t row, int64_t col, uint64_t element) {
    const block_packing *p = argument;
    const gsp_pattern *pattern = &p->matrix->pattern;
    const gspi_entry *entry = p->plan->entry;
    const int64_t height = pattern->block_rows, width = pattern->block_cols, lanes = entry->lanes;
    const int64_t unit = row / height, begin = (int64_t)p->plan->start[unit];
    const int64_t count = (int64_t)p->plan->start[unit + 1] - begin;
    const int64_t block = (int64_t)(element / (uint64_t)(height * width)) - p->matrix->indptr[unit];
    const int64_t in_row = row % height, in_block = col % width;
    const bool wide = entry->form == GSPI_WIDE;
    const int64_t run =
        block * (int64_t)runs_per_block(pattern, entry) + (wide ? in_block / lanes : in_block);
    const int64_t part = wide ? in_row : in_row / lanes;
    /* A run that would reach past x begins earlier. */
    const int64_t from =
        wide ? gspi_max(0, gspi_min(col - in_block % lanes, p->matrix->cols - lanes)) : col;
    const int64_t lane = wide ? col - from : in_row % lanes;
    p->plan->tables[begin + run] = (uint32_t)from;
    float *values = (float *)p->plan->packed;
    values[((begin * gspi_parts(pattern, entry->form, entry->lanes)) + part * count + run) * lanes +
           lane] = gspi_value(p->matrix, p->matrix->dtype, element);
}

static void pack_blocks(gsp_plan *plan, const gsp_matrix *matrix) {
    const uint64_t runs = runs_per_block(&matrix->pattern, plan->entry);
    for (int64_t unit = 0; unit < plan->units; unit++)
        plan->start[unit + 1] = matrix->indptr[unit + 1] * runs;
    plan->copy_x = plan->entry->form == GSPI_WIDE && matrix->cols < plan->entry->lanes;
    plan->x_banks = 1;
    plan->x_size = gspi_max(matrix->cols, plan->entry->lanes);
    block_packing p = {matrix, plan};
    gspi_visit(matrix, 0, plan->units, put_in_run, &p);
}

static gsp_status pack(gsp_plan *plan, const gsp_matrix *matrix, row_list *list,
                       const uint32_t *order, const candidate *best) {
    const gspi_entry *entry = best->entry;
    const bool blocks = entry->form == GSPI_WIDE || entry->form == GSPI_TALL;
    plan->entry = entry;
    plan->units =
        gspi_ceil_div(matrix->rows, blocks ? matrix->pattern.block_rows : places_per_unit(entry));
    plan->slots = best->slots;
    plan->start = plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    plan->packed = blocks
                       ? plan_alloc(plan, best->slots, sizeof(float))
                       : plan_alloc(plan, best->items, gspi_quad_bytes(entry->form, entry->lanes));
    if (entry->form != GSPI_GATHER)
        plan->tables = plan_alloc(plan, best->items * (entry->form == GSPI_STRIPS ? 4 : 1),
                                  sizeof *plan->tables);
    GSP_CHECK(plan->start != NULL && plan->packed != NULL &&
                  (plan->tables != NULL || entry->form == GSPI_GATHER),
              GSP_ERROR_MEMORY);
    if (!blocks) return pack_quads(plan, matrix, list, order, best);
    pack_blocks(plan, matrix);
    return GSP_OK;
}

/* ------------------------------------------------------------------ plans */

static bool takes(const gspi_entry *entry, const gsp_matrix *matrix, gspi_op op) {
    if (entry->op != op || !(entry->dtypes >> matrix->dtype & 1) ||
        !(entry->kinds >> matrix->pattern.kind & 1))
        return false;
    /* Gathers and scatters take signed 32-bit indices. */
    return entry->form == GSPI_STORED || (matrix->rows <= INT32_MAX && matrix->cols <= INT32_MAX);
}

/* A copy of an array that the plan owns; NULL stays NULL. `copy` points to a pointer. */
static gsp_status own(gsp_plan *plan, const void *array, size_t bytes, void *copy) {
    if (array == NULL) return GSP_OK;
    void *memory = plan_alloc(plan, bytes, 1);
    GSP_CHECK(memory != NULL, GSP_ERROR_MEMORY);
    memcpy(memory, array, bytes);
    memcpy(copy, &memory, sizeof memory);
    return GSP_OK;
}

/* Rows as they are decoded; there is nothing to choose. */
static gsp_status lay_out_rows(gsp_plan *plan, const gsp_matrix *matrix) {
    row_list list = {0};
    GSP_TRY(decode(plan->context, matrix, &list));
    const uint64_t count = list.start[matrix->rows];
    plan->units = matrix->rows;
    plan->entries = plan->slots = count;
    gsp_status status =
        own(plan, list.start, ((size_t)matrix->rows + 1) * sizeof *list.start, &plan->start);
    if (status == GSP_OK) status = own(plan, list.key, count * sizeof *list.key, &plan->tables);
    if (status == GSP_OK)
        status = own(plan, list.values, count * sizeof *list.values, &plan->packed);
    free_rows(plan->context, &list);
    return status;
}

static gsp_status lay_out(gsp_plan *plan, const gsp_matrix *matrix, gsp_backend backend) {
    gsp_context *context = plan->context;
    row_list list = {0};
    candidate best = {0};
    bool natural = true;
    gsp_status status = decode(context, matrix, &list);
    uint32_t *order = NULL;
    if (status == GSP_OK) {
        plan->entries = list.start[matrix->rows];
        order = gspi_alloc(context, (size_t)matrix->rows, sizeof *order);
        status =
            order == NULL ? GSP_ERROR_MEMORY : order_rows(context, matrix, &list, order, &natural);
    }
    const bool banked = matrix->pattern.kind == GSP_GS && matrix->pattern.layout == GSP_INTERLEAVED;
    for (const gspi_entry *entry = gspi_kernels; entry->name != NULL && status == GSP_OK; entry++) {
        if (entry->backend != backend || !takes(entry, matrix, GSPI_SPMV)) continue;
        status = try_candidate(context, matrix, &list, order, entry, false, &best);
        if (status == GSP_OK && banked && entry->width > 0 && matrix->cols <= GSPI_MAX_COPY)
            status = try_candidate(context, matrix, &list, order, entry, true, &best);
    }
    const bool blocks =
        best.entry != NULL && (best.entry->form == GSPI_WIDE || best.entry->form == GSPI_TALL);
    if (status == GSP_OK && !natural && !blocks) {
        plan->row_map = plan_alloc(plan, (uint64_t)matrix->rows, sizeof *plan->row_map);
        if (plan->row_map == NULL) status = GSP_ERROR_MEMORY;
        else memcpy(plan->row_map, order, (size_t)matrix->rows * sizeof *order);
    }
    if (status == GSP_OK) status = pack(plan, matrix, &list, order, &best);
    gspi_free(context, order);
    free_rows(context, &list);
    return status;
}

static gsp_status copy_stored(gsp_plan *plan, const gsp_matrix *matrix) {
    gsp_lengths bytes;
    GSP_TRY(gsp_sizes(matrix, &bytes));
    plan->units = gsp_groups(&matrix->pattern, matrix->rows);
    plan->entries = plan->slots = bytes.values / gsp_dtype_size(matrix->dtype);
    GSP_TRY(own(plan, matrix->values, bytes.values, &plan->matrix.values));
    GSP_TRY(own(plan, matrix->indices, bytes.indices, &plan->matrix.indices));
    GSP_TRY(own(plan, matrix->indptr, bytes.indptr, &plan->matrix.indptr));
    return own(plan, matrix->row_order, bytes.row_order, &plan->matrix.row_order);
}

static gsp_status make(gsp_plan *plan, const gsp_matrix *matrix, gsp_backend backend, gspi_op op) {
    plan->matrix = *matrix;
    plan->matrix.values = plan->matrix.indices = NULL;
    plan->matrix.indptr = plan->matrix.row_order = NULL;
    plan->matrix.scales = NULL;
    GSP_TRY(own(plan, matrix->scales, (size_t)matrix->rows * sizeof(float), &plan->matrix.scales));
    const gspi_entry *entry = gspi_kernels;
    while (entry->name != NULL && (entry->backend > backend || !takes(entry, matrix, op))) entry++;
    GSP_CHECK(entry->name != NULL, GSP_ERROR_DTYPE);
    plan->entry = entry;
    if (entry->form == GSPI_STORED) return copy_stored(plan, matrix);
    return op == GSPI_SPMM ? lay_out_rows(plan, matrix) : lay_out(plan, matrix, entry->backend);
}

gsp_status gsp_plan_create(gsp_context *context, const gsp_matrix *matrix, gsp_backend backend,
                           int64_t n, gsp_plan **plan) {
    gsp_backend backends[GSP_BACKENDS];
    bool runs = false;
    for (int i = gsp_backends(backends); i > 0; i--) runs = runs || backends[i - 1] == backend;
    GSP_CHECK(runs, GSP_ERROR_BACKEND);
    GSP_CHECK(n >= 0, GSP_ERROR_SHAPE);
    gsp_lengths lengths;
    GSP_TRY(gsp_sizes(matrix, &lengths));
    GSP_TRY(gsp_validate(context, matrix, &lengths, NULL));
    gsp_plan *made = gspi_calloc(context, 1, sizeof *made);
    GSP_CHECK(made != NULL, GSP_ERROR_MEMORY);
    made->context = context;
    made->bytes = sizeof *made;
    const gsp_status status = make(made, matrix, backend, n == 1 ? GSPI_SPMV : GSPI_SPMM);
    if (status == GSP_OK) *plan = made;
    else gsp_plan_destroy(made);
    return status;
}

void gsp_plan_destroy(gsp_plan *plan) {
    if (plan == NULL) return;
    gsp_context *context = plan->context;
    /* The arrays of the plan's own matrix are const only to its readers. */
    const void *const owned[] = {plan->matrix.values, plan->matrix.indices,   plan->matrix.indptr,
                                 plan->matrix.scales, plan->matrix.row_order, plan->start,
                                 plan->packed,        plan->tables,           plan->row_map};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++)
        gspi_free(context, (void *)(uintptr_t)owned[i]);
    gspi_free(context, plan);
}

gsp_plan_info gsp_plan_describe(const gsp_plan *plan) {
    return (gsp_plan_info){
        .kernel = plan->entry->name,
        .backend = plan->entry->backend,
        .columns = plan->entry->op == GSPI_SPMM,
        .bytes = plan->bytes,
        .entries = plan->entries,
        .slots = plan->slots,
        .efficiency = plan->slots == 0 ? 1.0 : (double)plan->entries / (double)plan->slots,
    };
}
