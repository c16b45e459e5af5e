/* Packing: the elements of a group, split into bundles.
 *
 * Every row of a group holds n * k elements. Cut each row into k parts of n: then there are as many parts
 * as banks (a short group is filled up with virtual elements), every part and every bank has n elements,
 * and a bundle is a perfect matching of parts and banks. A regular bipartite graph of degree n splits into
 * n of them (Koenig), here by halving:
 *
 *     colour(edges, n):  if n is odd, take one perfect matching out
 *                        split the rest into two graphs of half the degree, and colour each
 *
 * Halving is an Euler partition: pair the edges at every node; pairs of parts and pairs of banks then form
 * even cycles, whose edges go to the two halves in turn. It is linear, so all levels take O(E log n).
 * A matching is found by random walks with an expected O(B log B) steps, whatever the degree: A. Goel,
 * M. Kapralov, S. Khanna, "Perfect matchings in O(n log n) time in regular bipartite graphs" (2010).
 * The random numbers start anew in every group, so the result depends on the group's mask alone.
 *
 * An edge is stored as its column; its part is its place in the array: part p of a graph of degree n owns
 * edges [p * n, (p + 1) * n). */
#include "gsp_format.h"

#define NONE UINT32_MAX

struct gspi_packer {
    int64_t banks, per_row, cols;
    const uint16_t *bank; /* of a column; virtual column cols + b is in bank b */
    uint32_t *edges, *spare;
    uint32_t *partner;  /* the other edge of a pair at a bank */
    uint8_t *side; /* of a pair of edges at a part: 1 or 2, which of them is in the first half */
    uint32_t *bundles; /* the result: [bundles, banks] */
    uint32_t *sorted; /* the same, bundles in order */
    uint32_t *by_bank; /* banks: a bundle's column of every bank; the open edge of every bank */
    uint32_t *part_of; /* banks: the part that is matched to it */
    uint32_t *matched; /* parts: which of its edges is matched */
    uint32_t *taken; /* parts: the edge by which a walk left it last */
    uint32_t *waiting; /* parts without an edge yet */
    uint32_t *first; /* cols: the bundle that has this column in slot 0, plus 1 */
    int64_t found; /* bundles so far */
    uint64_t random;
};

gspi_packer *gspi_packer_create(gsp_context *context, const gsp_pattern *pattern, int64_t cols,
                                const gspi_banks *banks, int64_t bundles) {
    const size_t count = pattern->banks;
    size_t edges;
    if (!gspi_mul((size_t)bundles, count, &edges) || edges >= NONE) return NULL;
    gspi_packer *packer = gspi_calloc(context, 1, sizeof *packer);
    if (packer == NULL) return NULL;
    packer->banks = pattern->banks;
    packer->per_row = pattern->per_row;
    packer->cols = cols;
    packer->bank = banks->bank;
    const struct {
        uint32_t **array;
        size_t count;
    } arrays[] = {
        {&packer->edges, edges + (size_t)cols}, /* listing a row's columns may run that far ahead */
        {&packer->spare, edges},
        {&packer->partner, edges},
        {&packer->bundles, edges},
        {&packer->sorted, edges},
        {&packer->by_bank, count},
        {&packer->part_of, count},
        {&packer->matched, count},
        {&packer->taken, count},
        {&packer->waiting, count},
        {&packer->first, (size_t)cols},
    };
    bool have = (packer->side = gspi_alloc(context, edges / 2, 1)) != NULL;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        have &=
            (*arrays[i].array = gspi_calloc(context, arrays[i].count, sizeof(uint32_t))) != NULL;
    if (have) return packer;
    gspi_packer_destroy(context, packer);
    return NULL;
}

void gspi_packer_destroy(gsp_context *context, gspi_packer *packer) {
    if (packer == NULL) return;
    gspi_free(context, packer->edges);
    gspi_free(context, packer->spare);
    gspi_free(context, packer->partner);
    gspi_free(context, packer->side);
    gspi_free(context, packer->bundles);
    gspi_free(context, packer->sorted);
    gspi_free(context, packer->by_bank);
    gspi_free(context, packer->part_of);
    gspi_free(context, packer->matched);
    gspi_free(context, packer->taken);
    gspi_free(context, packer->waiting);
    gspi_free(context, packer->first);
    gspi_free(context, packer);
}

/* A number below `limit`, by xorshift. */
static uint32_t random_below(gspi_packer *packer, uint32_t limit) {
    uint64_t x = packer->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    packer->random = x;
    return (uint32_t)(((x >> 32) * limit) >> 32);
}

/* Gives `part` an edge. The walk leaves a part by any of its edges but the matched one; a bank that is
 * taken leads on to the part that holds it. Every exit is noted over the last one, so what stands in
 * `taken` at the end is the walk without its loops: an augmenting path. */
static void match_part(gspi_packer *packer, const uint32_t *edges, uint32_t degree, uint32_t part) {
    const uint16_t *bank = packer->bank;
    uint32_t *part_of = packer->part_of, *matched = packer->matched, *taken = packer->taken;
    for (uint32_t at = part; at != NONE;) {
        uint32_t edge;
        if (matched[at] == NONE) {
            edge = random_below(packer, degree);
        } else {
            edge = random_below(packer, degree - 1);
            edge += edge >= matched[at];
        }
        taken[at] = edge;
        at = part_of[bank[edges[(size_t)at * degree + edge]]];
    }
    for (uint32_t at = part; at != NONE;) {
        const uint32_t edge = taken[at], b = bank[edges[(size_t)at * degree + edge]];
        const uint32_t before = part_of[b];
        part_of[b] = at;
        matched[at] = edge;
        at = before;
    }
}

/* Moves a perfect matching from the edges to the bundles. */
static void take_matching(gspi_packer *packer, uint32_t *edges, uint32_t degree) {
    const uint32_t parts = (uint32_t)packer->banks;
    uint32_t *bundle = packer->bundles + packer->found++ * packer->banks;
    if (degree == 1) {
        memcpy(bundle, edges, parts * sizeof *bundle);
        return;
    }
    memset(packer->part_of, 0xff, parts * sizeof *packer->part_of);
    memset(packer->matched, 0xff, parts * sizeof *packer->matched);
    uint32_t waiting = 0;
    for (uint32_t part = 0; part < parts; part++) { /* most parts find a free bank at once */
        const uint32_t *own = edges + (size_t)part * degree;
        uint32_t edge = 0;
        while (edge < degree && packer->part_of[packer->bank[own[edge]]] != NONE) edge++;
        if (edge == degree) {
            packer->waiting[waiting++] = part;
        } else {
            packer->part_of[packer->bank[own[edge]]] = part;
            packer->matched[part] = edge;
        }
    }
    while (waiting > 0) { /* in random order, as the bound on the steps asks */
        const uint32_t which = random_below(packer, waiting);
        match_part(packer, edges, degree, packer->waiting[which]);
        packer->waiting[which] = packer->waiting[--waiting];
    }
    uint32_t *kept = edges;
    for (uint32_t part = 0; part < parts; part++) {
        const uint32_t *own = edges + (size_t)part * degree;
        bundle[part] = own[packer->matched[part]];
        for (uint32_t edge = 0; edge < degree; edge++)
            if (edge != packer->matched[part]) *kept++ = own[edge];
    }
}

/* Splits edges of even degree into two halves of half the degree, one after the other in `halves`. */
static void split(gspi_packer *packer, const uint32_t *edges, uint32_t degree, uint32_t *halves) {
    const uint32_t count = (uint32_t)packer->banks * degree;
    uint32_t *open = packer->by_bank, *partner = packer->partner;
    uint8_t *side = packer->side;
    memset(open, 0xff, (size_t)packer->banks * sizeof *open);
    for (uint32_t edge = 0; edge < count; edge++) {
        const uint32_t b = packer->bank[edges[edge]], other = open[b];
        if (other == NONE) {
            open[b] = edge;
        } else {
            partner[edge] = other;
            partner[other] = edge;
            open[b] = NONE;
        }
    }
    memset(side, 0, count / 2);
    for (uint32_t pair = 0; pair < count / 2; pair++)
        for (uint32_t edge = 2 * pair; side[edge / 2] == 0; edge = partner[edge ^ 1])
            side[edge / 2] = (uint8_t)(1 + edge % 2);
    for (uint32_t pair = 0; pair < count / 2; pair++) {
        const uint32_t odd = side[pair] == 2;
        halves[pair] = edges[2 * pair + odd];
        halves[count / 2 + pair] = edges[2 * pair + 1 - odd];
    }
}

/* Turns edges of any degree into bundles. Both arrays have room for all the edges and are used up. */
static void colour(gspi_packer *packer, uint32_t *edges, uint32_t *spare, uint32_t degree) {
    if (degree % 2 == 1) {
        take_matching(packer, edges, degree);
        degree--;
    }
    if (degree == 0) return;
    const size_t half = (size_t)packer->banks * (degree / 2);
    split(packer, edges, degree, spare);
    colour(packer, spare, edges, degree / 2);
    colour(packer, spare + half, edges + half, degree / 2);
}

/* Lists the group's elements part by part, and fills a short group up to full banks. */
static gsp_status list_edges(gspi_packer *packer, const uint8_t *const *masks, int64_t rows,
                             int64_t bundles) {
    const int64_t banks = packer->banks, row_edges = bundles * packer->per_row;
    uint32_t *edges = packer->edges, *held = packer->by_bank;
    memset(held, 0, (size_t)banks * sizeof *held);
    for (int64_t r = 0; r < rows; r++) {
        uint32_t *own = edges + r * row_edges;
        GSP_CHECK(gspi_list_columns(masks[r], packer->cols, own) == row_edges, GSP_ERROR_MASK);
        for (int64_t i = 0; i < row_edges; i++) held[packer->bank[own[i]]]++;
    }
    uint32_t *next = edges + rows * row_edges;
    for (int64_t b = 0; b < banks; b++) {
        GSP_CHECK(held[b] <= bundles, GSP_ERROR_MASK);
        for (int64_t i = held[b]; i < bundles; i++) *next++ = (uint32_t)(packer->cols + b);
    }
    return GSP_OK;
}

/* Puts the columns of every row into the order of their banks. `bundle` holds them by part. */
static void sort_slots(gspi_packer *packer, uint32_t *bundle) {
    const uint32_t banks = (uint32_t)packer->banks, per_row = (uint32_t)packer->per_row;
    uint32_t *column = packer->by_bank, *row = packer->part_of, *fill = packer->matched;
    for (uint32_t slot = 0, r = 0; slot < banks; r++) {
        fill[r] = slot;
        for (uint32_t i = 0; i < per_row; i++, slot++) {
            const uint32_t b = packer->bank[bundle[slot]];
            column[b] = bundle[slot];
            row[b] = r;
        }
    }
    for (uint32_t b = 0; b < banks; b++) bundle[fill[row[b]]++] = column[b];
}

gsp_status gspi_pack(gspi_packer *packer, const uint8_t *const *masks, int64_t rows,
                     int64_t bundles, const uint32_t **columns) {
    const int64_t banks = packer->banks;
    *columns = packer->sorted;
    GSP_TRY(list_edges(packer, masks, rows, bundles));
    packer->found = 0;
    packer->random = 0x9e3779b97f4a7c15u;
    colour(packer, packer->edges, packer->spare, (uint32_t)bundles);

    /* Slot 0 is an element of the group's first row, so no two bundles have the same column there. */
    for (int64_t i = 0; i < bundles; i++) {
        if (packer->per_row > 1) sort_slots(packer, packer->bundles + i * banks);
        packer->first[packer->bundles[i * banks]] = (uint32_t)(i + 1);
    }
    uint32_t *sorted = packer->sorted;
    for (int64_t col = 0; col < packer->cols; col++) {
        if (packer->first[col] == 0) continue;
        const uint32_t *bundle = packer->bundles + (int64_t)(packer->first[col] - 1) * banks;
        memcpy(sorted, bundle, (size_t)banks * sizeof *sorted);
        sorted += banks;
        packer->first[col] = 0;
    }
    return GSP_OK;
}
