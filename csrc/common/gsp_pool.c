/* Threads that wait for work.
 *
 * A job is posted as one atomic word, the ticket: how many places it has, and how many threads are at it. A thread
 * takes a place by lowering the one and raising the other; the caller works too, closes the places when no item is
 * left, and waits only for threads that took one. So a thread that wakes up late costs nothing, and a small job is
 * as fast as without a pool but for the call that wakes it.
 *
 * Threads wait awake for a moment, because the next product is often microseconds away and waking a thread takes
 * ten; then they sleep on a condition, because others (the threads of OpenMP above all) want the CPU as well.
 *
 * Threads are not pinned. But where those of another pool are awake on all other CPUs, as OpenMP's are after their
 * work, the system wakes ours on the CPU of the caller and leaves both there for many jobs, in each of which one waits
 * for the other. So a thread that finds itself there when it begins a job asks to be anywhere else, and at once to be
 * anywhere again: it stays where that brought it until the system has a reason.
 *
 * A child process has the memory of the pool, but not its threads. A counter of forks tells: who finds the pool to
 * be of another process makes it anew. */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_getaffinity, sched_getcpu */
#else
#define _POSIX_C_SOURCE 200809L
#endif
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "gsp_pool.h"

/* Nanoseconds that a thread without work, and a caller whose threads are still at work, wait awake. */
#define IDLE_SPIN 50000
#define OWNER_SPIN 200000
/* Between calls that belong together. */
#define BUSY 200000
/* Bytes of the stack of a thread, at least: kernels keep tiles and sums of some 300 KiB there, and some systems give
 * less. */
#define LEAST_STACK ((size_t)1 << 20)

/* -------------------------------------------------------------------- jobs */

struct gspi_job {
    gspi_body body;
    void *argument;
    int64_t chunk; /* items that a thread takes at once */
    char apart[64];
    _Atomic int64_t next;
    _Atomic uint64_t failed; /* lowest item that failed << 8 | its status; items << 8 if none did */
};

static void run(gspi_job *job, int worker) {
    for (;;) {
        int64_t item = atomic_fetch_add(&job->next, job->chunk);
        const int64_t last = item + job->chunk;
        for (; item < last; item++) {
            /* Items below a failed one still run, so that the status does not depend on the threads. */
            uint64_t failed = atomic_load(&job->failed);
            if ((uint64_t)item >= failed >> 8) return;
            const gsp_status status = job->body(job->argument, item, worker);
            if (status == GSP_OK) continue;
            const uint64_t mine = (uint64_t)item << 8 | (uint64_t)status;
            failed = atomic_load(&job->failed);
            while (mine >> 8 < failed >> 8 &&
                   !atomic_compare_exchange_weak(&job->failed, &failed, mine));
        }
    }
}

/* ------------------------------------------------------------------ ticket */

static uint32_t places(uint64_t ticket) { return ticket >> 16 & 0xffff; }
static uint32_t at_work(uint64_t ticket) { return ticket & 0xffff; }
#define PLACE ((uint64_t)1 << 16)
#define PLACES ((uint64_t)0xffff << 16)

/* A place at the job: the worker's number, or 0 if none is left. */
static int take_place(gspi_pool *pool) {
    uint64_t ticket = atomic_load(&pool->ticket);
    while (places(ticket) > 0)
        if (atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket - PLACE + 1))
            return (int)places(ticket);
    return 0;
}

/* Who leaves has found no item left: nobody else needs to come. */
static void leave(gspi_pool *pool) {
    uint64_t ticket = atomic_load(&pool->ticket);
    while (!atomic_compare_exchange_weak(&pool->ticket, &ticket, (ticket & ~PLACES) - 1));
    if (at_work(ticket) > 1 || !atomic_load(&pool->owner_sleeps)) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->left);
    pthread_mutex_unlock(&pool->lock);
}

/* ----------------------------------------------------------------- waiting */

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

bool gspi_pool_is_busy(gspi_pool *pool) {
    const int64_t now = nanoseconds();
    return now - atomic_exchange(&pool->asked, now) < BUSY;
}

static bool has_work(gspi_pool *pool) {
    return places(atomic_load(&pool->ticket)) > 0 || atomic_load(&pool->stops);
}

static bool is_alone(gspi_pool *pool) { return at_work(atomic_load(&pool->ticket)) == 0; }

/* Waits awake until the condition holds, for so many nanoseconds at most; whether it does. */
static bool spin(gspi_pool *pool, bool (*condition)(gspi_pool *), int64_t limit) {
    for (const int64_t end = nanoseconds() + limit;;) {
        for (int i = 0; i < 16; i++) {
            if (condition(pool)) return true;
            GSPI_PAUSE();
        }
        if (nanoseconds() >= end) return false;
    }
}

/* The CPU that this thread is on, -1 if unknown. */
static int this_cpu(void) {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Moves this thread to another CPU than `cpu`, if it may use any. */
static void move_away(int cpu) {
#if defined(__linux__)
    cpu_set_t all, others;
    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof all, &all) != 0) return;
    others = all;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
    (void)sched_setaffinity(0, sizeof all, &all);
#else
    (void)cpu;
#endif
}

static void *thread_main(void *argument) {
    gspi_pool *pool = argument;
    while (!atomic_load(&pool->stops)) {
        const int worker = take_place(pool);
        if (worker > 0) {
            const int cpu = atomic_load(&pool->owner_cpu);
            if (cpu >= 0 && cpu == this_cpu()) move_away(cpu);
            run(pool->job, worker);
            leave(pool);
        }
        if (atomic_load(&pool->awake) && spin(pool, has_work, IDLE_SPIN)) continue;
        pthread_mutex_lock(&pool->lock);
        /* The caller posts first and looks for sleepers then: one of the two sees the other. */
        atomic_fetch_add(&pool->sleepers, 1);
        while (!has_work(pool)) pthread_cond_wait(&pool->posted, &pool->lock);
        atomic_fetch_sub(&pool->sleepers, 1);
        pthread_mutex_unlock(&pool->lock);
    }
    return NULL;
}

static void wait_for_threads(gspi_pool *pool) {
    if (is_alone(pool) || (atomic_load(&pool->awake) && spin(pool, is_alone, OWNER_SPIN))) return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->owner_sleeps, true);
    while (!is_alone(pool)) pthread_cond_wait(&pool->left, &pool->lock);
    atomic_store(&pool->owner_sleeps, false);
    pthread_mutex_unlock(&pool->lock);
}

/* -------------------------------------------------------------------- fork */

static _Atomic uint64_t forks;
static atomic_bool counts_forks;

static void count_fork(void) { atomic_fetch_add(&forks, 1); }

/* ----------------------------------------------------------------- threads */

static int count_cpus(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : (int)online;
}

/* The pool without threads, as new or as it must be in a child. */
static void make(gspi_pool *pool) {
    pool->job = NULL;
    pool->started = 0;
    pool->most = GSPI_MAX_THREADS - 1;
    pool->cpus = 0;
    atomic_store(&pool->ticket, 0);
    atomic_store(&pool->sleepers, 0);
    atomic_store(&pool->owner_cpu, -1);
    atomic_store(&pool->owner_sleeps, false);
    atomic_store(&pool->stops, false);
    atomic_store(&pool->awake, false);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->posted, NULL);
    pthread_cond_init(&pool->left, NULL);
}

gsp_status gspi_pool_init(gspi_pool *pool) {
    /* Two at once may both register: forks are then counted twice, which does no harm. */
    if (!atomic_load(&counts_forks)) {
        GSP_CHECK(pthread_atfork(NULL, NULL, count_fork) == 0, GSP_ERROR_MEMORY);
        atomic_store(&counts_forks, true);
    }
    make(pool);
    atomic_init(&pool->asked, 0);
    atomic_init(&pool->gate, 2 * atomic_load(&forks));
    return GSP_OK;
}

void gspi_pool_clear(gspi_pool *pool) {
    if (atomic_load(&pool->gate) != 2 * atomic_load(&forks)) return; /* the parent's */
    atomic_store(&pool->stops, true);
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->posted);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->posted);
    pthread_cond_destroy(&pool->left);
}

static bool enter(gspi_pool *pool) {
    const uint64_t here = 2 * atomic_load(&forks);
    uint64_t gate = atomic_load(&pool->gate);
    if (gate == here + 1) return false;
    if (!atomic_compare_exchange_strong(&pool->gate, &gate, here + 1)) return false;
    if (gate != here) make(pool);
    return true;
}

static int start_thread(gspi_pool *pool, pthread_t *thread) {
    pthread_attr_t attributes;
    size_t stack;
    int error = pthread_attr_init(&attributes);
    if (error != 0) return error;
    error = pthread_attr_getstacksize(&attributes, &stack);
    if (error == 0 && stack < LEAST_STACK)
        error = pthread_attr_setstacksize(&attributes, LEAST_STACK);
    if (error == 0) error = pthread_create(thread, &attributes, thread_main, pool);
    (void)pthread_attr_destroy(&attributes);
    return error;
}

static void start_threads(gspi_pool *pool, int count) {
    if (pool->started >= gspi_min(count, pool->most)) return;
    /* Signals belong to the program's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->started < gspi_min(count, pool->most)) {
        if (start_thread(pool, &pool->threads[pool->started]) == 0) pool->started++;
        else pool->most = pool->started; /* slower than asked for, not wrong */
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void post(gspi_pool *pool, gspi_job *job, int threads) {
    pool->job = job;
    /* More threads than CPUs must share one. */
    atomic_store(&pool->owner_cpu, atomic_load(&pool->awake) ? this_cpu() : -1);
    const uint64_t number = (atomic_load(&pool->ticket) >> 32) + 1;
    atomic_store(&pool->ticket, number << 32 | (uint64_t)threads << 16);
    /* Those awake look at the ticket before they sleep. */
    int wanted = threads - (pool->started - atomic_load(&pool->sleepers));
    if (wanted <= 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_mutex_unlock(&pool->lock);
    for (; wanted > 0; wanted--) pthread_cond_signal(&pool->posted);
}

gsp_status gspi_pool_run(gspi_pool *pool, int workers, int64_t items, gspi_body body,
                         void *argument) {
    workers = (int)gspi_min(workers, items);
    gspi_job job = {.body = body, .argument = argument, .chunk = 1};
    /* Sixteen times for each thread are even enough, and seldom enough for tiny items. */
    if (workers > 1) job.chunk = gspi_max(1, items / (16 * workers));
    atomic_init(&job.next, 0);
    atomic_init(&job.failed, (uint64_t)items << 8);
    if (workers <= 1 || !enter(pool)) {
        run(&job, 0);
        return (gsp_status)(atomic_load(&job.failed) & 0xff);
    }
    if (pool->cpus == 0) pool->cpus = count_cpus();
    atomic_store(&pool->awake, workers <= pool->cpus);
    start_threads(pool, workers - 1);
    post(pool, &job, (int)gspi_min(workers - 1, pool->started));
    run(&job, 0);
    atomic_fetch_and(&pool->ticket, ~PLACES);
    wait_for_threads(pool);
    atomic_store(&pool->gate, atomic_load(&pool->gate) - 1);
    return (gsp_status)(atomic_load(&job.failed) & 0xff);
}
