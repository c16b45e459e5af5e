/* Convolution as SpMM: only the way into the tile and out of the panel differ.
 *
 *     for every column (tap, channel) of a block, every pixel of y of the tile:
 *         tile[column][pixel] = the pixel of x that they meet, or 0 beside the image
 *     for every row, every pixel of the tile:     y[row][pixel] = activation(scale * sum + bias + residual)
 *
 * So x is never unfolded in memory, only 32 KiB at a time, in the first cache: taps come to lie aligned there, and
 * zeros of padding are written, not tested for. Pixels of a tile are cut into runs within rows of y. For one tap each
 * run is a run of x, and those that are equally far from their lanes (all rows of a convolution that keeps the size,
 * without stride) are a single piece, one load for a register of every channel. Where channels are adjacent instead of
 * pixels, squares are transposed. */
#ifndef CONV_TILE_H
#define CONV_TILE_H

#include "spmm_tile.h"

#define GSPI_SPARE_ROWS (V_LANES - 1) /* of the tile, behind the last one */

/* Pixels of one row of y: lanes [lane, lane + count) of a tile. */
typedef struct {
    int64_t image, row, col;
    int lane, count;
} gspi_run;

typedef struct {
    int count;
    gspi_run run[GSPI_TILE_SAMPLES];
} gspi_runs;

/* The runs of `count` pixels from `first` on. */
static void cut_runs(const gsp_convolution *c, int64_t first, int64_t count, gspi_runs *runs) {
    int64_t image = 0, place = first, cols = c->y.cols;
    if (c->y_cols == NULL) {
        image = first / (c->y.rows * cols);
        place = first % (c->y.rows * cols);
    } else {
        while (place >= c->y.rows * c->y_cols[image]) place -= c->y.rows * c->y_cols[image++];
        cols = c->y_cols[image];
    }
    int64_t row = place / cols, col = place % cols;
    runs->count = 0;
    for (int lane = 0; lane < count; col = 0) {
        while (row == c->y.rows || cols == 0) {
            row = 0;
            image++;
            if (c->y_cols != NULL) cols = c->y_cols[image];
        }
        const int here = (int)gspi_min(cols - col, count - lane);
        runs->run[runs->count++] = (gspi_run){image, row++, col, lane, here};
        lane += here;
    }
}

/* Lanes of a tile (a bit for each) that have their pixels at from + lane * step. */
typedef struct {
    int64_t from;
    uint64_t lanes;
} gspi_piece;

static int add_piece(gspi_piece *pieces, int count, int64_t from, int low, int high) {
    const uint64_t lanes = (UINT64_MAX >> (64 - (high - low))) << low;
    if (count > 0 && pieces[count - 1].from == from) {
        pieces[count - 1].lanes |= lanes;
        return count;
    }
    pieces[count] = (gspi_piece){from, lanes};
    return count + 1;
}

/* Which pixels of x a run meets with one tap: `from` would be that of its first pixel, those of [low, high) are there.
 * False if none is. */
static bool meet(const gsp_convolution *c, const gspi_run *run, int64_t tap, int64_t *from,
                 int *low, int *high) {
    const int64_t i = tap / c->kernel[1], j = tap % c->kernel[1];
    const int64_t row = run->row * c->stride[0] + i * c->dilation[0] - c->before[0];
    const int64_t col = run->col * c->stride[1] + j * c->dilation[1] - c->before[1];
    const int64_t cols = c->x_cols == NULL ? c->x.cols : c->x_cols[run->image], s = c->stride[1];
    if (row < 0 || row >= c->x.rows || col >= cols) return false;
    *low = 0;
    *high = run->count;
    if (col < 0) *low = (int)gspi_min(run->count, s == 1 ? -col : gspi_ceil_div(-col, s));
    if (col + (run->count - 1) * s >= cols)
        *high = (int)(s == 1 ? cols - col : gspi_ceil_div(cols - col, s));
    *from = run->image * c->x.image_step + row * c->x.row_step + col * c->x.col_step;
    return *low < *high;
}

/* ------------------------------------------------------ pixels are adjacent */

/* Taps that are filled together, and channels of one before the next has its turn: neighbouring taps meet the same
 * lines of x, which are in the first cache for so long. */
#define GSPI_TAPS 4
#define GSPI_TURN 32
/* An x of so many bytes comes from memory, whose lines are fetched a tile early: a tile reads two of each channel,
 * which lie too far apart for the CPU to see what will be next. The last tap is the first to meet them. */
#define GSPI_FAR_BYTES (8 << 20)

/* One register of a piece: its lanes of from[lane * step], lanes 0 to V_LANES - 1. */
typedef struct {
    const void *from;
    uint32_t bits;
    gspi_v_mask some, more;
} gspi_part;

/* Bit i to bit 2 i, for 16 bits. */
GSPI_VECTOR uint32_t spread(uint32_t bits) {
    bits = (bits | bits << 8) & 0x00ff00ff;
    bits = (bits | bits << 4) & 0x0f0f0f0f;
    bits = (bits | bits << 2) & 0x33333333;
    return (bits | bits << 1) & 0x55555555;
}

/* `from`: where lane 0 would be; step 2 needs the lanes of two registers, of which every other is used. */
GSPI_VECTOR gspi_part part_of(const void *from, uint32_t bits, int64_t step) {
    gspi_part part = {.from = from, .bits = bits};
    const uint32_t lanes = step == 2 ? spread(bits) : bits;
    part.some = v_mask_of(lanes & ((1u << V_LANES) - 1));
    part.more = v_mask_of(lanes >> V_LANES);
    return part;
}

/* Its lanes that have pixels: those of every `step`-th element, one by one. */
GSPI_VECTOR void load_lanes(const gspi_part *part, bool halves, int64_t offset, int64_t step,
                            float *lanes) {
    const gspi_v_mask first = v_mask_of(1);
    for (uint32_t bits = part->bits; bits != 0; bits &= bits - 1) {
        const int lane = __builtin_ctz(bits);
        _Alignas(64) float one[V_LANES];
        v_store(one, load_some_of(part->from, halves, offset + lane * step, first));
        lanes[lane] = one[0];
    }
}

/* The lanes of one part, or of two; zeros in others. */
GSPI_VECTOR gspi_v load_parts(const gspi_part *one, const gspi_part *two, bool both, bool halves,
                              int64_t offset, int64_t step) {
    if (step <= 2) {
        gspi_v low = load_some_of(one->from, halves, offset, one->some);
        if (both) low = v_blend(low, load_some_of(two->from, halves, offset, two->some), two->some);
        if (step == 1) return low;
        offset += V_LANES;
        gspi_v high = load_some_of(one->from, halves, offset, one->more);
        if (both)
            high = v_blend(high, load_some_of(two->from, halves, offset, two->more), two->more);
        return v_even(low, high);
    }
    _Alignas(64) float lanes[V_LANES] = {0};
    load_lanes(one, halves, offset, step, lanes);
    if (both) load_lanes(two, halves, offset, step, lanes);
    return v_load(lanes);
}

/* What a tap brings to the registers of a tile: up to two parts each, and the few others. */
typedef struct {
    int64_t channel, end; /* of x, the first of which goes to `row` of the tile */
    char *row;
    gspi_part one[GSPI_TILE_REGISTERS], two[GSPI_TILE_REGISTERS], more[GSPI_TILE_SAMPLES];
    int register_of[GSPI_TILE_SAMPLES], extra;
    bool both, ahead; /* whether to fetch what the next tile meets */
} gspi_tap;

/* Channels [first, end) of a tap to rows of the tile. */
GSPI_VECTOR void fill_parts(const gspi_tap *parts, int64_t first, int64_t end, int64_t channel_step,
                            char *tile, uint32_t stride, int registers, int64_t step, bool both,
                            bool halves) {
    gspi_part one[GSPI_TILE_REGISTERS], two[GSPI_TILE_REGISTERS];
    for (int v = 0; v < registers; v++) {
        one[v] = parts->one[v];
        two[v] = parts->two[v];
    }
    for (int64_t c = first; c < end; c++) {
        float *to = (float *)(void *)(tile + (c - first) * stride);
        for (int v = 0; v < registers; v++)
            v_store(to + v * V_LANES,
                    load_parts(&one[v], &two[v], both, halves, c * channel_step, step));
        if (step == 1 && parts->ahead)
            for (int v = 0; v < registers; v += GSPI_VECTOR_FLOATS / V_LANES)
                __builtin_prefetch(
                    place_in(one[0].from, halves, c * channel_step + (registers + v) * V_LANES));
    }
    for (int p = 0; p < parts->extra; p++) {
        const gspi_part here = parts->more[p];
        const gspi_v_mask lanes = v_mask_of(here.bits);
        for (int64_t c = first; c < end; c++) {
            float *to =
                (float *)(void *)(tile + (c - first) * stride) + parts->register_of[p] * V_LANES;
            const gspi_v x = load_parts(&here, NULL, false, halves, c * channel_step, step);
            v_store(to, v_blend(v_load(to), x, lanes));
        }
    }
}

/* Compiled for each number of registers and parts, kind of step, and dtype, so that loops are unrolled. */
static void fill_tap(const gsp_convolution *c, const gspi_tap *parts, int64_t first, int64_t end,
                     char *tile, uint32_t stride, int registers) {
#define FILL(vectors, step, both, halves)                                                          \
    fill_parts(parts, first, end, c->x.channel_step, tile, stride,                                 \
               (vectors) * GSPI_VECTOR_FLOATS / V_LANES, step, both, halves)
#define FILL_STEP(vectors, step, halves)                                                           \
    do {                                                                                           \
        if (parts->both) FILL(vectors, step, true, halves);                                        \
        else FILL(vectors, step, false, halves);                                                   \
    } while (0)
#define FILL_HALVES(halves)                                                                        \
    do {                                                                                           \
        if (c->stride[1] == 1) {                                                                   \
            if (vectors == 1) FILL_STEP(1, 1, halves);                                             \
            else FILL_STEP(2, 1, halves);                                                          \
        } else if (c->stride[1] == 2) {                                                            \
            if (vectors == 1) FILL_STEP(1, 2, halves);                                             \
            else FILL_STEP(2, 2, halves);                                                          \
        } else {                                                                                   \
            FILL(vectors, c->stride[1], true, halves);                                             \
        }                                                                                          \
    } while (0)
    const int vectors = registers * V_LANES / GSPI_VECTOR_FLOATS;
    if (c->bfloat16) FILL_HALVES(true);
    else FILL_HALVES(false);
#undef FILL_HALVES
#undef FILL_STEP
#undef FILL
}

/* The pieces of a tap that the runs meet, by register. `x` is the first pixel of the first channel. */
static void cut_parts(const gsp_convolution *c, const gspi_runs *runs, int64_t tap, const void *x,
                      gspi_tap *parts) {
    const int64_t step = c->stride[1];
    gspi_piece pieces[GSPI_TILE_SAMPLES];
    int count = 0;
    for (int r = 0; r < runs->count; r++) {
        const gspi_run *run = &runs->run[r];
        int64_t from;
        int low, high;
        if (!meet(c, run, tap, &from, &low, &high)) continue;
        count =
            add_piece(pieces, count, from - run->lane * step, run->lane + low, run->lane + high);
    }
    const bool far = c->images * c->x.image_step > GSPI_FAR_BYTES / (c->bfloat16 ? 2 : 4);
    parts->ahead = far && tap == c->kernel[0] * c->kernel[1] - 1;
    parts->extra = 0;
    parts->both = false;
    for (int v = 0; v < GSPI_TILE_REGISTERS; v++) {
        int found = 0;
        for (int p = 0; p < count; p++) {
            const uint32_t bits =
                (uint32_t)(pieces[p].lanes >> v * V_LANES) & ((1u << V_LANES) - 1);
            if (bits == 0) continue;
            const gspi_part part =
                part_of(place_in(x, c->bfloat16, pieces[p].from + v * V_LANES * step), bits, step);
            if (found == 0) {
                parts->one[v] = part;
            } else if (found == 1) {
                parts->two[v] = part;
                parts->both = true;
            } else {
                parts->more[parts->extra] = part;
                parts->register_of[parts->extra++] = v;
            }
            found++;
        }
        if (found < 1) parts->one[v] = part_of(x, 0, step);
        if (found < 2) parts->two[v] = part_of(x, 0, step);
    }
}

/* Columns [col, col + cols) of the matrix, x with adjacent pixels. */
static void fill_planes(const gsp_convolution *c, const void *x, const gspi_runs *runs, int64_t col,
                        int64_t cols, char *tile, uint32_t stride, int registers) {
    const int64_t end = col + cols;
    while (col < end) {
        gspi_tap taps[GSPI_TAPS];
        int count = 0;
        for (; count < GSPI_TAPS && col < end; count++) {
            gspi_tap *tap = &taps[count];
            tap->channel = col % c->channels;
            tap->end = gspi_min(c->channels, tap->channel + end - col);
            tap->row = tile;
            cut_parts(c, runs, col / c->channels, x, tap);
            tile += (tap->end - tap->channel) * stride;
            col += tap->end - tap->channel;
        }
        const int64_t step = count == 1 ? c->channels : GSPI_TURN;
        for (int64_t turn = 0; turn < c->channels; turn += step)
            for (int i = 0; i < count; i++) {
                const int64_t from = gspi_max(taps[i].channel, turn),
                              to = gspi_min(taps[i].end, turn + step);
                if (from < to)
                    fill_tap(c, &taps[i], from, to, taps[i].row + (from - taps[i].channel) * stride,
                             stride, registers);
            }
    }
}

/* ---------------------------------------------------- channels are adjacent */

/* The same, x with adjacent channels. Rows of the tile up to the next V_LANES are overwritten. */
GSPI_VECTOR void fill_pixels(const gsp_convolution *c, const void *x, const gspi_runs *runs,
                             int64_t col, int64_t cols, char *tile, uint32_t stride, int registers,
                             bool halves) {
    const int64_t end = col + cols;
    while (col < end) {
        const int64_t tap = col / c->channels, channel = col % c->channels;
        const int64_t channels = gspi_min(c->channels - channel, end - col);
        const void *pixel[GSPI_TILE_SAMPLES];
        for (int lane = 0; lane < registers * V_LANES; lane++) pixel[lane] = NULL;
        for (int r = 0; r < runs->count; r++) {
            const gspi_run *run = &runs->run[r];
            int64_t from;
            int low, high;
            if (!meet(c, run, tap, &from, &low, &high)) continue;
            for (int i = low; i < high; i++)
                pixel[run->lane + i] =
                    place_in(x, halves, from + i * c->stride[1] * c->x.col_step + channel);
        }
        for (int64_t k = 0; k < channels; k += V_LANES) {
            const gspi_v_mask some = v_mask(channels - k);
            for (int v = 0; v < registers; v++) {
                gspi_v square[V_LANES];
                for (int i = 0; i < V_LANES; i++) {
                    const void *from = pixel[v * V_LANES + i];
                    square[i] = from == NULL ? v_set1(0.0f) : load_some_of(from, halves, k, some);
                }
                v_transpose(square);
                float *to = (float *)(void *)(tile + k * stride) + v * V_LANES;
                for (int i = 0; i < V_LANES; i++) v_store(to + (size_t)i * stride / 4, square[i]);
            }
        }
        tile += channels * stride;
        col += channels;
    }
}

static __attribute__((noinline)) void conv_fill(const gsp_plan *plan, const gspi_product *product,
                                                const gspi_runs *runs, int64_t block, char *tile,
                                                int registers) {
    const gsp_convolution *c = product->convolution;
    const uint32_t stride = plan->x_stride;
    const int64_t col = block * plan->block_cols;
    const int64_t cols = gspi_min(plan->block_cols, plan->matrix.cols - col);
    if (c->x.col_step == 1) fill_planes(c, product->x, runs, col, cols, tile, stride, registers);
    else if (c->bfloat16)
        fill_pixels(c, product->x, runs, col, cols, tile, stride, registers, true);
    else fill_pixels(c, product->x, runs, col, cols, tile, stride, registers, false);
}

/* -------------------------------------------------------------------- to y */

static int64_t y_place(const gsp_convolution *c, const gspi_run *run) {
    return run->image * c->y.image_step + run->row * c->y.row_step + run->col * c->y.col_step;
}

/* The targets of a tile in y with adjacent pixels. */
static void out_pixels(const gsp_convolution *c, const gspi_runs *runs, int registers,
                       gspi_out *out) {
    gspi_piece pieces[GSPI_TILE_SAMPLES];
    int count = 0;
    for (int r = 0; r < runs->count; r++) {
        const gspi_run *run = &runs->run[r];
        count = add_piece(pieces, count, y_place(c, run) - run->lane, run->lane,
                          run->lane + run->count);
    }
    out->targets = 0;
    for (int v = 0; v < registers; v++) {
        gspi_target *target = &out->target[out->targets++]; /* of no lanes if there are none */
        *target = (gspi_target){.from = v * V_LANES, .lanes = v_mask_of(0)};
        for (int p = 0, more = 0; p < count; p++) {
            const uint32_t bits =
                (uint32_t)(pieces[p].lanes >> v * V_LANES) & ((1u << V_LANES) - 1);
            if (bits == 0) continue;
            if (more++ > 0) target = &out->target[out->targets++];
            *target = (gspi_target){pieces[p].from + v * V_LANES, v * V_LANES, v_mask_of(bits)};
        }
    }
}

/* The sums of rows [first, last) to y with adjacent channels, in squares that are transposed. Sums behind the last
 * row are there, if of no use. */
static __attribute__((noinline)) void empty_pixels(const gsp_plan *plan,
                                                   const gspi_product *product,
                                                   const gspi_runs *runs, int registers,
                                                   int64_t first, int64_t last, const char *sums) {
    const gsp_convolution *c = product->convolution;
    const gsp_epilogue epilogue = *product->epilogue; /* which no store can change */
    const float *scales = plan->matrix.scales;
    const void *bias = epilogue.bias;
    const bool halves = c->bfloat16;
    const gspi_v zero = v_set1(0.0f);
    int64_t to[GSPI_TILE_SAMPLES];
    int count = 0;
    for (int r = 0; r < runs->count; r++)
        for (int i = 0; i < runs->run[r].count; i++)
            to[count++] = y_place(c, &runs->run[r]) + i * c->y.col_step;
    for (int64_t row = first; row < last; row += V_LANES, sums += V_LANES * plan->x_stride) {
        const gspi_v_mask some = v_mask(last - row);
        const gspi_v scale = scales == NULL ? zero : v_load_some(scales + row, some);
        const gspi_v add = bias == NULL ? zero : load_some_of(bias, halves, row, some);
        for (int v = 0; v < registers; v++) {
            gspi_v square[V_LANES];
            for (int i = 0; i < V_LANES; i++)
                square[i] =
                    v_load((const float *)(const void *)(sums + i * plan->x_stride) + v * V_LANES);
            v_transpose(square);
            for (int i = 0; i < V_LANES && v * V_LANES + i < count; i++) {
                const int64_t at = to[v * V_LANES + i] + row;
                gspi_v sum = square[i];
                if (scales != NULL) sum = v_mul(sum, scale);
                if (bias != NULL) sum = v_add(sum, add);
                if (epilogue.residual != NULL)
                    sum = v_add(sum, load_some_of(epilogue.residual, halves, at, some));
                sum = v_activate(sum, &epilogue);
                store_some_of(product->y, halves, at, some, sum);
            }
        }
    }
}

#endif
