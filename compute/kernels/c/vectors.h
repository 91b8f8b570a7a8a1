/* A register of VECTOR bytes, and what can be done with it: all that instruction sets differ in. */
#define LANES (VECTOR / 4) /* floats, or 32-bit sums, of a register */
#define WORDS (VECTOR / 2)
#define Ints FN(Ints)
#define Floats FN(Floats)

#if VECTOR >= 32 /* AVX2 and AVX-512 differ in little but their names */
#if VECTOR == 64
#define BITS 512
#define COLUMNS 4 /* rows of x at once, and */
#else
#define BITS 256
#define COLUMNS 2
#endif
#define ROWS 4 /* rows of the tile: as many sums as there are registers for */
typedef REGISTER(BITS, i) Ints;
typedef REGISTER(BITS, ) Floats;
INLINE Ints FN(load)(const void *from) { return WHOLE(BITS, loadu)(from); }
INLINE void FN(store)(void *to, Ints a) { WHOLE(BITS, storeu)(to, a); }
INLINE Ints FN(shift)(Ints a, unsigned by) { return OP(BITS, srli_epi16)(a, by); }
INLINE Ints FN(mask)(Ints a, int bits) { return WHOLE(BITS, and)(a, OP(BITS, set1_epi16)((short)bits)); }
INLINE Ints FN(either)(Ints a, Ints b) { return WHOLE(BITS, or)(a, b); }
INLINE Ints FN(no_ints)(void) { return WHOLE(BITS, setzero)(); }
INLINE Ints FN(add)(Ints a, Ints b) { return OP(BITS, add_epi32)(a, b); }
INLINE Floats FN(floats)(Ints a) { return OP(BITS, cvtepi32_ps)(a); }
INLINE Floats FN(all)(float a) { return OP(BITS, set1_ps)(a); }
INLINE Floats FN(get)(const float *from) { return OP(BITS, loadu_ps)(from); }
INLINE void FN(put)(float *to, Floats a) { OP(BITS, storeu_ps)(to, a); }
INLINE Floats FN(times)(Floats a, Floats b) { return OP(BITS, mul_ps)(a, b); }
INLINE Floats FN(minus)(Floats a, Floats b) { return OP(BITS, sub_ps)(a, b); }
INLINE Floats FN(fma)(Floats a, Floats b, Floats c) { return OP(BITS, fmadd_ps)(a, b, c); }
INLINE Floats FN(fnma)(Floats a, Floats b, Floats c) { return OP(BITS, fnmadd_ps)(a, b, c); }
INLINE float FN(total_of_eight)(__m256 a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
#endif

#if VECTOR == 64
/* sum + each lane's two products of words */
INLINE Ints FN(dot)(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
INLINE Floats FN(low_words)(Ints a) { return FN(floats)(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(a))); }
INLINE Floats FN(high_words)(Ints a) { return FN(floats)(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(a, 1))); }
INLINE Floats FN(halves)(const uint16_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)from)); }
INLINE Floats FN(some_halves)(const uint16_t *from, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), from));
}
INLINE Floats FN(pick)(const float *from, Ints lanes) { return _mm512_permutexvar_ps(lanes, FN(get)(from)); }
INLINE float FN(total)(Floats a) {
    return FN(total_of_eight)(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
#elif VECTOR == 32
INLINE Ints FN(dot)(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
INLINE Floats FN(low_words)(Ints a) { return FN(floats)(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(a))); }
INLINE Floats FN(high_words)(Ints a) { return FN(floats)(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(a, 1))); }
INLINE Floats FN(halves)(const uint16_t *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)from)); }
INLINE Floats FN(pick)(const float *from, Ints lanes) { return _mm256_permutevar8x32_ps(FN(get)(from), lanes); }
INLINE float FN(total)(Floats a) { return FN(total_of_eight)(a); }
#else /* the compiler's own vectors: any machine */
typedef int32_t Ints __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));
typedef uint16_t FN(Words) __attribute__((vector_size(16)));
typedef uint32_t FN(Unsigned) __attribute__((vector_size(16)));
#define COLUMNS 2
#define ROWS 2
INLINE Ints FN(load)(const void *from) {
    Ints a;
    memcpy(&a, from, 16);
    return a;
}
INLINE void FN(store)(void *to, Ints a) { memcpy(to, &a, 16); }
INLINE Ints FN(shift)(Ints a, unsigned by) { return (Ints)((FN(Words))a >> (uint16_t)by); }
INLINE Ints FN(mask)(Ints a, int bits) { return (Ints)((FN(Words))a & (uint16_t)bits); }
INLINE Ints FN(either)(Ints a, Ints b) { return a | b; }
INLINE Ints FN(no_ints)(void) { return (Ints){0}; }
INLINE Ints FN(add)(Ints a, Ints b) { return (Ints)((FN(Unsigned))a + (FN(Unsigned))b); }
/* Each lane's words, low and high, with their signs. */
INLINE Ints FN(low)(Ints a) { return (a & 0xffff) - ((a & 0x8000) << 1); }
INLINE Ints FN(dot)(Ints sum, Ints a, Ints b) { return sum + FN(low)(a) * FN(low)(b) + (a >> 16) * (b >> 16); }
INLINE Floats FN(floats)(Ints a) { return __builtin_convertvector(a, Floats); }
INLINE Floats FN(low_words)(Ints a) {
    FN(Words) w = (FN(Words))a;
    return (Floats){w[0], w[1], w[2], w[3]};
}
INLINE Floats FN(high_words)(Ints a) {
    FN(Words) w = (FN(Words))a;
    return (Floats){w[4], w[5], w[6], w[7]};
}
INLINE Floats FN(all)(float a) { return (Floats){a, a, a, a}; }
INLINE Floats FN(get)(const float *from) { return (Floats)FN(load)(from); }
INLINE void FN(put)(float *to, Floats a) { memcpy(to, &a, 16); }
INLINE Floats FN(times)(Floats a, Floats b) { return a * b; }
INLINE Floats FN(minus)(Floats a, Floats b) { return a - b; }
INLINE Floats FN(fma)(Floats a, Floats b, Floats c) { return a * b + c; }
INLINE Floats FN(fnma)(Floats a, Floats b, Floats c) { return c - a * b; }
INLINE Floats FN(halves)(const uint16_t *from) {
    return (Floats){from_float16(from[0]), from_float16(from[1]), from_float16(from[2]), from_float16(from[3])};
}
INLINE Floats FN(pick)(const float *from, Ints lanes) {
    return (Floats){from[lanes[0]], from[lanes[1]], from[lanes[2]], from[lanes[3]]};
}
INLINE float FN(total)(Floats a) { return (a[0] + a[2]) + (a[1] + a[3]); }
#endif

#if VECTOR < 64
INLINE Floats FN(some_halves)(const uint16_t *from, int count) {
    uint16_t some[LANES] = {0};
    for (int i = 0; i < count; i++) some[i] = from[i];
    return FN(halves)(some);
}
#endif

/* The group, counted from the block's first column, of each lane's columns first + lane * step. */
INLINE Ints FN(groups_of)(int first, int step, int group) {
    int32_t lanes[LANES];
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = (first + lane * step) / group;
    return FN(load)(lanes);
}
