/* What the parts of the null GPU share. */
#ifndef NULL_GPU_H
#define NULL_GPU_H

#include <stddef.h>

/* The card, as the environment describes it (see tools/null_gpu/card.py). */
struct card {
    const char *name;
    int devices;
    int major, minor;
    int multiprocessors;
    size_t memory; /* bytes */
    size_t shared; /* bytes of shared memory that one block may ask for */
};
const struct card *card(void);
int current_device(void);

/* A counter lives as long as the process, so callers may keep the pointer. */
long *counter(const char *name);
void increase(long *count);

/* Counts calls of NAME with one look-up per call site. */
#define COUNT(NAME)                     \
    do {                                \
        static long *count;             \
        if (!count)                     \
            count = counter(NAME);      \
        increase(count);                \
    } while (0)

/* Counts a kernel that the device would run. */
void launched(const char *name);

#endif
