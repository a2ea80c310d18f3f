/* Counters by name, read from Python through ctypes (tools/null_gpu/counters.py). */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "null_gpu.h"

enum { LIMIT = 8192 };

static struct {
    char *name;
    long count;
} counters[LIMIT];
static int used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

long *counter(const char *name) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < used && strcmp(counters[i].name, name))
        i++;
    if (i == LIMIT)
        abort();
    if (i == used)
        counters[used++].name = strdup(name);
    pthread_mutex_unlock(&lock);
    return &counters[i].count;
}

void increase(long *count) { __atomic_fetch_add(count, 1, __ATOMIC_RELAXED); }

void launched(const char *name) {
    static int by_name = -1;
    if (by_name < 0)
        by_name = getenv("NULL_GPU_NAMES") != NULL;
    COUNT("launches");
    if (by_name) {
        char text[512];
        snprintf(text, sizeof text, "kernel %s", name);
        increase(counter(text));
    }
}

/* The interface for Python. */

void null_gpu_reset(void) {
    for (int i = 0; i < used; i++)
        counters[i].count = 0;
}

/* Writes "count name" lines of all counters above zero; returns the bytes that all of them need. */
int null_gpu_read(char *text, int size) {
    int at = 0;
    for (int i = 0; i < used; i++)
        if (counters[i].count)
            at += snprintf(text + (at < size ? at : size), at < size ? size - at : 0, "%ld %s\n", counters[i].count,
                           counters[i].name);
    return at;
}
