/* The gates of gsp_gates.h with NEON. */
#if defined(__aarch64__)
#include "gsp_gates.h"

void gspi_f32_lstm__neon(const gspi_gates *gates, int64_t first, int64_t last) {
    v_gates(gates, first, last, false);
}

void gspi_f32_gru__neon(const gspi_gates *gates, int64_t first, int64_t last) {
    v_gates(gates, first, last, true);
}
#endif
