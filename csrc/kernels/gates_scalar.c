/* The gates of gsp_gates.h in plain C, for float64, and for float as the oracle of faster ones. */
#include <math.h>

#include "gsp_recurrent.h"

#define GATES(name, type, exp_, tanh_)                                                             \
    static type sigmoid_##name(type x) { return 1 / (1 + exp_(-x)); }                              \
    void gspi_##name##_lstm__scalar(const gspi_gates *of, int64_t first, int64_t last) {           \
        const int64_t hidden = of->hidden;                                                         \
        const type *bias = of->bias;                                                               \
        for (int64_t sample = first; sample < last; sample++) {                                    \
            const type *a = (const type *)of->input + sample * 4 * hidden;                         \
            const type *b = (const type *)of->product + sample * 4 * hidden;                       \
            type *h = (type *)of->h + sample * hidden, *c = (type *)of->c + sample * hidden;       \
            type *y = (type *)of->y + sample * of->y_sample;                                       \
            for (int64_t unit = 0; unit < hidden; unit++) {                                        \
                type sum[4];                                                                       \
                for (int64_t gate = 0; gate < 4; gate++) {                                         \
                    const int64_t at = gate * hidden + unit;                                       \
                    sum[gate] = a[at] + bias[at] + b[at];                                          \
                }                                                                                  \
                c[unit] =                                                                          \
                    sigmoid_##name(sum[1]) * c[unit] + sigmoid_##name(sum[0]) * tanh_(sum[2]);     \
                y[unit] = h[unit] = sigmoid_##name(sum[3]) * tanh_(c[unit]);                       \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    void gspi_##name##_gru__scalar(const gspi_gates *of, int64_t first, int64_t last) {            \
        const int64_t hidden = of->hidden;                                                         \
        const type *bias = of->bias;                                                               \
        for (int64_t sample = first; sample < last; sample++) {                                    \
            const type *a = (const type *)of->input + sample * 3 * hidden;                         \
            const type *b = (const type *)of->product + sample * 3 * hidden;                       \
            type *h = (type *)of->h + sample * hidden;                                             \
            type *y = (type *)of->y + sample * of->y_sample;                                       \
            for (int64_t unit = 0; unit < hidden; unit++) {                                        \
                const int64_t at_z = hidden + unit, at_n = 2 * hidden + unit;                      \
                const type r = sigmoid_##name(a[unit] + bias[unit] + b[unit]);                     \
                const type z = sigmoid_##name(a[at_z] + bias[at_z] + b[at_z]);                     \
                const type n = tanh_(a[at_n] + bias[at_n] + r * (b[at_n] + bias[at_n + hidden]));  \
                y[unit] = h[unit] = n + z * (h[unit] - n);                                         \
            }                                                                                      \
        }                                                                                          \
    }

GATES(f64, double, exp, tanh)
GATES(f32, float, expf, tanhf)
