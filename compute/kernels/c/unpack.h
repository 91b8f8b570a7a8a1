/* From the bytes of a blob to the codes, scales and weights of a tile. */
/* The bytes of VECTOR columns of a stripe: one register of every plane that it has. */
typedef struct {
    Ints upper[2], low;
} FN(Bytes);

/* Where the bytes of a stripe begin; 3 bits: row j has its upper two bits in upper[j % 2]. */
typedef struct {
    const uint8_t *upper[2], *low;
} FN(Stripe);

INLINE FN(Stripe) FN(stripe_at)(const Matrix *m, const uint8_t *blob, int64_t stripe, int64_t k) {
    const int64_t at = stripe * m->num_columns + k;
    const uint8_t *upper = blob + m->plane + at;
    return (FN(Stripe)){{upper, upper + (int64_t)(m->num_rows / 8) * m->num_columns}, blob + m->low_plane + at};
}

/* May read up to VECTOR bytes more than there are: scales and zeros follow a blob's planes. */
INLINE FN(Bytes) FN(bytes_at)(const int bits, FN(Stripe) stripe, int k) {
    FN(Bytes) bytes = {{FN(load)(stripe.upper[0] + k)}, FN(no_ints)()};
    if (bits == 3) {
        bytes.upper[1] = FN(load)(stripe.upper[1] + k);
        bytes.low = FN(load)(stripe.low + k);
    }
    return bytes;
}

/* The codes of the stripe's row j: those of even columns, or of odd ones. */
INLINE Ints FN(codes)(const int bits, const FN(Bytes) *bytes, const int j, const int is_odd) {
    if (bits != 3) {
        const unsigned by = (unsigned)(8 - bits * (j + 1) + 8 * is_odd);
        return FN(mask)(FN(shift)(bytes->upper[0], by), (1 << bits) - 1);
    }
    const Ints upper = bytes->upper[j % 2];
    const int down = 5 - j / 2 * 2 + 8 * is_odd; /* to bits 1 and 2 */
    const Ints twice = down < 0 ? FN(add)(upper, upper) : FN(shift)(upper, (unsigned)down);
    const Ints once = FN(shift)(bytes->low, (unsigned)(7 - j + 8 * is_odd));
    return FN(either)(FN(mask)(twice, 6), FN(mask)(once, 1));
}

INLINE void FN(unpack)(const int bits, FN(Stripe) stripe, int size, int16_t (*to)[TILE_STRIDE]) {
    const int rows = bits == 3 ? 8 : 8 / bits;
    for (int k = 0; k < size; k += VECTOR) {
        const FN(Bytes) bytes = FN(bytes_at)(bits, stripe, k);
#pragma GCC unroll 8
        for (int j = 0; j < rows; j++) {
            FN(store)(to[j] + k, FN(codes)(bits, &bytes, j, 0));
            FN(store)(to[j] + k + WORDS, FN(codes)(bits, &bytes, j, 1));
        }
    }
}

/* Columns [k, k + size) of a tile's stripes. */
static void FN(unpack_tile)(const Matrix *m, const uint8_t *blob, int stripe_rows, int64_t k, int size,
                            Scratch *s) {
    for (int q = 0; q < s->num_rows; q += stripe_rows) {
        const FN(Stripe) stripe = FN(stripe_at)(m, blob, s->rows[q], k);
        int16_t(*to)[TILE_STRIDE] = s->words + q;
        switch (m->bits) {
        case 8: FN(unpack)(8, stripe, size, to); break;
        case 4: FN(unpack)(4, stripe, size, to); break;
        case 3: FN(unpack)(3, stripe, size, to); break;
        default: FN(unpack)(2, stripe, size, to);
        }
    }
}

/* A tile's rows: those of one stripe after those of the other. */
INLINE void FN(begin_tile)(const Shape *shape, int tile, Scratch *s) {
    const int first = tile * shape->tile_stripes;
    const int end = (int)min64(first + shape->tile_stripes, shape->num_stripes);
    s->num_rows = 0;
    for (int stripe = first; stripe < end; stripe++)
        for (int j = 0; j < shape->stripe_rows; j++) s->rows[s->num_rows++] = stripe + j * shape->num_stripes;
}

/* `count` float16 numbers as floats, followed by zeros up to a whole register. */
INLINE void FN(widen)(const uint8_t *from, int count, float *to) {
    const uint16_t *halves = (const uint16_t *)from;
    int i = 0;
    for (; i + LANES <= count; i += LANES) FN(put)(to + i, FN(halves)(halves + i));
    if (i < count) FN(put)(to + i, FN(some_halves)(halves + i, count - i));
}

/* Scale, zero and their product of the tile's groups [group, group + count). */
static void FN(unpack_groups)(const Matrix *m, const uint8_t *blob, int64_t num_groups, int64_t group, int count,
                              Scratch *s) {
    for (int q = 0; q < s->num_rows; q++) {
        const int64_t at = 2 * (s->rows[q] * num_groups + group);
        FN(widen)(blob + m->scale + at, count, s->scale[q]);
        FN(widen)(blob + m->zero + at, count, s->zero[q]);
        __builtin_prefetch(blob + m->scale + at + GROUP_PREFETCH);
        __builtin_prefetch(blob + m->zero + at + GROUP_PREFETCH);
        for (int g = 0; g < count; g += LANES)
            FN(put)(s->shift[q] + g, FN(times)(FN(get)(s->scale[q] + g), FN(get)(s->zero[q] + g)));
    }
}

/* fp32: the tile's weights, (code - zero) * scale as the reference rounds them. */
static void FN(dequantize)(const Matrix *m, int size, Scratch *s) {
    const int group = m->group;
    Ints low = FN(groups_of)(0, 2, group), high = FN(groups_of)(2 * LANES, 2, group);
    for (int q = 0; q < s->num_rows; q++)
        for (int k = 0; k < size; k += VECTOR) {
            const float *zero = s->zero[q] + k / group, *scale = s->scale[q] + k / group;
            Floats zeros[2], scales[2];
            zeros[0] = group < VECTOR ? FN(pick)(zero, low) : FN(all)(*zero);
            zeros[1] = group < VECTOR ? FN(pick)(zero, high) : zeros[0];
            scales[0] = group < VECTOR ? FN(pick)(scale, low) : FN(all)(*scale);
            scales[1] = group < VECTOR ? FN(pick)(scale, high) : scales[0];
            for (int odd = 0; odd < 2; odd++) {
                Ints codes = FN(load)(s->words[q] + k + odd * WORDS);
                float *to = s->tile[q] + k + odd * WORDS;
                FN(put)(to, FN(times)(FN(minus)(FN(low_words)(codes), zeros[0]), scales[0]));
                FN(put)(to + LANES, FN(times)(FN(minus)(FN(high_words)(codes), zeros[1]), scales[1]));
            }
        }
}
