/* Rows on their way: into words for the next matrix, and through the activation between the two. */
/* Where column k of a row lies in word order. */
INLINE int64_t FN(word_of)(int64_t k) { return k / VECTOR * VECTOR + k % 2 * WORDS + k % VECTOR / 2; }

/* int16: one group of a row to words, step * word = x. What is not finite makes the step a NaN. */
INLINE float FN(round_group)(const float *from, int group, int16_t *to, float *sum) {
    uint32_t largest = 0; /* as bits: order is that of the numbers, and a NaN is above all */
    for (int k = 0; k < group; k++) {
        uint32_t size = to_bits(from[k]) & 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    const int is_finite = largest < 0x7f800000, is_zero = largest < 0x0d000000; /* below 4e-31 */
    const float inverse = is_finite && !is_zero ? 32767.0f / from_bits(largest) : 0;
    int32_t total = 0;
    for (int k = 0; k < group; k++) {
        /* 1.5 * 2^23 leaves the nearest integer in the lowest bits. */
        int32_t word = (int32_t)(to_bits((is_finite ? from[k] : 0) * inverse + 0x1.8p23f) - 0x4b400000u);
        to[k] = (int16_t)word;
        total += word;
    }
    const float step = is_finite ? (is_zero ? 0 : from_bits(largest) / 32767.0f) : from_bits(0x7fc00000);
    *sum = step * (float)total;
    return step;
}

/* s->row becomes row `to` of an operand. */
static void FN(prepare)(const Operand *into, int64_t to, const Matrix *m, int variant, Scratch *s) {
    const int64_t columns = m->num_columns, padded = align_up(columns, 64);
    if (variant == FP32) {
        float *values = into->values + to * into->row_words;
        for (int64_t k = columns; k < padded; k++) s->row[k] = 0;
        for (int64_t k = 0; k < padded; k++) values[FN(word_of)(k)] = s->row[k];
        return;
    }
    float *step = into->step + to * into->row_groups, *sum = into->sum + to * into->row_groups;
    memset(step, 0, (size_t)into->row_groups * 4);
    memset(sum, 0, (size_t)into->row_groups * 4);
    for (int64_t g = 0; g < columns / m->group; g++)
        step[g] = FN(round_group)(s->row + g * m->group, m->group, s->row_words + g * m->group, sum + g);
    memset(s->row_words + columns, 0, (size_t)(padded - columns) * 2);
    int16_t *words = into->words + to * into->row_words;
    for (int64_t k = 0; k < padded; k += VECTOR)
        for (int i = 0; i < WORDS; i++) {
            words[k + i] = s->row_words[k + 2 * i];
            words[k + WORDS + i] = s->row_words[k + 2 * i + 1];
        }
}

/* e^x to about 1e-7, within float's range; a NaN stays one. Cody-Waite reduction, Cephes' polynomial. */
INLINE float FN(exp)(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + 0x1.8p23f, n = shifted - 0x1.8p23f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * from_bits((to_bits(shifted) + 127) << 23);
}

/* erfc(|x|), Abramowitz and Stegun 7.1.26, to 1.5e-7. */
INLINE float FN(erfc)(float x) {
    x = x < 0 ? -x : x;
    const float t = 1.0f / (1.0f + 0.3275911f * x);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    return p * t * FN(exp)(-x * x);
}

INLINE float FN(apply)(const int activation, float x) {
    switch (activation) {
    case SILU: return x / (1.0f + FN(exp)(-x));
    case GELU: return x * 0.5f * (x < 0 ? FN(erfc)(x * 0.70710678f) : 2.0f - FN(erfc)(x * 0.70710678f));
    case GELU_TANH: return x / (1.0f + FN(exp)(-1.59576912f * (x + 0.044715f * x * x * x)));
    case RELU: return x < 0 ? 0 : x;
    default: return x < 0 ? 0 : x * x;
    }
}

INLINE void FN(activate_as)(const int activation, const float *from, const float *up, float *into, int64_t size) {
    if (up)
        for (int64_t i = 0; i < size; i++) into[i] = FN(apply)(activation, from[i]) * up[i];
    else
        for (int64_t i = 0; i < size; i++) into[i] = FN(apply)(activation, from[i]);
}

static void FN(activate)(const Call *call, const float *from, float *into, int64_t size) {
    const float *up = call->has_gate ? from + size : NULL;
    switch (call->activation) {
    case SILU: FN(activate_as)(SILU, from, up, into, size); break;
    case GELU: FN(activate_as)(GELU, from, up, into, size); break;
    case GELU_TANH: FN(activate_as)(GELU_TANH, from, up, into, size); break;
    case RELU: FN(activate_as)(RELU, from, up, into, size); break;
    default: FN(activate_as)(RELU2, from, up, into, size);
    }
}

static uint64_t FN(read)(const uint8_t *from, int64_t size) {
    Ints sums[4] = {FN(no_ints)(), FN(no_ints)(), FN(no_ints)(), FN(no_ints)()};
    for (int64_t i = 0; i + 4 * VECTOR <= size; i += 4 * VECTOR)
        for (int j = 0; j < 4; j++) sums[j] = FN(add)(sums[j], FN(load)(from + i + j * VECTOR));
    uint64_t words[VECTOR / 8];
    FN(store)(words, FN(add)(FN(add)(sums[0], sums[1]), FN(add)(sums[2], sums[3])));
    uint64_t sum = 0;
    for (int i = 0; i < VECTOR / 8; i++) sum += words[i];
    return sum;
}
