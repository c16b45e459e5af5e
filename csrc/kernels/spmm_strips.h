/* SpMM: what is the same for every instruction set: tiles of x, the sums of some rows, and the way to y.
 *
 *     for every run of units whose sums fit the panel, every tile of samples:
 *         for every block of columns:     tile of x = x[block][tile], packed and aligned
 *             for every strip of the block: sums[its rows] += its values * rows of the tile (= in the first block)
 *         y[rows][tile] = activation(scale * sums + bias + residual)
 *
 * The tile (32 KiB at most) stays in the first cache while all strips of its block go by, the panel in the second; x
 * and y may lie along the samples or across them, and are turned on the way in and out. A file that includes this
 * gives the work on strips as a gspi_strips for each number of 64-byte vectors in a tile. */
#ifndef SPMM_STRIPS_H
#define SPMM_STRIPS_H

#include "conv_tile.h"

#define GSPI_TILE_BYTES 32768
#define GSPI_PANEL_BYTES 262144
/* A y of so many bytes is written past the caches: else each of its lines would be read first. Of a convolution, whose
 * rows lie so far apart that no more than two lines of one are written in turn, each is waited for as well. */
#define GSPI_LONG_BYTES 33554432
#define GSPI_LONG_IMAGES GSPI_FAR_BYTES
#define GSPI_MANY_SAMPLES 512

/* Adds the strips in [strip, end) to the sums, or begins the sums with them; out NULL, or where they go instead. */
typedef void gspi_strips(const gsp_plan *plan, const gspi_strip *strip, const gspi_strip *end,
                         const char *tile, char *sums, bool begin, const gspi_out *out);

/* Samples that lie `left` into x and y: count of them, in `registers` registers that need not be full. */
typedef struct {
    int64_t left, count;
    int registers;
} gspi_samples;

/* A block of x [cols][samples] to the tile. */
GSPI_VECTOR void fill_along(const gspi_product *product, gspi_samples s, int64_t col, int64_t cols,
                            uint32_t stride, char *tile, int registers) {
    const float *from = (const float *)product->x + col * product->x_col + s.left;
    gspi_v_mask some[GSPI_TILE_REGISTERS];
    for (int v = 0; v < registers; v++) some[v] = v_mask(s.count - v * V_LANES);
    const bool full = s.count == registers * V_LANES;
    for (int64_t c = 0; c < cols; c++, from += product->x_col) {
        float *to = (float *)(void *)(tile + c * stride);
        for (int v = 0; v < registers; v++)
            v_store(to + v * V_LANES,
                    full ? v_loadu(from + v * V_LANES) : v_load_some(from + v * V_LANES, some[v]));
    }
}

/* A block of x [samples][cols] to the tile, in squares that are transposed. */
GSPI_VECTOR void fill_across(const gspi_product *product, gspi_samples s, int64_t col, int64_t cols,
                             uint32_t stride, char *tile) {
    for (int v = 0; v < s.registers; v++)
        for (int64_t c = 0; c < cols; c += V_LANES) {
            const gspi_v_mask some = v_mask(cols - c);
            const float *from =
                (const float *)product->x + (s.left + v * V_LANES) * product->x_sample + col + c;
            gspi_v square[V_LANES];
            for (int i = 0; i < V_LANES; i++)
                square[i] = v * V_LANES + i < s.count
                                ? v_load_some(from + i * product->x_sample, some)
                                : v_set1(0.0f);
            v_transpose(square);
            float *to = (float *)(tile + c * stride) + v * V_LANES;
            for (int i = 0; i < V_LANES; i++) v_store(to + (size_t)i * stride / 4, square[i]);
        }
}

static __attribute__((noinline)) void fill_tile(const gsp_plan *plan, const gspi_product *product,
                                                gspi_samples s, int64_t block, char *tile) {
    const int64_t col = block * plan->block_cols;
    const int64_t cols = gspi_min(plan->block_cols, plan->matrix.cols - col);
    if (product->x_sample != 1) {
        fill_across(product, s, col, cols, plan->x_stride, tile);
        return;
    }
    const uint32_t stride = plan->x_stride;
    if (s.registers == GSPI_VECTOR_FLOATS / V_LANES) /* so that the inner loops are unrolled */
        fill_along(product, s, col, cols, stride, tile, GSPI_VECTOR_FLOATS / V_LANES);
    else fill_along(product, s, col, cols, stride, tile, 2 * GSPI_VECTOR_FLOATS / V_LANES);
}

/* Where the samples of y lie that a plain product has in its registers. */
static void out_along(gspi_samples s, gspi_out *out) {
    out->targets = s.registers;
    for (int v = 0; v < s.registers; v++)
        out->target[v] =
            (gspi_target){s.left + v * V_LANES, v * V_LANES, v_mask(s.count - v * V_LANES)};
}

/* The sums of rows [first, last) to y [samples][rows], in squares that are transposed. Sums behind the last row are
 * there, if of no use. */
GSPI_VECTOR void empty_across(const gsp_plan *plan, const gspi_product *product, gspi_samples s,
                              int64_t first, int64_t last, const char *sums) {
    const gsp_epilogue epilogue = *product->epilogue; /* which no store can change */
    const float *scales = plan->matrix.scales, *bias = epilogue.bias;
    const gspi_v zero = v_set1(0.0f);
    for (int64_t row = first; row < last; row += V_LANES, sums += V_LANES * plan->x_stride) {
        const gspi_v_mask some = v_mask(last - row);
        const gspi_v scale = scales == NULL ? zero : v_load_some(scales + row, some);
        const gspi_v add = bias == NULL ? zero : v_load_some(bias + row, some);
        for (int v = 0; v < s.registers; v++) {
            gspi_v square[V_LANES];
            for (int i = 0; i < V_LANES; i++)
                square[i] = v_load((const float *)(sums + i * plan->x_stride) + v * V_LANES);
            v_transpose(square);
            const int64_t count = gspi_min(V_LANES, s.count - v * V_LANES);
            for (int64_t i = 0; i < count; i++) {
                const int64_t at = (s.left + v * V_LANES + i) * product->y_sample + row;
                gspi_v sum = square[i];
                if (scales != NULL) sum = v_mul(sum, scale);
                if (bias != NULL) sum = v_add(sum, add);
                if (epilogue.residual != NULL)
                    sum = v_add(sum, v_load_some((const float *)epilogue.residual + at, some));
                sum = v_activate(sum, &epilogue);
                v_store_some((float *)product->y + at, some, sum);
            }
        }
    }
}

/* Whether every row of y, and of every image, lies to lines of the cache as the first one does. */
static bool out_begins_lines(const gspi_out *out, const gsp_convolution *conv) {
    const int64_t steps = out->row_step | (conv == NULL ? 0 : conv->y.image_step);
    return steps % GSPI_VECTOR_FLOATS == 0 && (uintptr_t)out->y % sizeof(float) == 0;
}

static bool out_is_long(const gspi_out *out, const gsp_convolution *conv, int64_t samples) {
    const int64_t floats = conv == NULL ? samples * out->rows : conv->images * conv->y.image_step;
    return floats >= (conv == NULL ? GSPI_LONG_BYTES : GSPI_LONG_IMAGES) / (int64_t)sizeof(float);
}

/* Whether targets begin with a line, if rows do. */
static bool out_is_aligned(const gspi_out *out) {
    bool aligned = true;
    for (int i = 0; i < out->targets; i++)
        aligned = aligned &&
                  ((uintptr_t)out->y / sizeof(float) + (uintptr_t)out->target[i].at) % V_LANES == 0;
    return aligned;
}

/* The residual lies as y does, two lines of a row side by side: no CPU sees which will be next. So what some strips
 * will add is fetched while those before them multiply. */
#define GSPI_TURN_STRIPS 4

static const gspi_strip *turn_end(const gspi_strip *strip, const gspi_strip *stop) {
    return stop - strip > GSPI_TURN_STRIPS ? strip + GSPI_TURN_STRIPS : stop;
}

static void fetch_residual(const gspi_out *out, const gspi_strip *strip, const gspi_strip *end) {
    for (; strip < end; strip++)
        for (int r = 0; r < GSPI_STRIP_ROWS; r++) {
            const int64_t row = out->first + strip->rows[r];
            if (strip->rows[r] >= out->count) continue;
            for (int i = 0; i < out->targets; i += GSPI_VECTOR_FLOATS / V_LANES)
                __builtin_prefetch(
                    beside(out->epilogue.residual, row * out->row_step + out->target[i].at));
        }
}

/* add[i] is for tiles of i + 1 vectors of 64 bytes. */
static void spmm_strips(const gsp_plan *plan, const gspi_product *product, int64_t first,
                        int64_t last, gspi_strips *const add[GSPI_TILE_VECTORS]) {
    _Alignas(64) char tile[GSPI_TILE_BYTES + GSPI_SPARE_ROWS * GSPI_TILE_VECTORS * 64];
    _Alignas(64) char panel[GSPI_PANEL_BYTES + GSPI_TILE_VECTORS * 64]; /* and a row of no use */
    const gsp_convolution *conv = product->convolution;
    gspi_runs runs;
    gspi_out out = {.y = product->y,
                    .halves = conv != NULL && conv->bfloat16,
                    .epilogue = *product->epilogue,
                    .scales = plan->matrix.scales,
                    .row_step = conv != NULL ? conv->y.channel_step : product->y_row,
                    .rows = plan->matrix.rows};
    const bool along = conv != NULL ? conv->y.col_step == 1 : product->y_sample == 1;
    const bool clamps = out_clamps(&out);
    const int64_t most = plan->x_stride / 64;
    const int64_t unit_bytes = plan->unit_rows * (int64_t)plan->x_stride;
    const bool lines = along && !out.halves && out_begins_lines(&out, conv);
    const bool streams = lines && out_is_long(&out, conv, product->samples);
    /* Samples from the beginning of a line of y to the first one: the first tile has fewer by as many, if one more
     * register does not matter. */
    const bool begins = lines && product->samples >= GSPI_MANY_SAMPLES;
    const int64_t lead = begins ? (int64_t)((uintptr_t)(out.y + product->first) % 64 / 4) : 0;
    const int64_t vectors = gspi_ceil_div(lead + product->samples, GSPI_VECTOR_FLOATS);
    for (int64_t begin = first; begin < last; begin += GSPI_PANEL_BYTES / unit_bytes) {
        const int64_t end = gspi_min(begin + GSPI_PANEL_BYTES / unit_bytes, last);
        const int64_t row = begin * plan->unit_rows;
        const int64_t last_row = gspi_min(end * plan->unit_rows, plan->matrix.rows);
        for (int64_t from = 0, to; from < vectors; from = to) {
            to = gspi_min(from + most, vectors);
            gspi_samples s = {.left = gspi_max(0, from * GSPI_VECTOR_FLOATS - lead)};
            s.count = gspi_min(to * GSPI_VECTOR_FLOATS - lead, product->samples) - s.left;
            s.registers = (int)(to - from) * (GSPI_VECTOR_FLOATS / V_LANES);
            if (conv != NULL) cut_runs(conv, product->first + s.left, s.count, &runs);
            if (along && conv != NULL) out_pixels(conv, &runs, s.registers, &out);
            else if (along) out_along(s, &out);
            const bool direct = along && clamps && !out.halves && out.targets == s.registers;
            out.stream = streams && s.count == s.registers * V_LANES && out_is_aligned(&out);
            for (int64_t block = 0; block < plan->blocks; block++) {
                if (conv == NULL) fill_tile(plan, product, s, block, tile);
                else conv_fill(plan, product, &runs, block, tile, s.registers);
                for (int64_t unit = begin; unit < end; unit++) {
                    const uint64_t *start = plan->start + unit * plan->blocks + block;
                    const gspi_strip *strip = plan->strips + start[0], *const stop =
                                                                           plan->strips + start[1];
                    const gspi_out *into = direct && block == plan->blocks - 1 ? &out : NULL;
                    const bool fetches = into != NULL && out.epilogue.residual != NULL;
                    out.first = unit * plan->unit_rows;
                    out.count = gspi_min(plan->unit_rows, plan->matrix.rows - out.first);
                    if (fetches) fetch_residual(&out, strip, turn_end(strip, stop));
                    do {
                        const gspi_strip *next = fetches ? turn_end(strip, stop) : stop;
                        if (fetches) fetch_residual(&out, next, turn_end(next, stop));
                        add[to - from - 1](plan, strip, next, tile,
                                           panel + (unit - begin) * unit_bytes, block == 0, into);
                        strip = next;
                    } while (strip < stop);
                }
            }
            if (direct) continue;
            if (along) finish_rows(&out, row, last_row, panel, plan->x_stride);
            else if (conv != NULL)
                empty_pixels(plan, product, &runs, s.registers, row, last_row, panel);
            else empty_across(plan, product, s, row, last_row, panel);
        }
    }
    if (streams) v_stream_end();
}

#endif
