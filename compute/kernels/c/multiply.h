/* A tile times rows of x: stripe by stripe for few rows, unpacked once for many. */
/* What belongs to rows of x from a block's first column and group on. */
typedef struct {
    const int16_t *words[MAX_COLUMNS];
    const float *values[MAX_COLUMNS], *step[MAX_COLUMNS], *sum[MAX_COLUMNS];
} FN(Columns);

/* int16: what a sum begins with, its groups' - scale * zero * (sum of x), and its groups' factors. */
INLINE Floats FN(begin)(const Scratch *s, int q, const FN(Columns) *x, int c, int count, float *factor) {
    Floats total = FN(all)(0);
    for (int g = 0; g < count; g += LANES) {
        total = FN(fnma)(FN(get)(s->shift[q] + g), FN(get)(x->sum[c] + g), total);
        FN(put)(factor + g, FN(times)(FN(get)(s->scale[q] + g), FN(get)(x->step[c] + g)));
    }
    return total;
}

/* The factors of the g-th stride's lanes. A group is `vectors` registers of columns; 0: several groups in one. */
INLINE Floats FN(factors)(const float *factor, const int vectors, int g, int group, Ints lanes) {
    return vectors ? FN(all)(factor[g]) : FN(pick)(factor + g * VECTOR / group, lanes);
}

/* int16: `rows` rows of the tile times `columns` rows of x, added to sums. */
INLINE void FN(multiply_int16)(const int rows, const int columns, const int vectors, const Matrix *m, int q, int count,
                               int size, const FN(Columns) *x, Scratch *s, float (*sums)[TILE_ROWS]) {
    Floats totals[TILE_ROWS][MAX_COLUMNS];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) totals[r][c] = FN(begin)(s, q + r, x, c, count, s->factor[r * columns + c]);
    const Ints lanes = FN(groups_of)(0, 4, m->group);
    const int stride = vectors ? vectors * VECTOR : VECTOR;
    for (int k = 0, g = 0; k < size; k += stride, g++)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) {
                Ints products = FN(no_ints)();
                for (int i = k; i < k + stride; i += WORDS)
                    products = FN(dot)(products, FN(load)(s->words[q + r] + i), FN(load)(x->words[c] + i));
                const Floats factors = FN(factors)(s->factor[r * columns + c], vectors, g, m->group, lanes);
                totals[r][c] = FN(fma)(FN(floats)(products), factors, totals[r][c]);
            }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sums[c][q + r] += FN(total)(totals[r][c]);
}

/* int16: one stripe, rows q on of the tile, times one row of x without a stop in memory: the same
 * operations on every output as `multiply_int16`. */
INLINE void FN(multiply_stripe)(const int bits, const int vectors, const Matrix *m, FN(Stripe) stripe, int q, int count,
                                int size, const FN(Columns) *x, Scratch *s, float *sums) {
    const int rows = bits == 3 ? 8 : 8 / bits;
    Floats totals[TILE_ROWS];
    for (int j = 0; j < rows; j++) totals[j] = FN(begin)(s, q + j, x, 0, count, s->factor[j]);
    const Ints lanes = FN(groups_of)(0, 4, m->group);
    const int stride = vectors ? vectors * VECTOR : VECTOR;
    for (int k = 0, g = 0; k < size; k += stride, g++) {
        Ints products[TILE_ROWS];
        for (int j = 0; j < rows; j++) products[j] = FN(no_ints)();
        for (int i = k; i < k + stride; i += VECTOR) {
            const FN(Bytes) bytes = FN(bytes_at)(bits, stripe, i);
            const Ints even = FN(load)(x->words[0] + i), odd = FN(load)(x->words[0] + i + WORDS);
            __builtin_prefetch(stripe.upper[0] + i + PREFETCH);
            if (bits == 3) {
                __builtin_prefetch(stripe.upper[1] + i + PREFETCH);
                __builtin_prefetch(stripe.low + i + PREFETCH);
            }
#pragma GCC unroll 8
            for (int j = 0; j < rows; j++) {
                products[j] = FN(dot)(products[j], FN(codes)(bits, &bytes, j, 0), even);
                products[j] = FN(dot)(products[j], FN(codes)(bits, &bytes, j, 1), odd);
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < rows; j++) {
            const Floats factors = FN(factors)(s->factor[j], vectors, g, m->group, lanes);
            totals[j] = FN(fma)(FN(floats)(products[j]), factors, totals[j]);
        }
    }
    for (int j = 0; j < rows; j++) sums[q + j] += FN(total)(totals[j]);
}

INLINE void FN(multiply_fp32)(const int rows, const int columns, int q, int size, const FN(Columns) *x, Scratch *s,
                              float (*sums)[TILE_ROWS]) {
    Floats totals[TILE_ROWS][MAX_COLUMNS];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) totals[r][c] = FN(all)(0);
    const int padded = (int)align_up(size, VECTOR); /* a register's last columns are not its last words */
    for (int k = 0; k < padded; k += LANES)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++)
                totals[r][c] = FN(fma)(FN(get)(s->tile[q + r] + k), FN(get)(x->values[c] + k), totals[r][c]);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sums[c][q + r] += FN(total)(totals[r][c]);
}

/* `call(vectors)` with a group's width in registers known to the compiler where it matters. */
#define WITH_WIDTH(group, call)                                                                                        \
    switch ((group) / VECTOR) {                                                                                        \
    case 0: call(0); break;                                                                                            \
    case 1: call(1); break;                                                                                            \
    case 2: call(2); break;                                                                                            \
    case 4: call(4); break;                                                                                            \
    default: call((group) / VECTOR);                                                                                   \
    }

/* `rows` rows of the tile from q on. */
INLINE void FN(multiply_rows)(const int rows, const int columns, const Matrix *m, int variant, int q, int count,
                              int size, const FN(Columns) *x, Scratch *s, float (*sums)[TILE_ROWS]) {
    if (variant == FP32) {
        FN(multiply_fp32)(rows, columns, q, size, x, s, sums);
        return;
    }
#define CALL(vectors) FN(multiply_int16)(rows, columns, vectors, m, q, count, size, x, s, sums)
    WITH_WIDTH(m->group, CALL)
#undef CALL
}

INLINE void FN(multiply_bits)(const int bits, const Matrix *m, FN(Stripe) stripe, int q, int count, int size,
                              const FN(Columns) *x, Scratch *s, float *sums) {
#define CALL(vectors) FN(multiply_stripe)(bits, vectors, m, stripe, q, count, size, x, s, sums)
    WITH_WIDTH(m->group, CALL)
#undef CALL
}

/* int16: columns [k, k + size) of a tile's stripes times one row of x. */
static void FN(multiply_stripes)(const Matrix *m, const uint8_t *blob, int stripe_rows, int64_t k, int count, int size,
                                 const FN(Columns) *x, Scratch *s, float *sums) {
    for (int q = 0; q < s->num_rows; q += stripe_rows) {
        const FN(Stripe) stripe = FN(stripe_at)(m, blob, s->rows[q], k);
        switch (m->bits) {
        case 8: FN(multiply_bits)(8, m, stripe, q, count, size, x, s, sums); break;
        case 4: FN(multiply_bits)(4, m, stripe, q, count, size, x, s, sums); break;
        case 3: FN(multiply_bits)(3, m, stripe, q, count, size, x, s, sums); break;
        default: FN(multiply_bits)(2, m, stripe, q, count, size, x, s, sums);
        }
    }
}

static void FN(multiply_many)(const Matrix *m, int variant, int count, int size, const FN(Columns) *x, Scratch *s,
                              float (*sums)[TILE_ROWS]) {
    for (int q = 0; q < TILE_ROWS; q += ROWS)
        FN(multiply_rows)(ROWS, COLUMNS, m, variant, q, count, size, x, s, sums);
}

static void FN(multiply_one)(const Matrix *m, int variant, int count, int size, const FN(Columns) *x, Scratch *s,
                             float (*sums)[TILE_ROWS]) {
    FN(multiply_rows)(TILE_ROWS, 1, m, variant, 0, count, size, x, s, sums);
}

INLINE FN(Columns) FN(columns_of)(const Operand *x, const int64_t *source, int64_t count, int64_t k, int64_t group) {
    FN(Columns) columns;
    for (int64_t c = 0; c < count; c++) {
        int64_t at = source[c] * x->row_words + k, group_at = source[c] * x->row_groups + group;
        columns.words[c] = x->words + at;
        columns.values[c] = x->values + at;
        columns.step[c] = x->step + group_at;
        columns.sum[c] = x->sum + group_at;
    }
    return columns;
}

/* One block of columns of one tile, for all rows of the chunk; added to s->sums. */
INLINE void FN(multiply_block)(const Product *p, const uint8_t *blob, int64_t k, int64_t num_x, Scratch *s) {
    const Matrix *m = p->matrix;
    const int size = (int)min64(BLOCK, m->num_columns - k), count = size / m->group;
    const int variant = p->call->variant, stripe_rows = p->shape.stripe_rows;
    const int64_t group = k / m->group;
    int64_t i = 0;
    FN(unpack_groups)(m, blob, p->shape.num_groups, group, count, s);
    if (variant == INT16 && num_x <= FEW_ROWS) {
        for (; i < num_x; i++) {
            const FN(Columns) x = FN(columns_of)(p->x, s->source + i, 1, k, group);
            FN(multiply_stripes)(m, blob, stripe_rows, k, count, size, &x, s, s->sums[i]);
        }
        return;
    }
    FN(unpack_tile)(m, blob, stripe_rows, k, size, s);
    if (variant == FP32) FN(dequantize)(m, size, s);
    for (; i + COLUMNS <= num_x; i += COLUMNS) {
        const FN(Columns) x = FN(columns_of)(p->x, s->source + i, COLUMNS, k, group);
        FN(multiply_many)(m, variant, count, size, &x, s, s->sums + i);
    }
    for (; i < num_x; i++) {
        const FN(Columns) x = FN(columns_of)(p->x, s->source + i, 1, k, group);
        FN(multiply_one)(m, variant, count, size, &x, s, s->sums + i);
    }
}

INLINE void FN(write)(const Call *call, int64_t place, int64_t at, float value) {
    if (call->x_type == BFLOAT16) value = from_bfloat16(to_bfloat16(value));
    if (call->weights) value *= element(call->weights, place, call->weights_type);
    if (call->out_type == BFLOAT16)
        ((uint16_t *)call->out)[at] = to_bfloat16(value);
    else
        ((float *)call->out)[at] = value;
}

/* The sums of one tile, with the bias, to where they belong. */
INLINE void FN(write_tile)(const Product *p, const Chunk *chunk, const uint8_t *blob, const Scratch *s) {
    const Matrix *m = p->matrix;
    const int64_t before = p->call->first[p->first_expert];
    for (int q = 0; q < s->num_rows; q++) {
        const int n = s->rows[q];
        const float bias = m->bias < 0 ? 0 : element(blob + m->bias, n, m->bias_type);
        for (int64_t i = 0; i < chunk->end_row - chunk->row; i++) {
            const float value = s->sums[i][q] + bias;
            if (p->writes_places)
                FN(write)(p->call, s->place[i], s->place[i] * m->num_rows + n, value);
            else
                p->inner[(chunk->row + i - before) * m->num_rows + n] = value;
        }
    }
}

static void FN(multiply)(const Product *p, const Chunk *chunk, Scratch *s) {
    const uint8_t *blob = p->call->blobs[chunk->expert];
    const int64_t num_x = chunk->end_row - chunk->row, before = p->call->first[p->first_expert];
    for (int64_t i = 0; i < num_x; i++) {
        s->place[i] = place_of(p->call, chunk->row + i);
        s->source[i] = p->reads_places ? s->place[i] / p->call->top_k : chunk->row + i - before;
    }
    for (int tile = chunk->tile; tile < chunk->end_tile; tile++) {
        FN(begin_tile)(&p->shape, tile, s);
        memset(s->sums, 0, (size_t)num_x * sizeof s->sums[0]);
        for (int64_t k = 0; k < p->matrix->num_columns; k += BLOCK) FN(multiply_block)(p, blob, k, num_x, s);
        FN(write_tile)(p, chunk, blob, s);
    }
}

#undef WITH_WIDTH
