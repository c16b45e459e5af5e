/* What is done with the sums of a recurrent cell at one step, for float registers of any instruction set.
 *
 *     LSTM    for every sample, unit:     i, f, g, o = input + product + bias
 *                                         c = sigmoid(f) * c + sigmoid(i) * tanh(g)
 *                                         y = h = sigmoid(o) * tanh(c)
 *     GRU                                 r, z, n = input + bias;  p, q, m = product
 *                                         n = tanh(n + sigmoid(r + p) * (m + bias of m))
 *                                         y = h = n + sigmoid(z + q) * (h - n)
 *
 * A register holds 16 or 8 units of a sample or, of many samples, 16 or 8 samples of a unit, as the products leave
 * them: then h is turned on its way to y. Five (three) activations of some 25 instructions each and a division are what
 * it costs: little beside the products. The functions are those of gsp_activation.h, the same for every lane: no result
 * depends on how the work is shared out. */
#ifndef GSP_GATES_H
#define GSP_GATES_H

#include "gsp_activation.h"
#include "gsp_recurrent.h"

/* Lines of sums by unit come from L2, eight at a time and none beside the one before: asking for them so many units
 * early makes gates of many samples a quarter faster on Zen 5. */
#define AHEAD 4

/* The gates of one register. `gate` numbers lie between two gates of input, or product, or bias. */
typedef struct {
    const float *input, *product, *bias;
    int64_t input_gate, product_gate, bias_gate;
    bool by_unit;
    gspi_v_mask some;
} gspi_sums;

GSPI_VECTOR gspi_v v_bias(const gspi_sums *s, int64_t gate) {
    const float *bias = s->bias + gate * s->bias_gate;
    return s->by_unit ? v_set1(*bias) : v_load_some(bias, s->some);
}

GSPI_VECTOR gspi_v v_input(const gspi_sums *s, int64_t gate) {
    return v_add(v_load_some(s->input + gate * s->input_gate, s->some), v_bias(s, gate));
}

GSPI_VECTOR gspi_v v_product(const gspi_sums *s, int64_t gate) {
    return v_load_some(s->product + gate * s->product_gate, s->some);
}

GSPI_VECTOR gspi_v v_gate(const gspi_sums *s, int64_t gate) {
    return v_add(v_input(s, gate), v_product(s, gate));
}

GSPI_VECTOR gspi_v v_lstm(const gspi_sums *s, float *cell) {
    const gspi_v i = v_sigmoid(v_gate(s, 0)), f = v_sigmoid(v_gate(s, 1));
    const gspi_v g = v_tanh(v_gate(s, 2)), o = v_sigmoid(v_gate(s, 3));
    const gspi_v c = v_fma(f, v_load_some(cell, s->some), v_mul(i, g));
    v_store_some(cell, s->some, c);
    return v_mul(o, v_tanh(c));
}

GSPI_VECTOR gspi_v v_gru(const gspi_sums *s, gspi_v h) {
    const gspi_v r = v_sigmoid(v_gate(s, 0)), z = v_sigmoid(v_gate(s, 1));
    const gspi_v n = v_tanh(v_fma(r, v_add(v_product(s, 2), v_bias(s, 3)), v_input(s, 2)));
    return v_fma(z, v_sub(h, n), n);
}

GSPI_VECTOR void v_turn(const float *from, int64_t from_line, int64_t rows, int64_t cols, float *to,
                        int64_t to_line) {
    for (int64_t row = 0; row < rows; row += V_LANES)
        for (int64_t col = 0; col < cols; col += V_LANES) {
            const gspi_v_mask some = v_mask(cols - col), here = v_mask(rows - row);
            gspi_v square[V_LANES];
            for (int64_t i = 0; i < V_LANES; i++)
                square[i] = row + i < rows ? v_load_some(from + (row + i) * from_line + col, some)
                                           : v_set1(0.0f);
            v_transpose(square);
            for (int64_t i = 0; i < gspi_min(V_LANES, cols - col); i++)
                v_store_some(to + (col + i) * to_line + row, here, square[i]);
        }
}

/* The numbers [from, to) of one line, except for y of a unit. */
GSPI_VECTOR void v_line(const gspi_gates *of, int64_t line, int64_t from, int64_t to, bool gru,
                        bool by_unit) {
    const int64_t hidden = of->hidden;
    for (int64_t at = from; at < to; at += V_LANES) {
        const gspi_sums sums = {
            .input = (const float *)of->input + line * of->input_line + at,
            .product = (const float *)of->product + line * of->product_line + at,
            .bias = (const float *)of->bias + (by_unit ? line : at),
            .input_gate = hidden * (by_unit ? of->input_line : 1),
            .product_gate = hidden * (by_unit ? of->product_line : 1),
            .bias_gate = hidden,
            .by_unit = by_unit,
            .some = v_mask(to - at),
        };
        if (by_unit)
            for (int64_t gate = 0; gate < (gru ? 3 : 4); gate++) {
                __builtin_prefetch(sums.input + gate * sums.input_gate + AHEAD * of->input_line);
                __builtin_prefetch(sums.product + gate * sums.product_gate +
                                   AHEAD * of->product_line);
            }
        const int64_t place = line * of->state_line + at;
        float *state = (float *)of->h + place;
        const gspi_v h = gru ? v_gru(&sums, v_load_some(state, sums.some))
                             : v_lstm(&sums, (float *)of->c + place);
        v_store_some(state, sums.some, h);
        if (!by_unit) v_store_some((float *)of->y + line * of->y_sample + at, sums.some, h);
    }
}

GSPI_VECTOR void v_gates(const gspi_gates *of, int64_t first, int64_t last, int64_t from,
                         int64_t to, bool gru) {
    if (!of->by_unit) {
        for (int64_t sample = first; sample < last; sample++)
            v_line(of, sample, from, to, gru, false);
        return;
    }
    for (int64_t unit = first; unit < last; unit += V_LANES) {
        const int64_t count = gspi_min(V_LANES, last - unit);
        for (int64_t i = 0; i < count; i++) v_line(of, unit + i, from, to, gru, true);
        v_turn((const float *)of->h + unit * of->state_line, of->state_line, count, to,
               (float *)of->y + unit, of->y_sample);
    }
}

#endif
