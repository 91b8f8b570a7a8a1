/* Threads beside the caller's, and chunks of work that they take one after the other. */
#pragma once

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "types.h"

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
