/* A pool of threads, part of a context. */
#ifndef GSP_POOL_H
#define GSP_POOL_H

#include <pthread.h>
#include <stdatomic.h>

#include "../gsp_internal.h"

#define GSPI_MAX_THREADS 256

typedef struct gspi_job gspi_job;

typedef struct gspi_pool {
    /* Twice the number of forks that this process has seen, plus 1 while a thread runs a job. Who makes it odd
     * owns everything below but what says otherwise. */
    _Atomic uint64_t gate;
    gspi_job *job;
    int started, most; /* threads that run, and that the system lets us have */
    int cpus;
    pthread_t threads[GSPI_MAX_THREADS - 1];

    /* What the threads of the pool read and write, too. */
    char apart[64];
    _Atomic uint64_t ticket; /* number of the job << 32 | places left << 16 | threads at it */
    char apart_too[64];
    _Atomic int64_t asked; /* when gspi_pool_is_busy was called, in nanoseconds */
    atomic_int sleepers;
    atomic_int owner_cpu; /* that the caller was on when it posted; -1 if that does not matter */
    atomic_bool owner_sleeps, stops, awake;
    pthread_mutex_t lock;
    pthread_cond_t posted, left;
} gspi_pool;

/* No thread is started before the first job. */
gsp_status gspi_pool_init(gspi_pool *pool);
bool gspi_pool_is_busy(gspi_pool *pool);
/* Ends the threads. Nobody may be using the pool. */
void gspi_pool_clear(gspi_pool *pool);
/* gspi_parallel_on with the threads of the pool. If they are at another job, the caller does all items itself:
 * two callers at once and a body that has a job of its own are both right, and cannot wait for each other. */
gsp_status gspi_pool_run(gspi_pool *pool, int workers, int64_t items, gspi_body body,
                         void *argument);

#endif
