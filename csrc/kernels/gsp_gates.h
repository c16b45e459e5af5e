/* What is done with the sums of a recurrent cell at one step, for float registers of any instruction set.
 *
 *     LSTM    for every sample, unit:     i, f, g, o = input + product + bias
 *                                         c = sigmoid(f) * c + sigmoid(i) * tanh(g)
 *                                         y = h = sigmoid(o) * tanh(c)
 *     GRU                                 r, z, n = input + bias;  p, q, m = product
 *                                         n = tanh(n + sigmoid(r + p) * (m + bias of m))
 *                                         y = h = n + sigmoid(z + q) * (h - n)
 *
 * All units of a gate lie together, so that 16 or 8 of them are one register. Five (three) activations of some 20
 * instructions each and a division are what it costs: little beside the products. The functions are those of
 * gsp_activation.h, the same for every lane: no result depends on how units are shared out. */
#ifndef GSP_GATES_H
#define GSP_GATES_H

#include "gsp_activation.h"
#include "gsp_recurrent.h"

/* The gates of one register of units. */
typedef struct {
    const float *input, *product, *bias;
    float *h, *c, *y;
    int64_t hidden;
    gspi_v_mask some;
} gspi_units;

GSPI_VECTOR gspi_v v_sum(const gspi_units *u, int64_t gate) {
    const int64_t at = gate * u->hidden;
    return v_add(v_load_some(u->input + at, u->some), v_load_some(u->bias + at, u->some));
}

GSPI_VECTOR gspi_v v_product(const gspi_units *u, int64_t gate) {
    return v_load_some(u->product + gate * u->hidden, u->some);
}

GSPI_VECTOR gspi_v v_gate(const gspi_units *u, int64_t gate) {
    return v_add(v_sum(u, gate), v_product(u, gate));
}

GSPI_VECTOR gspi_v v_lstm(const gspi_units *u) {
    const gspi_v i = v_sigmoid(v_gate(u, 0)), f = v_sigmoid(v_gate(u, 1));
    const gspi_v g = v_tanh(v_gate(u, 2)), o = v_sigmoid(v_gate(u, 3));
    const gspi_v c = v_fma(f, v_load_some(u->c, u->some), v_mul(i, g));
    v_store_some(u->c, u->some, c);
    return v_mul(o, v_tanh(c));
}

GSPI_VECTOR gspi_v v_gru(const gspi_units *u) {
    const gspi_v r = v_sigmoid(v_gate(u, 0)), z = v_sigmoid(v_gate(u, 1));
    const gspi_v more = v_add(v_product(u, 2), v_load_some(u->bias + 3 * u->hidden, u->some));
    const gspi_v n = v_tanh(v_fma(r, more, v_sum(u, 2)));
    return v_fma(z, v_sub(v_load_some(u->h, u->some), n), n);
}

/* Samples [first, last). */
GSPI_VECTOR void v_gates(const gspi_gates *of, int64_t first, int64_t last, bool gru) {
    const int64_t hidden = of->hidden, width = (gru ? 3 : 4) * hidden;
    for (int64_t sample = first; sample < last; sample++)
        for (int64_t unit = 0; unit < hidden; unit += V_LANES) {
            const gspi_units u = {
                .input = (const float *)of->input + sample * width + unit,
                .product = (const float *)of->product + sample * width + unit,
                .bias = (const float *)of->bias + unit,
                .h = (float *)of->h + sample * hidden + unit,
                .c = gru ? NULL : (float *)of->c + sample * hidden + unit,
                .y = (float *)of->y + sample * of->y_sample + unit,
                .hidden = hidden,
                .some = v_mask(hidden - unit),
            };
            const gspi_v h = gru ? v_gru(&u) : v_lstm(&u);
            v_store_some(u.h, u.some, h);
            v_store_some(u.y, u.some, h);
        }
}

#endif
