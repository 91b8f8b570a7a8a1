/* What the parts of the CPU kernel share: its limits, what a call says, and numbers of 16 bits. */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#define ABI 2
#define TILE_ROWS 8
#define BLOCK 2048               /* columns of a tile: a multiple of every group */
#define TILE_STRIDE (BLOCK + 32) /* rows of a tile do not compete for the same lines of the cache */
#define GROUPS (BLOCK / 16 + 16) /* groups of a block, and what a vector may read beyond them */
#define MAX_COLUMNS 4            /* rows of x that are multiplied at once */
#define ROW_BLOCK 128            /* rows of x that stay in the L2 cache while tiles pass by */
#define WAVE_ROWS 512            /* rows whose intermediate values are held at once (or one expert's) */
#define CHUNK_BYTES 49152        /* packed bytes that a thread takes at a time */
#define CHUNK_VALUES 32768       /* values worth a second thread, where little is done with each */
#define FEW_ROWS 2               /* rows of x for which it does not pay to unpack to memory */
#define PREFETCH 2048            /* bytes of a plane, and of scales, that are asked for ahead: the */
#define GROUP_PREFETCH 512       /* machine's own prefetcher stops at the end of a page */
#define MAX_THREADS 256
#define SPIN_NS 50000 /* for the next phase of a layer-step it is cheaper to look than to sleep */

enum { INT16, FP32 };
enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { SILU, GELU, GELU_TANH, RELU, RELU2 };
enum { DONE, NO_MEMORY, BAD_PLACE };

/* A matrix [num_rows, num_columns] of every blob; offsets in bytes, -1 for what is not there. */
typedef struct {
    int32_t bits, group, num_rows, num_columns;
    int64_t plane, low_plane, scale, zero, bias;
    int64_t bias_type;
} Matrix;

/* One call. Expert e has rows first[e] to first[e + 1]; row i is place places[i] of `out` (i without
 * places) and reads row place / top_k of x. Outputs are rounded to x's type, multiplied by their
 * place's weight if there are weights, and rounded to out's. */
typedef struct {
    Matrix up, down;
    int32_t variant, threads, activation, has_gate;
    int32_t x_type, out_type, num_experts, top_k;
    int64_t num_tokens;
    const uint8_t *const *blobs;
    const int64_t *first, *places;
    const void *weights;
    int64_t weights_type;
    const void *x;
    void *out;
} Call;

/* What follows from a matrix. A stripe is the rows that share bytes: r, r + N/p, r + 2N/p, ... */
typedef struct {
    int stripe_rows, num_stripes, tile_stripes, num_tiles, num_groups;
    int chunk_tiles; /* by packed bytes, as long as there are few rows */
} Shape;

/* Rows made ready for one matrix's columns, in word order, padded with zeros. */
typedef struct {
    int64_t row_words, row_groups;
    int16_t *words; /* int16: [rows, row_words] */
    float *values;  /* fp32: [rows, row_words] */
    float *step;    /* int16: [rows, row_groups]; x = step * word */
    float *sum;     /* int16: [rows, row_groups]; the sum of a group's step * word */
} Operand;

/* One thread's own memory. */
typedef struct {
    int16_t words[TILE_ROWS][TILE_STRIDE];
    float tile[TILE_ROWS][TILE_STRIDE];
    float scale[TILE_ROWS][GROUPS], zero[TILE_ROWS][GROUPS], shift[TILE_ROWS][GROUPS];
    float factor[TILE_ROWS * MAX_COLUMNS][GROUPS];
    float sums[ROW_BLOCK][TILE_ROWS];
    int64_t source[ROW_BLOCK], place[ROW_BLOCK];
    int rows[TILE_ROWS]; /* of the matrix */
    int num_rows;
    int16_t *row_words; /* one row of x, in the order of its columns */
    float *row;
} __attribute__((aligned(64))) Scratch;

/* The rows of some experts times one matrix of each: from places to `inner`, or from there to places. */
typedef struct {
    const struct Context *context;
    const Call *call;
    const Matrix *matrix;
    Shape shape;
    const Operand *x;
    int reads_places, writes_places;
    int first_expert, end_expert;
    float *inner; /* [rows of the experts, num_rows] */
} Product;

/* Some tiles and some rows of one expert. */
typedef struct {
    int expert, tile, end_tile;
    int64_t row, end_row;
} Chunk;

typedef struct {
    void (*multiply)(const Product *, const Chunk *, Scratch *);
    void (*prepare)(const Operand *, int64_t to, const Matrix *, int variant, Scratch *);
    void (*activate)(const Call *, const float *from, float *into, int64_t size);
    uint64_t (*read)(const uint8_t *, int64_t);
} Isa;

typedef struct {
    void *memory;
    size_t size;
} Area;

/* Memory that is kept from call to call. A context serves one caller at a time. */
typedef struct Context {
    const Isa *isa;
    int num_scratches;
    int64_t scratch_bytes, row_columns;
    Area scratch, x, inner, proj;
} Context;

INLINE int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
INLINE int64_t align_up(int64_t value, int64_t to) { return ceil_div(value, to) * to; }
INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float from_bfloat16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

/* To the nearest, ties to even; a NaN stays one. */
INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

/* 2^112 moves the exponent from float16's bias to float32's, of subnormal numbers too. */
INLINE float from_float16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = (uint32_t)(half & 0x7fff) << 13;
    if (rest >= 0x7c00u << 13) return from_bits(sign | 0x7f800000 | rest);
    return from_bits(sign | to_bits(from_bits(rest) * 0x1p112f));
}

INLINE float element(const void *from, int64_t i, int64_t type) {
    if (type == FLOAT32) return ((const float *)from)[i];
    uint16_t half = ((const uint16_t *)from)[i];
    return type == BFLOAT16 ? from_bfloat16(half) : from_float16(half);
}

static Shape shape_of(const Matrix *m) {
    Shape shape = {.stripe_rows = m->bits == 3 ? 8 : 8 / m->bits, .num_groups = m->num_columns / m->group};
    shape.num_stripes = m->num_rows / shape.stripe_rows;
    shape.tile_stripes = TILE_ROWS / shape.stripe_rows;
    shape.num_tiles = (int)ceil_div(shape.num_stripes, shape.tile_stripes);
    shape.chunk_tiles = (int)max64(1, CHUNK_BYTES / ((int64_t)m->num_columns * TILE_ROWS * m->bits / 8));
    return shape;
}

INLINE int64_t place_of(const Call *call, int64_t row) { return call->places ? call->places[row] : row; }
