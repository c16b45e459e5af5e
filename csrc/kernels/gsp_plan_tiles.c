/* Lays rows out for matrix units, which multiply dense tiles: every place of the matrix has a bit, and elements follow
 * one another as those bits do. Kernels expand them to tiles on the way. */
#include "gsp_narrow.h"
#include "gsp_plan.h"

/* What a kernel may read behind the last value. */
#define SPARE 64

#define TILE_LANES 16 /* rows of a tile; each has four bytes of a line */

bool gspi_takes_tiles(const gspi_entry *entry, const gsp_plan *plan, const gsp_matrix *matrix) {
    return entry->form == GSPI_TILES && (entry->operands >> plan->operand & 1) &&
           (entry->dtypes >> matrix->dtype & 1) && (entry->kinds >> matrix->pattern.kind & 1) &&
           matrix->cols <= GSPI_MOST_TILE_COLS && matrix->rows <= INT32_MAX;
}

int64_t gspi_tiles_most(const gsp_plan *plan, const gsp_matrix *matrix, const gspi_entry *tiles,
                        float few_cost) {
    const int64_t never = (int64_t)1 << 30;
    const double slots = (double)gspi_ceil_div(matrix->rows, GSPI_TILE_ROWS) * GSPI_TILE_ROWS *
                         (double)gspi_ceil_div(matrix->cols, tiles->width) * tiles->width;
    /* Of one sample more: what few samples cost beyond many. */
    const double more = (double)plan->entries * (double)few_cost - slots * (double)tiles->cost;
    const double expand = slots * (double)tiles->expand;
    return more * (double)never <= expand ? never : gspi_max(1, (int64_t)(expand / more));
}

/* How far each row of a unit is. */
typedef struct {
    int64_t rows;
    const gspi_element *at[GSPI_TILE_ROWS];
} front;

/* A step, as the kernel will expand it: bits [line] and the values at their places, [line][row][column]. */
typedef struct {
    uint64_t bits[2 * TILE_LANES];
    float values[2 * TILE_LANES][TILE_LANES * 4];
} step_tiles;

static void spread_step(front *f, int32_t end, int64_t columns, step_tiles *step) {
    memset(step->bits, 0, sizeof step->bits);
    const int32_t begin = end - (int32_t)(columns * TILE_LANES);
    for (int64_t row = 0; row < f->rows; row++)
        for (; f->at[row]->key < end; f->at[row]++) {
            const int64_t col = f->at[row]->key - begin;
            const int64_t line = row / TILE_LANES * TILE_LANES + col / columns;
            const int64_t place = row % TILE_LANES * columns + col % columns;
            step->bits[line] |= UINT64_C(1) << place;
            step->values[line][place] = f->at[row]->value;
        }
}

/* The bits of a line, least first, to memory. */
static void put_bits(uint64_t bits, int64_t bytes, uint8_t *to) {
    for (int64_t i = 0; i < bytes; i++) to[i] = (uint8_t)(bits >> 8 * i);
}

static void put_value(float value, size_t size, unsigned char *to) {
    if (size == 1) {
        *to = (unsigned char)(int8_t)value;
        return;
    }
    const uint16_t half = gspi_to_bfloat16(value);
    memcpy(to, &half, sizeof half);
}

static void pack(const gsp_plan *plan, const gspi_rows *list, size_t size) {
    const int64_t width = plan->entry->width, columns = width / TILE_LANES;
    const int64_t mask_bytes = TILE_LANES * columns / 8;
    uint8_t *bits = plan->positions;
    unsigned char *value = plan->packed;
    step_tiles step;
    for (int64_t unit = 0; unit < plan->units; unit++) {
        const int64_t row = unit * GSPI_TILE_ROWS;
        front f = {.rows = gspi_min(GSPI_TILE_ROWS, list->rows - row)};
        for (int64_t i = 0; i < f.rows; i++) f.at[i] = gspi_row(list, row + i);
        plan->start[unit] = (uint64_t)(value - plan->packed) / size;
        for (int64_t end = width; end <= plan->x_size; end += width) {
            spread_step(&f, (int32_t)end, columns, &step);
            for (int line = 0; line < 2 * TILE_LANES; line++, bits += mask_bytes) {
                put_bits(step.bits[line], mask_bytes, bits);
                for (uint64_t left = step.bits[line]; left != 0; left &= left - 1, value += size)
                    put_value(step.values[line][__builtin_ctzll(left)], size, value);
            }
        }
    }
    plan->start[plan->units] = (uint64_t)(value - plan->packed) / size;
    memset(value, 0, SPARE);
}

gsp_status gspi_pack_tiles(gsp_plan *plan, const gspi_rows *list) {
    const size_t size = gsp_dtype_size(plan->matrix.dtype);
    const int64_t width = plan->entry->width;
    plan->x_size = gspi_ceil_div(plan->matrix.cols, width) * width;
    plan->units = gspi_ceil_div(list->rows, GSPI_TILE_ROWS);
    plan->slots = (uint64_t)plan->units * GSPI_TILE_ROWS * (uint64_t)plan->x_size;
    plan->x_stride = 32 * sizeof(float); /* samples that threads share by */
    plan->start = gspi_plan_alloc(plan, (uint64_t)plan->units + 1, sizeof *plan->start);
    plan->positions = gspi_plan_alloc(plan, plan->slots / 8, 1);
    plan->packed = gspi_plan_alloc(plan, list->entries + SPARE / size, size);
    GSP_CHECK(plan->start != NULL && plan->positions != NULL && plan->packed != NULL,
              GSP_ERROR_MEMORY);
    pack(plan, list, size);
    return GSP_OK;
}
