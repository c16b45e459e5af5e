/* The gates of gsp_gates.h with AVX-512. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "gsp_gates.h"

void gspi_f32_lstm__avx512(const gspi_gates *gates, int64_t first, int64_t last) {
    v_gates(gates, first, last, false);
}

void gspi_f32_gru__avx512(const gspi_gates *gates, int64_t first, int64_t last) {
    v_gates(gates, first, last, true);
}
#endif
