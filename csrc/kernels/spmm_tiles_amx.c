/* SpMM with narrow values and x by AMX: packed weights are expanded to dense tiles in the first cache.
 *
 *     for every 32 rows, 512 columns (1024 of int8):      dense[columns][32 rows], from bits and packed values
 *         for every 32 samples:
 *             sums[32 samples][32 rows] += x[32 samples][columns] * dense
 *     y[sample][row] = activation(sums + bias + residual)
 *
 * bfloat16: sums are float, y bfloat16. int8: x is rounded to bytes q of each sample; sums are 32-bit integers, and
 * (sums - zero * weights) * scale * scales[row] goes to y, as in spmv_bytes_avx512vnni.c, which says why no sum can
 * overflow.
 *
 * A tile is 16 lines of 64 bytes. TDPBF16PS takes two columns at a time, TDPBUSD four: sums[16 samples][16 rows] +=
 * x[16 samples][32 or 64 columns] * weights, whose lines are [16 rows][2 or 4 columns]. So x is read as it lies, by
 * samples, and sums come out in the order of y. One product takes 16 cycles, a load of a tile 8; two by two tiles of
 * sums take four products for four loads. TDPBF16PS takes denormal numbers for 0, and rounds to the nearest.
 *
 * VPEXPANDW and VPEXPANDB bring packed values to the places whose bits are set: 2 cycles for a line on Intel, and as
 * much again for its bits, their number, its load and its store, so that a tile takes about as long to expand as three
 * or four products with it. The next step is expanded while the one before is multiplied; samples behind the first 32
 * use what is in the cache.
 *
 * Weights that are kept packed in memory and expanded for the tiles of AMX are the idea of SparAMX (AbouElhamayed and
 * others, 2025). */
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) &&                     \
    defined(__AVX512VBMI2__)
#include "gsp_vector.h"

#include "spmv_narrow.h"

#define LINE 64
#define TILE (16 * LINE)
#define STEP (2 * TILE) /* bytes that are expanded at once: 16 lines of twice 16 rows */
#define BLOCK_STEPS 16 /* 32 KiB */
#define HALF 16 /* samples or rows of a tile */
#define GROUP 32 /* samples */
/* Samples of a chunk: 64 KiB of sums, and those that the copy holds; GSPI_MOST_TILE_COLS numbers of 16 bits and a line
 * for each of 16. */
#define CHUNK 512
#define COPY_BYTES (HALF * (2 * GSPI_MOST_TILE_COLS + LINE))

/* Samples of a product, `apart` bytes from one another; x is what tiles can load. */
typedef struct {
    const gsp_plan *plan;
    const gspi_product *product;
    const char *x;
    int64_t apart;
    bool bytes; /* or bfloat16 */
} chunk;

/* How far a unit is expanded. */
typedef struct {
    const uint8_t *bits;
    const unsigned char *values;
} packed;

/* One configuration for all: eight tiles of 16 lines. */
static void configure(void) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t line_bytes[16];
        uint8_t lines[16];
    } _Alignas(64) config = {
        .palette = 1,
        .line_bytes = {LINE, LINE, LINE, LINE, LINE, LINE, LINE, LINE},
        .lines = {16, 16, 16, 16, 16, 16, 16, 16},
    };
    _tile_loadconfig(&config);
}

/* Intrinsics of tiles do not tell GCC what memory they read. */
#define SETTLE() __asm__ volatile("" ::: "memory")

GSPI_VECTOR void expand_step(packed *from, unsigned char *to, bool bytes) {
    for (int line = 0; line < STEP / LINE; line++, to += LINE) {
        const __m512i values = _mm512_loadu_si512(from->values);
        if (bytes) {
            uint64_t bits;
            memcpy(&bits, from->bits, sizeof bits);
            _mm512_store_si512(to, _mm512_maskz_expand_epi8(bits, values));
            from->values += _mm_popcnt_u64(bits);
            from->bits += sizeof bits;
        } else {
            uint32_t bits;
            memcpy(&bits, from->bits, sizeof bits);
            _mm512_store_si512(to, _mm512_maskz_expand_epi16(bits, values));
            from->values += 2 * _mm_popcnt_u32(bits);
            from->bits += sizeof bits;
        }
    }
    _mm_prefetch((const char *)from->values + 1024, _MM_HINT_T0);
}

/* Tiles 0 to 3 are the sums of [samples][rows], two by two; 4 and 5 hold x, 6 and 7 the weights. */
GSPI_VECTOR void multiply_step(const char *x, int64_t apart, const unsigned char *dense, bool bytes,
                               bool two) {
    SETTLE();
    _tile_loadd(4, x, apart);
    _tile_loadd(6, dense, LINE);
    _tile_loadd(7, dense + TILE, LINE);
    if (bytes) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
    } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
    if (two) {
        _tile_loadd(5, x + HALF * apart, apart);
        if (bytes) {
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        } else {
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    SETTLE();
}

#define SUMS_APART (GSPI_TILE_ROWS * (int64_t)sizeof(float))

static void begin_sums(const char *sums, bool zero) {
    if (zero) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        return;
    }
    const char *const second = sums + HALF * SUMS_APART;
    SETTLE();
    _tile_loadd(0, sums, SUMS_APART);
    _tile_loadd(1, sums + LINE, SUMS_APART);
    _tile_loadd(2, second, SUMS_APART);
    _tile_loadd(3, second + LINE, SUMS_APART);
}

static void end_sums(char *sums) {
    char *const second = sums + HALF * SUMS_APART;
    _tile_stored(0, sums, SUMS_APART);
    _tile_stored(1, sums + LINE, SUMS_APART);
    _tile_stored(2, second, SUMS_APART);
    _tile_stored(3, second + LINE, SUMS_APART);
}

/* Multiplies steps of a block with a group of samples; expands them too, a step ahead, if they are not yet. */
GSPI_VECTOR void multiply_block(const char *x, int64_t apart, packed *from, unsigned char *dense,
                                int64_t steps, bool bytes, bool two) {
    if (from != NULL && steps > 0) expand_step(from, dense, bytes);
    for (int64_t step = 0; step < steps; step++, x += LINE, dense += STEP) {
        if (from != NULL && step + 1 < steps) expand_step(from, dense + STEP, bytes);
        multiply_step(x, apart, dense, bytes, two);
    }
}

/* Sums [count samples][GSPI_TILE_ROWS] from `sample` on to y; integers become floats where they are. */
static void finish_sums(const chunk *c, int64_t sample, int64_t count, int64_t unit, char *sums) {
    for (int64_t i = 0; c->bytes && i < 2 * count; i++) {
        const int zero = (int)c->product->quanta[sample + i / 2].zero;
        const int32_t *weights = c->plan->weights + unit * GSPI_TILE_ROWS + i % 2 * HALF;
        const __m512i corrected = _mm512_sub_epi32(
            _mm512_load_si512(sums + i * LINE),
            _mm512_mullo_epi32(_mm512_set1_epi32(zero), _mm512_load_si512(weights)));
        v_store((float *)(void *)(sums + i * LINE), _mm512_cvtepi32_ps(corrected));
    }
    narrow_finish_unit(c->plan, c->product, sample, count, unit, 2, (const gspi_v *)(void *)sums);
}

GSPI_VECTOR void multiply_units(const chunk *c, int64_t first, int64_t last, bool bytes) {
    _Alignas(64) unsigned char dense[BLOCK_STEPS * STEP];
    _Alignas(64) char sums[CHUNK * SUMS_APART];
    const gsp_plan *plan = c->plan;
    const int64_t samples = c->product->samples, steps = plan->x_size / plan->entry->width;
    const int64_t bit_bytes = STEP / (bytes ? 1 : 2) / 8;
    for (int64_t unit = first; unit < last; unit++) {
        packed from = {plan->positions + unit * steps * bit_bytes,
                       plan->packed + plan->start[unit] * (bytes ? 1 : 2)};
        int64_t begin = 0;
        do { /* at least once, for matrices without columns */
            const int64_t now = gspi_min(BLOCK_STEPS, steps - begin);
            for (int64_t s = 0; s < samples; s += GROUP) {
                const char *x = c->x + s * c->apart + begin * LINE;
                packed *const expand = s == 0 ? &from : NULL;
                begin_sums(sums + s * SUMS_APART, begin == 0);
                if (samples - s > HALF)
                    multiply_block(x, c->apart, expand, dense, now, bytes, true);
                else multiply_block(x, c->apart, expand, dense, now, bytes, false);
                end_sums(sums + s * SUMS_APART);
                if (begin + now == steps)
                    finish_sums(c, s, gspi_min(GROUP, samples - s), unit, sums + s * SUMS_APART);
            }
            begin += now;
        } while (begin < steps);
    }
}

static __attribute__((noinline)) void multiply_bfloat16(const chunk *c, int64_t first,
                                                        int64_t last) {
    multiply_units(c, first, last, false);
}

static __attribute__((noinline)) void multiply_bytes(const chunk *c, int64_t first, int64_t last) {
    multiply_units(c, first, last, true);
}

/* bfloat16 x [cols][samples] to [samples][cols], in squares of 16 samples by 16 pairs of columns. */
static void turn(const gsp_plan *plan, const gspi_product *product, char *copy, int64_t apart) {
    const int64_t cols = plan->matrix.cols;
    for (int64_t s = 0; s < product->samples; s += HALF) {
        const __mmask16 some = v_mask(product->samples - s);
        for (int64_t col = 0; col < plan->x_size; col += 32) {
            const uint16_t *from = (const uint16_t *)product->x + s;
            gspi_v square[V_LANES];
            for (int i = 0; i < V_LANES; i++) {
                __m512i pair[2];
                for (int j = 0; j < 2; j++) {
                    const int64_t at = col + 2 * i + j;
                    pair[j] = at < cols ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(
                                              some, from + at * product->x_col))
                                        : _mm512_setzero_si512();
                }
                square[i] =
                    _mm512_castsi512_ps(_mm512_or_si512(pair[0], _mm512_slli_epi32(pair[1], 16)));
            }
            v_transpose(square);
            for (int i = 0; i < V_LANES; i++)
                v_store((float *)(void *)(copy + (s + i) * apart + col * 2), square[i]);
        }
    }
}

/* Brings x to a copy that tiles can load: whole lines, of whole tiles of samples. */
static void fill_copy(const gsp_plan *plan, const gspi_product *product, char *copy, int64_t apart,
                      gspi_quantum *quanta) {
    float room[GSPI_MOST_TILE_COLS];
    const int64_t samples = product->samples;
    if (plan->operand == GSP_BFLOAT16 && product->x_col != 1) {
        turn(plan, product, copy, apart);
        return;
    }
    const int64_t size = plan->operand == GSP_BFLOAT16 ? 2 : sizeof(float);
    for (int64_t s = 0; s < samples; s++)
        quanta[s] = gspi_narrow_copy(plan, (const char *)product->x + s * product->x_sample * size,
                                     product->x_col, copy + s * apart, room);
    for (int64_t s = samples; s % HALF != 0; s++) memset(copy + s * apart, 0, (size_t)apart);
}

/* Functions of their own, so that no more of the stack is used than is needed at once. */
static __attribute__((noinline)) void multiply_copy(const gsp_plan *plan, gspi_product *product,
                                                    int64_t first, int64_t last) {
    _Alignas(64) char copy[COPY_BYTES];
    gspi_quantum quanta[CHUNK];
    const int64_t apart = gspi_narrow_stride(plan);
    fill_copy(plan, product, copy, apart, quanta);
    product->quanta = quanta;
    const chunk c = {plan, product, copy, apart, plan->operand == GSP_INT8};
    if (c.bytes) multiply_bytes(&c, first, last);
    else multiply_bfloat16(&c, first, last);
}

static void multiply_tiles(const gsp_plan *plan, const gspi_product *product, int64_t first,
                           int64_t last) {
    const bool bytes = plan->operand == GSP_INT8;
    const bool fits =
        !bytes && product->x_col == 1 && plan->matrix.cols == plan->x_size && plan->x_size > 0;
    const int64_t whole = fits ? product->samples / HALF * HALF : 0;
    const int64_t copied = gspi_min(CHUNK, COPY_BYTES / gspi_narrow_stride(plan) / HALF * HALF);
    const int64_t x_size = bytes ? sizeof(float) : sizeof(uint16_t), y_size = x_size;
    configure();
    for (int64_t sample = 0, next; sample < product->samples; sample = next) {
        next = sample < whole ? gspi_min(sample + CHUNK, whole)
                              : gspi_min(sample + copied, product->samples);
        gsp_epilogue epilogue = *product->epilogue;
        gspi_product part = *product;
        part.samples = next - sample;
        part.x = (const char *)product->x + sample * product->x_sample * x_size;
        part.y = (char *)product->y + sample * product->y_sample * y_size;
        part.epilogue = &epilogue;
        if (epilogue.residual != NULL)
            epilogue.residual =
                (const char *)epilogue.residual + sample * product->y_sample * y_size;
        if (sample < whole) {
            const chunk c = {plan, &part, part.x, product->x_sample * x_size, false};
            multiply_bfloat16(&c, first, last);
        } else {
            multiply_copy(plan, &part, first, last);
        }
    }
    _tile_release();
}

void gsp_bf16_spmm_tiles__amx(const gsp_plan *plan, const gspi_product *product, int64_t first,
                              int64_t last) {
    multiply_tiles(plan, product, first, last);
}

void gsp_i8_spmm_tiles__amx(const gsp_plan *plan, const gspi_product *product, int64_t first,
                            int64_t last) {
    multiply_tiles(plan, product, first, last);
}
#endif
