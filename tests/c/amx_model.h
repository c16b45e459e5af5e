/* The tile instructions of AMX in plain C, by their definitions in Intel's Software Developer's Manual. A kernel that
 * is compiled with this header before anything else (-include) runs on every CPU with AVX-512 VBMI2, and is tested so
 * where there is no AMX. What the hardware answers with a fault ends the program, and so does a configuration that a
 * call has left behind. */
#ifndef AMX_MODEL_H
#define AMX_MODEL_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig amx_model_configure
#define _tile_release amx_model_release
#define _tile_loadd amx_model_load
#define _tile_stored amx_model_store
#define _tile_zero amx_model_zero
#define _tile_dpbf16ps amx_model_dpbf16ps
#define _tile_dpbusd amx_model_dpbusd

#define AMX_MODEL_TILES 8

/* As LDTILECFG reads it. */
typedef struct amx_model_config {
    uint8_t palette, start, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
} amx_model_config;

static _Thread_local struct {
    amx_model_config config; /* palette 0: none */
    unsigned char tiles[AMX_MODEL_TILES][16][64];
} amx_model;

static inline void amx_model_must(int condition) {
    if (!condition) abort();
}

static inline void amx_model_check(int tile) {
    amx_model_must(amx_model.config.palette == 1 && tile >= 0 && tile < AMX_MODEL_TILES &&
                   amx_model.config.lines[tile] > 0);
}

static inline void amx_model_configure(const void *from) {
    amx_model_must(amx_model.config.palette == 0);
    memcpy(&amx_model.config, from, sizeof amx_model.config);
    memset(amx_model.tiles, 0, sizeof amx_model.tiles);
    const amx_model_config *config = &amx_model.config;
    amx_model_must(config->palette == 1 && config->start == 0);
    for (int i = 0; i < 14; i++) amx_model_must(config->reserved[i] == 0);
    for (int i = 0; i < 16; i++) {
        amx_model_must(config->lines[i] <= 16 && config->line_bytes[i] <= 64);
        amx_model_must((config->lines[i] == 0) == (config->line_bytes[i] == 0));
        amx_model_must(i < AMX_MODEL_TILES || config->lines[i] == 0);
    }
}

static inline void amx_model_release(void) {
    memset(&amx_model.config, 0, sizeof amx_model.config);
}

static inline void amx_model_zero(int tile) {
    amx_model_check(tile);
    memset(amx_model.tiles[tile], 0, sizeof amx_model.tiles[tile]);
}

static inline void amx_model_load(int tile, const void *base, long stride) {
    amx_model_zero(tile);
    for (int i = 0; i < amx_model.config.lines[tile]; i++)
        memcpy(amx_model.tiles[tile][i], (const char *)base + i * stride,
               amx_model.config.line_bytes[tile]);
}

static inline void amx_model_store(int tile, void *base, long stride) {
    amx_model_check(tile);
    for (int i = 0; i < amx_model.config.lines[tile]; i++)
        memcpy((char *)base + i * stride, amx_model.tiles[tile][i],
               amx_model.config.line_bytes[tile]);
}

/* Shapes of sums [m][n] += a [m][k] * b [k][n], in words of four bytes. */
static inline void amx_model_check_product(int sums, int a, int b) {
    amx_model_check(sums);
    amx_model_check(a);
    amx_model_check(b);
    const amx_model_config *config = &amx_model.config;
    amx_model_must(sums != a && sums != b && a != b);
    amx_model_must(config->lines[sums] == config->lines[a] &&
                   config->line_bytes[sums] == config->line_bytes[b] &&
                   config->line_bytes[a] == 4 * config->lines[b]);
}

static inline float amx_model_flush(float value) {
    return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value;
}

static inline float amx_model_bfloat16(const unsigned char *from) {
    const uint32_t bits = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return amx_model_flush(value);
}

static inline void amx_model_dpbf16ps(int sums, int a, int b) {
    amx_model_check_product(sums, a, b);
    const int columns = amx_model.config.line_bytes[sums] / 4;
    for (int m = 0; m < amx_model.config.lines[sums]; m++) {
        float even[16] = {0}, odd[16] = {0}, sum[16];
        for (int k = 0; k < amx_model.config.lines[b]; k++) {
            const unsigned char *x = amx_model.tiles[a][m] + 4 * k;
            for (int n = 0; n < columns; n++) {
                const unsigned char *y = amx_model.tiles[b][k] + 4 * n;
                even[n] =
                    amx_model_flush(fmaf(amx_model_bfloat16(x), amx_model_bfloat16(y), even[n]));
                odd[n] = amx_model_flush(
                    fmaf(amx_model_bfloat16(x + 2), amx_model_bfloat16(y + 2), odd[n]));
            }
        }
        memcpy(sum, amx_model.tiles[sums][m], sizeof sum);
        for (int n = 0; n < columns; n++)
            sum[n] = amx_model_flush(amx_model_flush(sum[n]) + amx_model_flush(even[n] + odd[n]));
        memcpy(amx_model.tiles[sums][m], sum, sizeof sum);
    }
}

static inline void amx_model_dpbusd(int sums, int a, int b) {
    amx_model_check_product(sums, a, b);
    for (int m = 0; m < amx_model.config.lines[sums]; m++) {
        int32_t sum[16];
        memcpy(sum, amx_model.tiles[sums][m], sizeof sum);
        for (int k = 0; k < amx_model.config.lines[b]; k++)
            for (int i = 0; i < amx_model.config.line_bytes[sums]; i++)
                sum[i / 4] +=
                    amx_model.tiles[a][m][4 * k + i % 4] * (int8_t)amx_model.tiles[b][k][i];
        memcpy(amx_model.tiles[sums][m], sum, sizeof sum);
    }
}

#endif
