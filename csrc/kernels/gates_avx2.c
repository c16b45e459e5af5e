/* The gates of gsp_gates.h with AVX2. */
#if defined(__AVX2__) && defined(__FMA__)
#include "gsp_gates.h"

void gspi_f32_lstm__avx2(const gspi_gates *gates, int64_t first, int64_t last) {
    v_gates(gates, first, last, false);
}

void gspi_f32_gru__avx2(const gspi_gates *gates, int64_t first, int64_t last) {
    v_gates(gates, first, last, true);
}
#endif
