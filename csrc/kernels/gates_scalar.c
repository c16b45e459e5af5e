/* The gates of gsp_gates.h in plain C, for float64, and for float as the oracle of faster ones. */
#include <math.h>

#include "gsp_recurrent.h"

/* How far number `unit` of a line of samples, or number `sample` of a line of units, is. */
static int64_t at(const gspi_gates *of, int64_t line, int64_t sample, int64_t unit) {
    return of->by_unit ? unit * line + sample : sample * line + unit;
}

#define CELLS(name, type, exp_, tanh_)                                                             \
    static type sigmoid_##name(type x) { return 1 / (1 + exp_(-x)); }                              \
    /* input + bias, and the product, of gate k */                                                 \
    static void sums_##name(const gspi_gates *of, int64_t sample, int64_t unit, int64_t k,         \
                            type *input, type *product) {                                          \
        const int64_t row = k * of->hidden + unit;                                                 \
        *input = ((const type *)of->input)[at(of, of->input_line, sample, row)] +                  \
                 ((const type *)of->bias)[row];                                                    \
        *product = ((const type *)of->product)[at(of, of->product_line, sample, row)];             \
    }                                                                                              \
    static void gates_##name(const gspi_gates *of, int64_t first, int64_t last, int64_t from,      \
                             int64_t to, bool gru) {                                               \
        for (int64_t line = first; line < last; line++)                                            \
            for (int64_t number = from; number < to; number++) {                                   \
                const int64_t sample = of->by_unit ? number : line;                                \
                const int64_t unit = of->by_unit ? line : number;                                  \
                const int64_t place = at(of, of->state_line, sample, unit);                        \
                type *h = (type *)of->h + place, a[4], b[4];                                       \
                for (int64_t k = 0; k < (gru ? 3 : 4); k++)                                        \
                    sums_##name(of, sample, unit, k, &a[k], &b[k]);                                \
                if (gru) {                                                                         \
                    const type r = sigmoid_##name(a[0] + b[0]), z = sigmoid_##name(a[1] + b[1]);   \
                    const type more = ((const type *)of->bias)[3 * of->hidden + unit];             \
                    const type n = tanh_(a[2] + r * (b[2] + more));                                \
                    *h = n + z * (*h - n);                                                         \
                } else {                                                                           \
                    type *c = (type *)of->c + place;                                               \
                    *c = sigmoid_##name(a[1] + b[1]) * *c +                                        \
                         sigmoid_##name(a[0] + b[0]) * tanh_(a[2] + b[2]);                         \
                    *h = sigmoid_##name(a[3] + b[3]) * tanh_(*c);                                  \
                }                                                                                  \
                ((type *)of->y)[sample * of->y_sample + unit] = *h;                                \
            }                                                                                      \
    }                                                                                              \
    static void lstm_##name(const gspi_gates *of, int64_t first, int64_t last, int64_t from,       \
                            int64_t to) {                                                          \
        gates_##name(of, first, last, from, to, false);                                            \
    }                                                                                              \
    static void gru_##name(const gspi_gates *of, int64_t first, int64_t last, int64_t from,        \
                           int64_t to) {                                                           \
        gates_##name(of, first, last, from, to, true);                                             \
    }                                                                                              \
    static void turn_##name(const void *from, int64_t from_line, int64_t rows, int64_t cols,       \
                            void *to, int64_t to_line) {                                           \
        for (int64_t row = 0; row < rows; row++)                                                   \
            for (int64_t col = 0; col < cols; col++)                                               \
                ((type *)to)[col * to_line + row] = ((const type *)from)[row * from_line + col];   \
    }                                                                                              \
    const gspi_cell_kernels gspi_##name##_cells__scalar = {lstm_##name, gru_##name, turn_##name};

CELLS(f64, double, exp, tanh)
CELLS(f32, float, expf, tanhf)
