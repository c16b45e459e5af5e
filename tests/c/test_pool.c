/* The threads of a context: small jobs one after another, several callers at once, jobs inside jobs, settings that
 * change meanwhile, forks, and the end of it all. Made for ThreadSanitizer (make tsan). */
#if defined(__linux__)
#define _GNU_SOURCE /* pthread_setattr_default_np */
#else
#define _POSIX_C_SOURCE 200809L
#endif
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gsp_test.h"

#if defined(__SANITIZE_THREAD__)
#define ROUNDS 300
#else
#define ROUNDS 3000
#endif

static gsp_context *make_context(int threads) {
    gsp_context *context = NULL;
    EXPECT_INT(gsp_context_create(NULL, &context), GSP_OK);
    EXPECT_INT(gsp_context_set_threads(context, threads), GSP_OK);
    return context;
}

static void sleep_ms(int ms) {
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* -------------------------------------------------------------------- jobs */

#define MOST 500

/* Plain numbers on purpose: that each item is done by one thread, and seen by the caller afterwards, is what the
 * sanitizer is to check. */
typedef struct {
    int64_t square[MOST];
    int64_t per_worker[256]; /* items that a worker did */
    gsp_context *inner; /* every tenth item runs a job of its own there */
} squares;

static gsp_status square_inside(void *argument, int64_t item, int worker) {
    (void)worker;
    ((int64_t *)argument)[item] = item;
    return GSP_OK;
}

static gsp_status square(void *argument, int64_t item, int worker) {
    squares *work = argument;
    work->square[item] = item * item;
    work->per_worker[worker]++;
    if (work->inner == NULL || item % 10 != 0) return GSP_OK;
    int64_t inside[20];
    const gsp_status status = gspi_parallel(work->inner, 20, square_inside, inside);
    for (int64_t i = 0; i < 20; i++)
        if (inside[i] != i) return GSP_ERROR_MASK;
    return status;
}

/* One job of so many items; whether each was done once, by workers that there are. */
static bool job_is_right(gsp_context *context, int64_t items, gsp_context *inner) {
    squares work;
    memset(&work, 0xff, sizeof work);
    memset(work.per_worker, 0, sizeof work.per_worker);
    work.inner = inner;
    const int workers = gspi_workers(context, items);
    bool right = gspi_parallel_on(context, workers, items, square, &work) == GSP_OK;
    int64_t done = 0;
    for (int worker = 0; worker < 256; worker++) {
        done += work.per_worker[worker];
        right = right && (worker < workers || work.per_worker[worker] == 0);
    }
    right = right && done == items;
    for (int64_t item = 0; item < MOST; item++)
        right = right && work.square[item] == (item < items ? item * item : -1);
    return right;
}

/* Two items that end only when both have begun: so two threads must be at it. Gives up after ten seconds. */
static gsp_status meet(void *argument, int64_t item, int worker) {
    atomic_int *here = argument;
    (void)item;
    (void)worker;
    atomic_fetch_add(here, 1);
    for (int ms = 0; ms < 10000; ms++) {
        if (atomic_load(here) == 2) return GSP_OK;
        sleep_ms(1);
    }
    return GSP_ERROR_SHAPE;
}

static bool has_two_threads(gsp_context *context) {
    atomic_int here = 0;
    return gspi_parallel_on(context, 2, 2, meet, &here) == GSP_OK;
}

static void test_small_jobs(void) {
    static const int threads[] = {1, 2, 3, 8};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        gsp_context *context = make_context(threads[t]);
        bool right = true;
        for (int round = 0; round < ROUNDS; round++)
            right = right && job_is_right(context, round % 40, NULL);
        right = right && job_is_right(context, MOST, NULL);
        EXPECT(right);
        gsp_context_destroy(context);
    }
}

static void test_threads_work_and_sleep(void) {
    gsp_context *context = make_context(2);
    for (int pause = 0; pause < 4; pause++) {
        EXPECT(has_two_threads(context));
        sleep_ms(pause * 5); /* long enough to fall asleep */
    }
    gsp_context_destroy(context);
}

static void test_jobs_inside_jobs(void) {
    gsp_context *context = make_context(3), *other = make_context(2);
    bool right = true;
    for (int round = 0; round < ROUNDS / 20; round++)
        right = right && job_is_right(context, 100, context) && job_is_right(context, 100, other);
    EXPECT(right);
    gsp_context_destroy(other);
    gsp_context_destroy(context);
}

/* ------------------------------------------------------------ many callers */

typedef struct {
    gsp_context *context;
    atomic_bool right, stop;
} shared;

static void *call_again_and_again(void *argument) {
    shared *all = argument;
    for (int round = 0; round < ROUNDS / 4; round++)
        if (!job_is_right(all->context, round % 60, round % 7 ? NULL : all->context))
            atomic_store(&all->right, false);
    return NULL;
}

static void *change_the_setting(void *argument) {
    shared *all = argument;
    for (int threads = 1; !atomic_load(&all->stop); threads = threads % 7 + 1)
        gsp_context_set_threads(all->context, threads);
    return NULL;
}

static void test_callers_at_once(void) {
    shared all = {.context = make_context(2), .right = true};
    pthread_t callers[3], changer;
    EXPECT_INT(pthread_create(&changer, NULL, change_the_setting, &all), 0);
    for (int i = 0; i < 3; i++)
        EXPECT_INT(pthread_create(&callers[i], NULL, call_again_and_again, &all), 0);
    for (int i = 0; i < 3; i++) pthread_join(callers[i], NULL);
    atomic_store(&all.stop, true);
    pthread_join(changer, NULL);
    EXPECT(atomic_load(&all.right));
    gsp_context_set_threads(all.context, 2);
    EXPECT(has_two_threads(all.context));
    gsp_context_destroy(all.context);
}

/* -------------------------------------------------------------------- fork */

/* Neither ThreadSanitizer nor an emulator (qemu-user) starts threads in a child of a process with threads: the child
 * only works alone there. */
static int child(gsp_context *context, int depth) {
#if defined(__SANITIZE_THREAD__) || defined(GSP_TEST_EMULATED)
    gsp_context_set_threads(context, 1);
    const bool threads = true;
    (void)depth;
#else
    bool threads = has_two_threads(context);
    if (depth > 0) {
        const pid_t grandchild = fork();
        if (grandchild == 0) _exit(child(context, depth - 1));
        int status = -1;
        waitpid(grandchild, &status, 0);
        threads = threads && status == 0 && has_two_threads(context);
    }
#endif
    const bool right = job_is_right(context, 100, context);
    gsp_context_destroy(context);
    return !(right && threads);
}

static void expect_child(pid_t pid) {
    EXPECT(pid > 0);
    int status = -1;
    for (int ms = 0; ms < 60000; ms += 5) {
        if (waitpid(pid, &status, WNOHANG) != 0) break;
        sleep_ms(5);
    }
    EXPECT_INT(status, 0);
    if (status == -1) kill(pid, SIGKILL);
}

static void test_fork(void) {
    gsp_context *unused = make_context(2), *context = make_context(2);
    for (int round = 0; round < 3; round++) {
        EXPECT(has_two_threads(context));
        if (round == 1) sleep_ms(20);
        const pid_t pid = fork();
        if (pid == 0) _exit(child(context, 1) + 2 * child(unused, 0));
        expect_child(pid);
    }
    gsp_context_destroy(context);
    gsp_context_destroy(unused);
}

/* The child of a fork in the middle of somebody else's job. */
static void test_fork_while_others_work(void) {
    shared all = {.context = make_context(2), .right = true};
    pthread_t caller;
    EXPECT_INT(pthread_create(&caller, NULL, call_again_and_again, &all), 0);
    for (int round = 0; round < 10; round++) {
        const pid_t pid = fork();
        if (pid == 0) _exit(child(all.context, 0));
        expect_child(pid);
    }
    pthread_join(caller, NULL);
    EXPECT(atomic_load(&all.right));
    gsp_context_destroy(all.context);
}

/* ------------------------------------------------------------------ signals */

static atomic_int handled;

static void on_signal(int number) {
    (void)number;
    atomic_fetch_add(&handled, 1);
}

/* Two items at once; who is not the caller must take no signals. */
static gsp_status look_at_signals(void *argument, int64_t item, int worker) {
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    const gsp_status status = meet(argument, item, worker);
    return sigismember(&blocked, SIGINT) == (worker > 0) ? status : GSP_ERROR_MASK;
}

/* Signals do not disturb jobs, and do not land on the threads of the pool. */
static void test_signals(void) {
    struct sigaction action = {.sa_handler = on_signal}, before;
    sigaction(SIGUSR1, &action, &before);
    gsp_context *context = make_context(3);
    bool right = true;
    for (int round = 0; round < ROUNDS / 10; round++) {
        kill(getpid(), SIGUSR1);
        right = right && job_is_right(context, 50, NULL);
    }
    EXPECT(right);
    EXPECT(atomic_load(&handled) > 0);
    sigaction(SIGUSR1, &before, NULL);
    atomic_int here = 0;
    EXPECT_INT(gspi_parallel_on(context, 2, 2, look_at_signals, &here), GSP_OK);
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    EXPECT(!sigismember(&blocked, SIGINT));
    gsp_context_destroy(context);
}

/* --------------------------------------------------------------------- end */

static void test_destroy(void) {
    bool right = true;
    for (int round = 0; round < 60; round++) {
        gsp_context *context = make_context(1 + round % 4);
        if (round % 5 != 0) right = right && job_is_right(context, 30, NULL);
        if (round % 3 == 0) sleep_ms(1); /* asleep or on the way to it */
        gsp_context_destroy(context);
    }
    EXPECT(right);
}

/* ------------------------------------------------------------------- stack */

/* ThreadSanitizer keeps much of its own on every stack. */
#if defined(__GLIBC__) && !defined(__SANITIZE_THREAD__)
#define TEST_STACK
static gsp_status use_stack(void *argument, int64_t item, int worker) {
    (void)argument;
    (void)worker;
    volatile char room[600 << 10];
    for (size_t i = 0; i < sizeof room; i += 1024) room[i] = (char)item;
    sleep_ms(1); /* so that other threads come, too */
    return room[0] == (char)item ? GSP_OK : GSP_ERROR_MASK;
}

/* Where threads get little stack unless they ask for more, as with musl. */
static void test_stack(void) {
    pthread_attr_t before, small;
    EXPECT_INT(pthread_getattr_default_np(&before), 0);
    EXPECT_INT(pthread_attr_init(&small), 0);
    EXPECT_INT(pthread_attr_setstacksize(&small, 128 << 10), 0);
    EXPECT_INT(pthread_setattr_default_np(&small), 0);
    gsp_context *context = make_context(4);
    EXPECT_INT(gspi_parallel(context, 20, use_stack, NULL), GSP_OK);
    gsp_context_destroy(context);
    EXPECT_INT(pthread_setattr_default_np(&before), 0);
    pthread_attr_destroy(&small);
    pthread_attr_destroy(&before);
}
#endif

int main(void) {
    test_small_jobs();
    test_threads_work_and_sleep();
    test_jobs_inside_jobs();
    test_callers_at_once();
    test_fork();
    test_fork_while_others_work();
    test_signals();
#if defined(TEST_STACK)
    test_stack();
#endif
    test_destroy();
    return gsp_test_done("pool");
}
