/* First step of a plan: the rows of a matrix, fullest first if that is wanted, each in the order of x.
 *
 * They are read some at a time, into the same memory again, which a second cache holds: a list of all of them would be
 * larger than the plan. Formats that keep their columns in order are copied. The slots of bundles are not in order:
 * they go to a dense row, with a bit for each that is there, and are read back by those bits. That costs the same for
 * any number of bundles, and no comparison. */
#include <string.h>

#include "gsp_plan.h"
#include "../format/gsp_visit.h"

/* ------------------------------------------------------------------ order */

/* Elements that each row of a group stores. */
static uint32_t count_of(const gsp_matrix *matrix, int64_t group) {
    const gsp_pattern *pattern = &matrix->pattern;
    const uint32_t units = matrix->indptr[group + 1] - matrix->indptr[group];
    if (pattern->kind == GSP_GS) return units * pattern->per_row;
    if (pattern->kind != GSP_BLOCK || units == 0) return units;
    /* Columns of blocks: those of the last one may reach beyond the matrix. */
    const int64_t width = pattern->block_cols;
    const int64_t last =
        (int64_t)gspi_index(matrix->indices, matrix->indptr[group + 1] - 1, matrix->index_bytes);
    return (uint32_t)(units * width - gspi_max(0, (last + 1) * width - matrix->cols));
}

uint64_t gspi_count_elements(const gsp_matrix *matrix) {
    const int64_t height = gsp_group_rows(&matrix->pattern);
    uint64_t count = 0;
    for (int64_t group = 0; group < gsp_groups(&matrix->pattern, matrix->rows); group++)
        count +=
            (uint64_t)gspi_min(height, matrix->rows - group * height) * count_of(matrix, group);
    return count;
}

/* counts [rows]: elements by position, which is where a row is stored. */
static void count_rows(const gsp_matrix *matrix, uint32_t *counts) {
    const int64_t height = gsp_group_rows(&matrix->pattern);
    for (int64_t group = 0; group < gsp_groups(&matrix->pattern, matrix->rows); group++) {
        const uint32_t count = count_of(matrix, group);
        const int64_t last = gspi_min((group + 1) * height, matrix->rows);
        for (int64_t p = group * height; p < last; p++) counts[p] = count;
    }
}

/* place -> position: most elements first, equal ones as they are stored. */
static gsp_status sort_rows(gsp_context *context, int64_t rows, const uint32_t *counts,
                            uint32_t *position) {
    uint32_t most = 0;
    for (int64_t p = 0; p < rows; p++) most = counts[p] > most ? counts[p] : most;
    uint32_t *next = gspi_calloc(context, (size_t)most + 2, sizeof *next);
    GSP_CHECK(next != NULL, GSP_ERROR_MEMORY);
    for (int64_t p = 0; p < rows; p++) next[most - counts[p] + 1]++;
    for (uint32_t i = 0; i < most; i++) next[i + 1] += next[i];
    for (int64_t p = 0; p < rows; p++) position[next[most - counts[p]]++] = (uint32_t)p;
    gspi_free(context, next);
    return GSP_OK;
}

/* Orders the rows, and notes where each begins. */
static gsp_status start_rows(gspi_rows *list, bool fullest_first, uint32_t *counts) {
    const gsp_matrix *matrix = list->matrix;
    const uint32_t *row_order = matrix->row_order;
    count_rows(matrix, counts);
    if (fullest_first) GSP_TRY(sort_rows(list->context, list->rows, counts, list->position));
    for (int64_t p = 0; p < list->rows; p++) {
        if (fullest_first) {
            const uint32_t position = list->position[p];
            list->order[p] = row_order ? row_order[position] : position;
        } else {
            list->position[row_order ? row_order[p] : p] = (uint32_t)p;
            list->order[p] = (uint32_t)p;
        }
    }
    list->entries = gspi_count_elements(matrix);
    list->start[0] = 0;
    for (int64_t place = 0; place < list->rows; place++) {
        list->start[place + 1] = list->start[place] + counts[list->position[place]] + 1;
    }
    return GSP_OK;
}

/* ------------------------------------------------------------------ visit */

/* key: where in x as the kernel sees it; slot: where in the values of the matrix. */
typedef void element_visitor(void *argument, int64_t key, uint64_t slot);

/* per_row slots of every bundle. */
GSPI_INLINE void visit_bundles(const gspi_rows *list, int64_t position, int64_t per_row,
                               bool horizontal, uint32_t bytes, element_visitor *visit,
                               void *argument) {
    const gsp_matrix *matrix = list->matrix;
    const int64_t height = gsp_group_rows(&matrix->pattern), step = list->place_step;
    const int64_t group = horizontal ? position : position / height;
    const uint64_t banks = matrix->pattern.banks,
                   place = horizontal ? 0 : (uint64_t)(position % height * per_row);
    for (uint64_t bundle = matrix->indptr[group]; bundle < matrix->indptr[group + 1]; bundle++) {
        const uint64_t first = bundle * banks + place;
        for (int64_t i = 0; i < per_row; i++) {
            const int64_t index = gspi_index(matrix->indices, first + (uint64_t)i, bytes);
            visit(argument, horizontal ? list->bank_key[i] + index * step : index,
                  first + (uint64_t)i);
        }
    }
}

GSPI_INLINE void visit_irregular(const gspi_rows *list, int64_t row, element_visitor *visit,
                                 void *argument) {
    const gsp_matrix *matrix = list->matrix;
    for (uint64_t i = matrix->indptr[row]; i < matrix->indptr[row + 1]; i++)
        visit(argument, (int64_t)gspi_index(matrix->indices, i, matrix->index_bytes), i);
}

GSPI_INLINE void visit_blocks(const gspi_rows *list, int64_t row, element_visitor *visit,
                              void *argument) {
    const gsp_matrix *matrix = list->matrix;
    const int64_t height = matrix->pattern.block_rows, width = matrix->pattern.block_cols;
    const int64_t group = row / height;
    for (uint64_t block = matrix->indptr[group]; block < matrix->indptr[group + 1]; block++) {
        const int64_t left =
            (int64_t)gspi_index(matrix->indices, block, matrix->index_bytes) * width;
        const uint64_t first =
            (block * (uint64_t)height + (uint64_t)(row % height)) * (uint64_t)width;
        for (int64_t c = 0; c < gspi_min(width, matrix->cols - left); c++)
            visit(argument, left + c, first + (uint64_t)c);
    }
}

GSPI_INLINE void visit_nm(const gspi_rows *list, int64_t row, element_visitor *visit,
                          void *argument) {
    const gsp_matrix *matrix = list->matrix;
    const int64_t n = matrix->pattern.nm_n, m = matrix->pattern.nm_m;
    uint64_t slot = matrix->indptr[row];
    for (int64_t left = 0; left < matrix->cols; left += m)
        for (int64_t i = gspi_min(n, matrix->cols - left); i > 0; i--, slot++)
            visit(argument, left + gspi_position(matrix->indices, slot, matrix->index_bytes), slot);
}

/* Calls visit for every element of the row in that place; compiled for each pattern and width of an index. */
GSPI_INLINE void visit_row(const gspi_rows *list, int64_t place, element_visitor *visit,
                           void *argument) {
    const gsp_matrix *matrix = list->matrix;
    const int64_t position = list->position[place], per_row = matrix->pattern.per_row;
    switch (matrix->pattern.kind) {
    case GSP_GS:
        if (gspi_is_horizontal(&matrix->pattern)) {
            switch (matrix->index_bytes) {
            case 1: visit_bundles(list, position, per_row, true, 1, visit, argument); break;
            case 2: visit_bundles(list, position, per_row, true, 2, visit, argument); break;
            default: visit_bundles(list, position, per_row, true, 4, visit, argument); break;
            }
        } else if (matrix->index_bytes != 2) {
            visit_bundles(list, position, per_row, false, 4, visit, argument);
        } else if (per_row == 1) {
            visit_bundles(list, position, 1, false, 2, visit, argument);
        } else {
            visit_bundles(list, position, per_row, false, 2, visit, argument);
        }
        break;
    case GSP_IRREGULAR: visit_irregular(list, position, visit, argument); break;
    case GSP_BLOCK: visit_blocks(list, position, visit, argument); break;
    case GSP_NM: visit_nm(list, position, visit, argument); break;
    }
}

/* ------------------------------------------------------------------- mark */

/* Columns that are marked at once, and so many that those without any are not looked at. */
#define MOST_MARKS 65536
#define FEW_MARKS 4096

typedef struct {
    uint64_t *rows, *blocks;
    int64_t first; /* column of rows[0] */
    uint64_t skip, count; /* columns before those that are to be marked, and number of these */
    uint64_t bit;
} marking;

GSPI_INLINE void mark(void *argument, int64_t key, uint64_t slot) {
    (void)slot;
    const marking *m = argument;
    const uint64_t at = (uint64_t)(key - m->first);
    if (at - m->skip >= m->count) return;
    m->rows[at] |= m->bit;
    if (m->blocks != NULL) m->blocks[at / 4096] |= (uint64_t)1 << at / 64 % 64;
}

/* Marks the columns from `from` on. */
static void mark_from(gspi_rows *list, int64_t first, int64_t last, int64_t from) {
    gspi_marks *marks = &list->marks;
    marks->end = marks->first + marks->size;
    for (int64_t place = first; place < last; place++) {
        marking m = {.rows = marks->rows,
                     .blocks = marks->blocks,
                     .first = marks->first,
                     .skip = (uint64_t)(from - marks->first),
                     .count = (uint64_t)(marks->end - from),
                     .bit = (uint64_t)1 << (place - first)};
        visit_row(list, place, mark, &m);
    }
}

void gspi_mark_rows(gspi_rows *list, int64_t first, int64_t last) {
    list->marks.first = 0;
    mark_from(list, first, last, 0);
}

void gspi_move_marks(gspi_rows *list, int64_t first, int64_t last, int64_t begin) {
    gspi_marks *marks = &list->marks;
    const int64_t before = marks->end, kept = gspi_max(0, before - begin);
    memmove(marks->rows, marks->rows + (marks->size - kept), (size_t)kept * sizeof *marks->rows);
    memset(marks->rows + kept, 0, (size_t)(marks->size - kept) * sizeof *marks->rows);
    if (marks->blocks != NULL) {
        memset(marks->blocks, 0, ((size_t)marks->size / 4096 + 1) * sizeof *marks->blocks);
        for (int64_t i = 0; i < kept; i += 64)
            marks->blocks[i / 4096] |= (uint64_t)1 << i / 64 % 64;
    }
    marks->first = begin;
    mark_from(list, first, last, gspi_max(before, begin));
}

/* ------------------------------------------------------------------- read */

/* Rows of so many words of bits are read without a look at which are empty. */
#define FEW_WORDS 64

typedef struct {
    const gsp_matrix *matrix;
    gsp_dtype dtype;
    const gspi_dense *row;
} putting;

GSPI_INLINE void put(void *argument, int64_t key, uint64_t slot) {
    const putting *p = argument;
    p->row->values[key] = gspi_value(p->matrix, p->dtype, slot);
    p->row->bits[key / 64] |= (uint64_t)1 << key % 64;
    if (p->row->words != NULL) p->row->words[key / 4096] |= (uint64_t)1 << key / 64 % 64;
}

/* Elements are taken so many at a time, because how many a word has cannot be predicted. */
#define AT_ONCE 8

/* Moves what one word holds to where the elements go, in order; returns the place behind. Up to AT_ONCE more elements
 * are written to there. */
GSPI_INLINE gspi_element *take_word(const gspi_dense *row, int64_t word, gspi_element *to) {
    uint64_t bits = row->bits[word];
    row->bits[word] = 0;
    while (bits != 0)
        for (int i = 0; i < AT_ONCE; i++) {
            const int64_t at = 64 * word + __builtin_ctzll(bits | (uint64_t)1 << 63);
            *to = (gspi_element){(int32_t)at, row->values[at]};
            to += bits != 0;
            bits &= bits - 1;
        }
    return to;
}

static gspi_element *take(const gspi_dense *row, gspi_element *to) {
    if (row->words == NULL) {
        for (int64_t word = 0; word <= row->size / 64; word++) to = take_word(row, word, to);
        return to;
    }
    for (int64_t i = 0; i <= row->size / 4096; i++) {
        for (uint64_t words = row->words[i]; words != 0; words &= words - 1)
            to = take_word(row, 64 * i + __builtin_ctzll(words), to);
        row->words[i] = 0;
    }
    return to;
}

typedef struct {
    const gsp_matrix *matrix;
    gsp_dtype dtype;
    gspi_element *to;
} appending;

GSPI_INLINE void append(void *argument, int64_t key, uint64_t slot) {
    appending *a = argument;
    *a->to++ = (gspi_element){(int32_t)key, gspi_value(a->matrix, a->dtype, slot)};
}

/* Writes the elements of a row; returns the place behind. */
GSPI_INLINE gspi_element *read_row(const gspi_rows *list, int64_t place, gsp_dtype dtype,
                                   gspi_element *to) {
    if (list->matrix->pattern.kind == GSP_GS) {
        const gspi_dense dense = list->dense;
        putting p = {list->matrix, dtype, &dense};
        visit_row(list, place, put, &p);
        return take(&dense, to);
    }
    appending a = {list->matrix, dtype, to};
    visit_row(list, place, append, &a);
    return a.to;
}

gsp_status gspi_read_rows(gspi_rows *list, int64_t first, int64_t last) {
    const uint64_t count = list->start[last] - list->start[first];
    if (count > list->room) {
        gspi_free(list->context, list->elements);
        list->elements = gspi_alloc(list->context, count + AT_ONCE, sizeof *list->elements);
        list->room = list->elements == NULL ? 0 : count;
        GSP_CHECK(list->elements != NULL, GSP_ERROR_MEMORY);
    }
    list->first = first;
    gspi_element *to = list->elements;
    for (int64_t place = first; place < last; place++) {
        gspi_element *const end = to + gspi_row_size(list, place);
        /* Compiled for the most common dtype. */
        const gsp_dtype dtype = list->matrix->dtype;
        to = dtype == GSP_FLOAT32 ? read_row(list, place, GSP_FLOAT32, to)
                                  : read_row(list, place, dtype, to);
        GSP_CHECK(to == end, GSP_ERROR_DUPLICATE);
        *to++ = (gspi_element){GSPI_NO_KEY, 0};
    }
    return GSP_OK;
}

/* --------------------------------------------------------- open and close */

gsp_status gspi_open_rows(gsp_context *context, const gsp_matrix *matrix, bool fullest_first,
                          int64_t bank_stride, gspi_rows *list) {
    const gsp_pattern *pattern = &matrix->pattern;
    const int64_t banks = pattern->kind == GSP_GS ? pattern->banks : 0;
    const int64_t size = gspi_max(matrix->cols, banks * bank_stride);
    const size_t rows = (size_t)matrix->rows, words = banks > 0 ? (size_t)size / 64 + 1 : 0;
    *list = (gspi_rows){
        .context = context,
        .matrix = matrix,
        .rows = matrix->rows,
        .start = gspi_alloc(context, rows + 1, sizeof *list->start),
        .order = gspi_alloc(context, rows, sizeof *list->order),
        .position = gspi_alloc(context, rows, sizeof *list->position),
        .bank_key = gspi_alloc(context, (size_t)banks, sizeof *list->bank_key),
        .place_step = bank_stride > 0 || pattern->layout == GSP_CONTIGUOUS ? 1 : banks,
        .dense = {.values = gspi_alloc(context, 64 * words, sizeof(float)),
                  .bits = gspi_calloc(context, words, sizeof(uint64_t)),
                  .size = size},
    };
    if (words > FEW_WORDS)
        list->dense.words = gspi_calloc(context, words / 64 + 1, sizeof(uint64_t));
    gspi_marks *marks = &list->marks;
    /* Kernels may see x a little longer than it is. */
    marks->size = gspi_min(gspi_max(gspi_ceil_div(size, 64) * 64, GSPI_MOST_WIDTH), MOST_MARKS);
    marks->rows = gspi_calloc(context, (size_t)marks->size, sizeof(uint64_t));
    if (marks->size > FEW_MARKS)
        marks->blocks = gspi_calloc(context, (size_t)marks->size / 4096 + 1, sizeof(uint64_t));
    uint32_t *counts = gspi_alloc(context, rows, sizeof *counts);
    gsp_status status =
        list->start != NULL && list->order != NULL && list->position != NULL &&
                list->bank_key != NULL && list->dense.values != NULL && list->dense.bits != NULL &&
                (words <= FEW_WORDS || list->dense.words != NULL) && marks->rows != NULL &&
                (marks->size <= FEW_MARKS || marks->blocks != NULL) && counts != NULL
            ? start_rows(list, fullest_first, counts)
            : GSP_ERROR_MEMORY;
    gspi_free(context, counts);
    for (int64_t bank = 0; status == GSP_OK && bank < banks; bank++)
        list->bank_key[bank] = bank_stride > 0 ? bank * bank_stride
                               : pattern->layout == GSP_CONTIGUOUS
                                   ? gsp_bank_begin(bank, matrix->cols, banks)
                                   : bank;
    if (status != GSP_OK) gspi_close_rows(list);
    return status;
}

void gspi_close_rows(gspi_rows *list) {
    void *const owned[] = {list->start,        list->order,       list->position,    list->bank_key,
                           list->dense.values, list->dense.bits,  list->dense.words, list->elements,
                           list->marks.rows,   list->marks.blocks};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        if (owned[i] != NULL) gspi_free(list->context, owned[i]);
    *list = (gspi_rows){0};
}
