/* The gates of gsp_gates.h with AVX2. */
#if defined(__AVX2__) && defined(__FMA__)
#include "gsp_gates.h"

static void lstm(const gspi_gates *gates, int64_t first, int64_t last, int64_t from, int64_t to) {
    v_gates(gates, first, last, from, to, false);
}

static void gru(const gspi_gates *gates, int64_t first, int64_t last, int64_t from, int64_t to) {
    v_gates(gates, first, last, from, to, true);
}

static void turn(const void *from, int64_t from_line, int64_t rows, int64_t cols, void *to,
                 int64_t to_line) {
    v_turn(from, from_line, rows, cols, to, to_line);
}

const gspi_cell_kernels gspi_f32_cells__avx2 = {lstm, gru, turn};
#endif
