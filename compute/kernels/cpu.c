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
 * This file is what Python calls, and how a call's experts become chunks of work. c/isa.h is a template for
 * the work itself, included once for each instruction set.
 */
#include "c/threads.h"
#include "c/types.h"

#define JOIN(name, suffix) name##_##suffix
#define JOINED(name, suffix) JOIN(name, suffix)
#define FN(name) JOINED(name, SUFFIX)
#define REGISTER_OF(bits, kind) __m##bits##kind
#define REGISTER(bits, kind) REGISTER_OF(bits, kind)
#define OP_OF(bits, name) _mm##bits##_##name
#define OP(bits, name) OP_OF(bits, name)
#define WHOLE_OF(bits, name) _mm##bits##_##name##_si##bits
#define WHOLE(bits, name) WHOLE_OF(bits, name)
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
#include "c/isa.h"
#undef SUFFIX
#undef VECTOR

#if defined(__x86_64__)
#define SUFFIX avx2
#define VECTOR 32
TARGET("avx2,fma,f16c")
#include "c/isa.h"
END_TARGET
#undef SUFFIX
#undef VECTOR

#define SUFFIX avx512
#define VECTOR 64
TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#include "c/isa.h"
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
