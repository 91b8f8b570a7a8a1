/* The CPU kernel: rows go through quantized experts whose blobs are read as they lie.
 *
 * Knows matrices inside blobs (see protocol/blob.py), rows and activations; no slots, no routing, no
 * Python. A C ABI for ctypes. An output is always the same sequence of operations on its own row and
 * its own weights: it depends neither on the other rows of a call, nor on threads, nor on addresses.
 *
 * W = (q - zero) * scale; y[n] = sum over k of W[n, k] x[k]. Two variants:
 *   int16  x is rounded to 16 bits within each group of K; a group's products are summed exactly, in
 *          integers, and groups in float: y[n] = sum_g scale step (sum q x) - sum_g scale zero (sum x).
 *   fp32   weights are unpacked to what the reference unpacks in float32, bit for bit, and multiplied.
 * Both unpack a tile of 8 rows and at most BLOCK columns into the L1 cache once, and multiply all rows
 * of x with it. Codes of a tile lie in word order: of each VECTOR columns first the even, then the odd
 * ones, as 16-bit words. That is what shifts of a register of bytes, taken as words, give for free.
 *
 * The second half of this file is a template: it is included by the first, once per instruction set.
 */
#ifndef TEMPLATE

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
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

#define TEMPLATE
#define JOIN(name, suffix) name##_##suffix
#define JOINED(name, suffix) JOIN(name, suffix)
#define FN(name) JOINED(name, SUFFIX)
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define TARGET(features) _Pragma("GCC push_options") PRAGMA(GCC target(features))
#define END_TARGET _Pragma("GCC pop_options")
#endif

#define SUFFIX generic
#define VECTOR 16
#include "cpu.c"
#undef SUFFIX
#undef VECTOR

#if defined(__x86_64__)
#define SUFFIX avx2
#define VECTOR 32
TARGET("avx2,fma,f16c")
#include "cpu.c"
END_TARGET
#undef SUFFIX
#undef VECTOR

#define SUFFIX avx512
#define VECTOR 64
TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#include "cpu.c"
END_TARGET
#undef SUFFIX
#undef VECTOR
#endif

#define ISA(suffix) {multiply_##suffix, prepare_##suffix, activate_##suffix, read_##suffix}
static const Isa ISAS[] = {
    ISA(generic),
#if defined(__x86_64__)
    ISA(avx2),
    ISA(avx512),
#endif
};

/* The threads of this process beside the callers', kept and asleep between jobs. A job is open until its
 * caller has run out of work; who wakes up later than that is not waited for, so a busy machine costs
 * what the missing thread would have done, and never a time slice. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t posted, left;
    void (*run)(void *);
    void *argument;
    int num_threads, is_taken, seats;
    _Atomic unsigned active, number; /* of threads in the job; of the job */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .posted = PTHREAD_COND_INITIALIZER, .left = PTHREAD_COND_INITIALIZER};

INLINE void pause_briefly(void) {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Until a word differs from `value`, but no longer than SPIN_NS. */
static void spin_while(const _Atomic unsigned *word, unsigned value) {
    for (int64_t end = now_ns() + SPIN_NS; atomic_load(word) == value && now_ns() < end;)
        for (int i = 0; i < 16; i++) pause_briefly();
}

static void *serve(void *start) {
    unsigned seen = (unsigned)(uintptr_t)start;
    for (;;) {
        spin_while(&pool.number, seen);
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.number) == seen) pthread_cond_wait(&pool.posted, &pool.lock);
        seen = atomic_load(&pool.number);
        if (pool.seats > 0) {
            pool.seats--;
            atomic_fetch_add(&pool.active, 1);
            pthread_mutex_unlock(&pool.lock);
            pool.run(pool.argument);
            pthread_mutex_lock(&pool.lock);
            if (atomic_fetch_sub(&pool.active, 1) == 1) pthread_cond_signal(&pool.left);
        }
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* A fork has none of the threads, and whoever held the lock is not there either. */
static void forget_threads(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.posted, NULL);
    pthread_cond_init(&pool.left, NULL);
    pool.num_threads = pool.is_taken = pool.seats = 0;
    atomic_store(&pool.active, 0);
}

/* With the lock held: as many threads as there can be, up to `wanted`. Signals are for others. */
static void grow_pool(int wanted) {
    static int is_watching;
    if (!is_watching) is_watching = !pthread_atfork(NULL, NULL, forget_threads);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.num_threads < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(uintptr_t)atomic_load(&pool.number))) break;
        pthread_detach(thread);
        pool.num_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* `run` by the caller and by up to threads - 1 others at once. By the caller alone if another caller is here. */
static void run_together(void (*run)(void *), void *argument, int threads) {
    pthread_mutex_lock(&pool.lock);
    const int is_mine = !pool.is_taken;
    if (is_mine) {
        pool.is_taken = 1;
        grow_pool(threads - 1);
        pool.run = run;
        pool.argument = argument;
        pool.seats = threads - 1;
        atomic_fetch_add(&pool.number, 1);
        pthread_cond_broadcast(&pool.posted);
    }
    pthread_mutex_unlock(&pool.lock);
    run(argument);
    if (!is_mine) return;
    pthread_mutex_lock(&pool.lock);
    pool.seats = 0;
    const unsigned active = atomic_load(&pool.active);
    pthread_mutex_unlock(&pool.lock);
    if (active) spin_while(&pool.active, active);
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.active)) pthread_cond_wait(&pool.left, &pool.lock);
    pool.is_taken = 0;
    pthread_mutex_unlock(&pool.lock);
}

/* Chunks of work that threads take one after the other. What a chunk gives does not depend on who took it. */
typedef struct {
    void (*run)(void *work, int64_t chunk, Scratch *);
    void *work;
    int64_t num_chunks;
    _Atomic int64_t next_chunk;
    _Atomic int next_thread;
    const Context *context;
} Job;

static Scratch *scratch_of(const Context *context, int thread) {
    return (Scratch *)((char *)context->scratch.memory + thread * context->scratch_bytes);
}

static void take_chunks(void *argument) {
    Job *job = argument;
    int thread = atomic_fetch_add(&job->next_thread, 1);
    if (thread >= job->context->num_scratches) return;
    Scratch *scratch = scratch_of(job->context, thread);
    for (;;) {
        int64_t chunk = atomic_fetch_add_explicit(&job->next_chunk, 1, memory_order_relaxed);
        if (chunk >= job->num_chunks) return;
        job->run(job->work, chunk, scratch);
    }
}

static void run_job(const Context *context, int threads, void (*run)(void *, int64_t, Scratch *), void *work,
                    int64_t num_chunks) {
    Job job = {run, work, num_chunks, 0, 0, context};
    int64_t wanted = min64(threads, num_chunks);
    if (wanted > 1)
        run_together(take_chunks, &job, (int)wanted);
    else
        take_chunks(&job);
}

static int64_t expert_chunks(const Product *product, int expert) {
    const int64_t *first = product->call->first;
    return ceil_div(first[expert + 1] - first[expert], ROW_BLOCK) *
           ceil_div(product->shape.num_tiles, product->shape.chunk_tiles);
}

static void multiply_chunk(void *work, int64_t number, Scratch *scratch) {
    const Product *product = work;
    int expert = product->first_expert;
    for (; number >= expert_chunks(product, expert); expert++) number -= expert_chunks(product, expert);
    int tiles = product->shape.chunk_tiles, all_tiles = product->shape.num_tiles;
    int64_t per_row_block = ceil_div(all_tiles, tiles);
    Chunk chunk = {.expert = expert, .tile = (int)(number % per_row_block) * tiles};
    chunk.end_tile = (int)min64(chunk.tile + tiles, all_tiles);
    chunk.row = product->call->first[expert] + number / per_row_block * ROW_BLOCK;
    chunk.end_row = min64(chunk.row + ROW_BLOCK, product->call->first[expert + 1]);
    product->context->isa->multiply(product, &chunk, scratch);
}

static void multiply(const Product *product) {
    int64_t num_chunks = 0;
    for (int e = product->first_expert; e < product->end_expert; e++) num_chunks += expert_chunks(product, e);
    run_job(product->context, product->call->threads, multiply_chunk, (void *)product, num_chunks);
}

/* Rows of x, or of activated products, become an operand. */
typedef struct {
    const Context *context;
    const Call *call;
    const Operand *into;
    const Matrix *matrix; /* the one that the operand is for */
    const float *proj;    /* NULL: from call->x */
} Preparation;

static void prepare_row(void *work, int64_t row, Scratch *scratch) {
    const Preparation *p = work;
    const Call *call = p->call;
    int64_t columns = p->matrix->num_columns;
    if (p->proj)
        p->context->isa->activate(call, p->proj + row * call->up.num_rows, scratch->row, columns);
    else
        for (int64_t k = 0; k < columns; k++) scratch->row[k] = element(call->x, row * columns + k, call->x_type);
    p->context->isa->prepare(p->into, row, p->matrix, call->variant, scratch);
}

static void prepare(const Preparation *p, int64_t num_rows) {
    int is_small = num_rows * p->matrix->num_columns < CHUNK_VALUES;
    run_job(p->context, is_small ? 1 : p->call->threads, prepare_row, (void *)p, num_rows);
}

/* At least `size` bytes, 64-byte aligned and zero at first; what was there before may be gone. */
static void *reserve(Area *area, size_t size) {
    if (area->size > size) return area->memory;
    free(area->memory);
    size = (size_t)align_up((int64_t)size + 1, 4096);
    area->memory = aligned_alloc(4096, size);
    area->size = area->memory ? size : 0;
    if (area->memory) memset(area->memory, 0, size);
    return area->memory;
}

static int reserve_operand(Area *area, Operand *operand, const Matrix *m, int variant, int64_t rows) {
    operand->row_words = align_up(m->num_columns, 64) + 32;
    operand->row_groups = align_up(m->num_columns / m->group, 16) + 16;
    int64_t word_bytes = operand->row_words * (variant == INT16 ? 2 : 4) * rows;
    char *memory = reserve(area, (size_t)(word_bytes + 2 * operand->row_groups * 4 * rows));
    if (!memory) return NO_MEMORY;
    operand->words = (int16_t *)memory;
    operand->values = (float *)memory;
    operand->step = (float *)(memory + word_bytes);
    operand->sum = operand->step + operand->row_groups * rows;
    return DONE;
}

static int reserve_scratch(Context *context, const Call *call) {
    const int threads = (int)max64(1, min64(call->threads, MAX_THREADS));
    const int64_t columns = align_up(max64(call->up.num_columns, call->down.num_columns), 64);
    if (threads <= context->num_scratches && columns <= context->row_columns) return DONE;
    context->num_scratches = 0;
    context->row_columns = max64(columns, context->row_columns);
    context->scratch_bytes = align_up((int64_t)sizeof(Scratch) + context->row_columns * 6, 64);
    if (!reserve(&context->scratch, (size_t)(context->scratch_bytes * threads))) return NO_MEMORY;
    context->num_scratches = threads;
    for (int thread = 0; thread < threads; thread++) {
        Scratch *scratch = scratch_of(context, thread);
        scratch->row = (float *)(scratch + 1);
        scratch->row_words = (int16_t *)(scratch->row + context->row_columns);
    }
    return DONE;
}

static int check_places(const Call *call) {
    int64_t num_places = call->num_tokens * call->top_k;
    for (int64_t row = 0; row < call->first[call->num_experts]; row++)
        if (place_of(call, row) < 0 || place_of(call, row) >= num_places) return BAD_PLACE;
    return DONE;
}

/* The experts of one wave: up, activation, down. Rows count from the wave's first. */
static int run_wave(Context *context, const Call *call, const Operand *x, int first_expert, int end_expert) {
    int64_t rows = call->first[end_expert] - call->first[first_expert];
    Operand inner;
    float *proj = reserve(&context->proj, (size_t)(rows * call->up.num_rows * 4));
    if (!proj || reserve_operand(&context->inner, &inner, &call->down, call->variant, rows)) return NO_MEMORY;
    Product up = {context, call, &call->up, shape_of(&call->up), x, 1, 0, first_expert, end_expert, proj};
    multiply(&up);
    Preparation activation = {context, call, &inner, &call->down, proj};
    prepare(&activation, rows);
    Product down = {context, call, &call->down, shape_of(&call->down), &inner, 0, 1, first_expert, end_expert, NULL};
    multiply(&down);
    return DONE;
}

EXPORT int sidestage_abi(void) { return ABI; }

/* Whether this machine runs instruction set 0 generic, 1 avx2, 2 avx512. */
EXPORT int sidestage_has_isa(int number) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (number == 1) return avx2;
    if (number == 2)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return number == 0;
}

/* NULL without memory, or for an instruction set that is not there. */
EXPORT Context *sidestage_open(int isa) {
    if (!sidestage_has_isa(isa)) return NULL;
    Context *context = calloc(1, sizeof(Context));
    if (!context) return NULL;
    context->isa = &ISAS[isa];
    return context;
}

EXPORT void sidestage_close(Context *context) {
    if (!context) return;
    free(context->scratch.memory);
    free(context->x.memory);
    free(context->inner.memory);
    free(context->proj.memory);
    free(context);
}

/* All experts of a call: up, activation, down. 0 is done; 1 no memory; 2 a place outside of `out`. */
EXPORT int sidestage_run(Context *context, const Call *call) {
    Operand x;
    int error = check_places(call);
    if (!error) error = reserve_scratch(context, call);
    if (!error) error = reserve_operand(&context->x, &x, &call->up, call->variant, call->num_tokens);
    if (error) return error;
    Preparation preparation = {context, call, &x, &call->up, NULL};
    prepare(&preparation, call->num_tokens);
    for (int expert = 0; expert < call->num_experts && !error;) {
        int end = expert + 1;
        while (end < call->num_experts && call->first[end + 1] - call->first[expert] <= WAVE_ROWS) end++;
        error = run_wave(context, call, &x, expert, end);
        expert = end;
    }
    return error;
}

/* Only the up matrix (is_down 0) or only the down matrix of a call's experts; no activation. */
EXPORT int sidestage_project(Context *context, const Call *call, int is_down) {
    const Matrix *matrix = is_down ? &call->down : &call->up;
    Operand x;
    int error = check_places(call);
    if (!error) error = reserve_scratch(context, call);
    if (!error) error = reserve_operand(&context->x, &x, matrix, call->variant, call->num_tokens);
    if (error) return error;
    Preparation preparation = {context, call, &x, matrix, NULL};
    prepare(&preparation, call->num_tokens);
    Product product = {context, call, matrix, shape_of(matrix), &x, 1, 1, 0, call->num_experts, NULL};
    multiply(&product);
    return DONE;
}

/* Reads `size` bytes with the widest loads there are, for measurements; returns a sum of them. */
EXPORT uint64_t sidestage_read(const Context *context, const uint8_t *from, int64_t size) {
    return context->isa->read(from, size);
}

#else /* TEMPLATE: for SUFFIX, whose registers hold VECTOR bytes */

#define LANES (VECTOR / 4) /* floats, or 32-bit sums, of a register */
#define WORDS (VECTOR / 2)
#define Ints FN(Ints)
#define Floats FN(Floats)

#if VECTOR == 64
typedef __m512i Ints;
typedef __m512 Floats;
#define COLUMNS 4 /* rows of x at once, and */
#define ROWS 4    /* rows of the tile: as many sums as there are registers for */
INLINE Ints FN(load)(const void *from) { return _mm512_loadu_si512(from); }
INLINE void FN(store)(void *to, Ints a) { _mm512_storeu_si512(to, a); }
INLINE Ints FN(shift)(Ints a, unsigned by) { return _mm512_srli_epi16(a, by); }
INLINE Ints FN(mask)(Ints a, int bits) { return _mm512_and_si512(a, _mm512_set1_epi16((short)bits)); }
INLINE Ints FN(either)(Ints a, Ints b) { return _mm512_or_si512(a, b); }
INLINE Ints FN(no_ints)(void) { return _mm512_setzero_si512(); }
INLINE Ints FN(add)(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
/* sum + each lane's two products of words */
INLINE Ints FN(dot)(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
INLINE Floats FN(floats)(Ints a) { return _mm512_cvtepi32_ps(a); }
INLINE Floats FN(low_words)(Ints a) { return FN(floats)(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(a))); }
INLINE Floats FN(high_words)(Ints a) { return FN(floats)(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(a, 1))); }
INLINE Floats FN(all)(float a) { return _mm512_set1_ps(a); }
INLINE Floats FN(get)(const float *from) { return _mm512_loadu_ps(from); }
INLINE void FN(put)(float *to, Floats a) { _mm512_storeu_ps(to, a); }
INLINE Floats FN(times)(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats FN(minus)(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
INLINE Floats FN(fma)(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats FN(fnma)(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE Floats FN(halves)(const uint16_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)from)); }
INLINE Floats FN(some_halves)(const uint16_t *from, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), from));
}
INLINE Floats FN(pick)(const float *from, Ints lanes) { return _mm512_permutexvar_ps(lanes, FN(get)(from)); }
INLINE float FN(total)(Floats a) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
#elif VECTOR == 32
typedef __m256i Ints;
typedef __m256 Floats;
#define COLUMNS 2
#define ROWS 4
INLINE Ints FN(load)(const void *from) { return _mm256_loadu_si256(from); }
INLINE void FN(store)(void *to, Ints a) { _mm256_storeu_si256(to, a); }
INLINE Ints FN(shift)(Ints a, unsigned by) { return _mm256_srli_epi16(a, (int)by); }
INLINE Ints FN(mask)(Ints a, int bits) { return _mm256_and_si256(a, _mm256_set1_epi16((short)bits)); }
INLINE Ints FN(either)(Ints a, Ints b) { return _mm256_or_si256(a, b); }
INLINE Ints FN(no_ints)(void) { return _mm256_setzero_si256(); }
INLINE Ints FN(add)(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
INLINE Ints FN(dot)(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
INLINE Floats FN(floats)(Ints a) { return _mm256_cvtepi32_ps(a); }
INLINE Floats FN(low_words)(Ints a) { return FN(floats)(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(a))); }
INLINE Floats FN(high_words)(Ints a) { return FN(floats)(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(a, 1))); }
INLINE Floats FN(all)(float a) { return _mm256_set1_ps(a); }
INLINE Floats FN(get)(const float *from) { return _mm256_loadu_ps(from); }
INLINE void FN(put)(float *to, Floats a) { _mm256_storeu_ps(to, a); }
INLINE Floats FN(times)(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
INLINE Floats FN(minus)(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
INLINE Floats FN(fma)(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats FN(fnma)(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE Floats FN(halves)(const uint16_t *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)from)); }
INLINE Floats FN(pick)(const float *from, Ints lanes) { return _mm256_permutevar8x32_ps(FN(get)(from), lanes); }
INLINE float FN(total)(Floats a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
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

/* `rows` rows of the tile from q on, with the group's width known to the compiler where it matters. */
INLINE void FN(multiply_rows)(const int rows, const int columns, const Matrix *m, int variant, int q, int count,
                              int size, const FN(Columns) *x, Scratch *s, float (*sums)[TILE_ROWS]) {
    if (variant == FP32) {
        FN(multiply_fp32)(rows, columns, q, size, x, s, sums);
        return;
    }
    switch (m->group / VECTOR) {
    case 0: FN(multiply_int16)(rows, columns, 0, m, q, count, size, x, s, sums); break;
    case 1: FN(multiply_int16)(rows, columns, 1, m, q, count, size, x, s, sums); break;
    case 2: FN(multiply_int16)(rows, columns, 2, m, q, count, size, x, s, sums); break;
    case 4: FN(multiply_int16)(rows, columns, 4, m, q, count, size, x, s, sums); break;
    default: FN(multiply_int16)(rows, columns, m->group / VECTOR, m, q, count, size, x, s, sums);
    }
}

INLINE void FN(multiply_bits)(const int bits, const Matrix *m, FN(Stripe) stripe, int q, int count, int size,
                              const FN(Columns) *x, Scratch *s, float *sums) {
    switch (m->group / VECTOR) {
    case 0: FN(multiply_stripe)(bits, 0, m, stripe, q, count, size, x, s, sums); break;
    case 1: FN(multiply_stripe)(bits, 1, m, stripe, q, count, size, x, s, sums); break;
    case 2: FN(multiply_stripe)(bits, 2, m, stripe, q, count, size, x, s, sums); break;
    case 4: FN(multiply_stripe)(bits, 4, m, stripe, q, count, size, x, s, sums); break;
    default: FN(multiply_stripe)(bits, m->group / VECTOR, m, stripe, q, count, size, x, s, sums);
    }
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

#undef LANES
#undef WORDS
#undef COLUMNS
#undef ROWS
#undef Ints
#undef Floats
#endif
